"""Run a stored run's config again on the same trace and compare the digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from nexusbench.cli._console import results_console
from nexusbench.cli._live import follow
from nexusbench.cli._screen import badge
from nexusbench.cli._session import JSON_SCHEMA
from nexusbench.core.config import EndpointConfig, RunConfig
from nexusbench.core.errors import InputError
from nexusbench.metrics.run_events import RunEvents
from nexusbench.results.manifest import Manifest
from nexusbench.results.reader import DEFAULT_ROOT, RunReader
from nexusbench.serving.runner import RunResult, run
from nexusbench.workloads.source import stored_sha256

# Measured, not resolved; the trace has been compared already.
_NEVER_ALIKE = ("decision_us", "host_gaps", "client", "trace")
EXIT_DIFFERS, EXIT_INCONCLUSIVE = 1, 4


def run_again(
    run_name: str, results: Path | None, *, trace: Path | None, as_json: bool, quiet: bool
) -> None:
    """Run it, print whether the event log is identical, and exit with the matching code.

    Without ``results`` the new run is kept in the folder of the stored one.
    """
    reader = RunReader(run_name, results or DEFAULT_ROOT)
    config = reader.manifest.config
    if trace is not None:
        config = msgspec.structs.replace(config, trace=str(trace))
    _check_trace(reader, config)
    RunEvents.from_reader(reader)  # a damaged run is refused before the new one starts
    with follow(f"rerun {reader.path.name}", quiet=quiet) as progress:
        result = run(config, results=results or reader.path.parent, progress=progress)
    verdict, sentence, code = _verdict(reader, result)
    changes = differences(reader.manifest, result)
    if as_json:
        document: dict[str, object] = {
            "schema": JSON_SCHEMA,
            "command": "rerun",
            "simulated": result.summary.simulated,
            "original": {"folder": str(reader.path), "event_digest": reader.manifest.event_digest},
            "rerun": {"folder": str(result.folder), "event_digest": result.event_digest},
            "verdict": verdict,
            "changes": changes,
        }
        print(json.dumps(document, indent=2))
    else:
        from rich.text import Text

        console = results_console()
        console.print(
            Text.assemble((sentence, "bold"), "  ", badge(result.summary.simulated)),
            soft_wrap=True,
        )
        for line in changes:
            console.print(f"changed  {line}", soft_wrap=True)
        console.print(f"original {reader.path}  {reader.manifest.event_digest}", soft_wrap=True)
        console.print(f"rerun    {result.folder}  {result.event_digest}", soft_wrap=True)
    if code:
        raise SystemExit(code)


def _check_trace(reader: RunReader, config: RunConfig | EndpointConfig) -> None:
    """Raises InputError unless the trace is byte for byte the one of the stored run."""
    try:
        found = stored_sha256(config.trace)
    except InputError as error:
        hint = "Say where it is now with --trace FILE"
        raise InputError(f"the run's trace: {error.problem}", file=error.file, hint=hint) from None
    recorded = reader.manifest.resolved.trace.sha256
    if found != recorded:
        raise InputError(
            f"is not the trace of the run: its sha256 is {found[:12]}, that of the run "
            f"{recorded[:12]}",
            file=config.trace,
            hint="Give the original with --trace FILE",
        )


def _verdict(reader: RunReader, result: RunResult) -> tuple[str, str, int]:
    """A word for programs, a sentence for people, and the exit code."""
    if not result.summary.simulated:
        return "measured", "ran again; what is measured never gives the same event log twice", 0
    if not reader.complete:
        sentence = f"nothing to compare with: the original is {reader.status}"
        return "inconclusive", sentence, EXIT_INCONCLUSIVE
    if result.event_digest == reader.manifest.event_digest:
        return "identical", "identical event log", 0
    return "differs", "the event log differs", EXIT_DIFFERS


def differences(manifest: Manifest, result: RunResult) -> list[str]:
    """What was resolved differently, or made by other versions: the usual suspects."""
    # Through JSON, like the recorded one: tuples become lists.
    old_run, new = (
        json.loads(msgspec.json.encode(resolved))
        for resolved in (manifest.resolved, result.resolved)
    )
    changes = [
        line
        for key, old in old_run.items()
        if key not in _NEVER_ALIKE
        for line in _changed(key, old, new.get(key))
    ]
    if result.folder is not None:
        made = RunReader(result.folder).manifest
        for name in ("nexusbench", "git_commit", "git_dirty", "python", "numpy"):
            old, now = getattr(manifest, name), getattr(made, name)
            if old != now:
                changes.append(f"{name}: {old} -> {now}")
    return changes


def _changed(key: str, old: Any, new: Any) -> list[str]:
    """The fields in which two values differ, one line each."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        return [
            x for name in names for x in _changed(f"{key}.{name}", old.get(name), new.get(name))
        ]
    line = f"{key}: {_brief(old)} -> {_brief(new)}"
    if key == "belief.profile.points_sha256":
        line = f"belief: fitted to other points ({str(old)[:12]} -> {str(new)[:12]})"
    return [line]


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
