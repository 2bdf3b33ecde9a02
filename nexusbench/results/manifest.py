"""The manifest of a run: what was asked, what was resolved, and with which versions it was made."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec

import nexusbench
from nexusbench.core.config import EndpointConfig, RunConfig, check_config
from nexusbench.core.documents import JsonObject, convert, decode_json
from nexusbench.core.errors import InputError
from nexusbench.core.work import Count
from nexusbench.results.resolved import Resolved, ResolvedEngineRun, ResolvedReplay

SCHEMA_VERSION = 2
MANIFEST_FILE = "manifest.json"
_WHAT = "a run's manifest"
_FOREIGN = "It was changed, or made by another version of nexusbench: run again"

# Settings that every config of schema 1 has; for those that came later the default holds.
_ASKED = (
    "seed", "too_long", "speed", "request_rate", "burstiness", "limit", "window", "spread_ties",
    "quantize_arrivals", "concurrency", "model",
)  # fmt: skip
_ASKED_OF_SERVER = ("endpoint", *_ASKED)
_ASKED_OF_ENGINE = (
    *_ASKED, "device", "scheduler", "partitioner", "cost_model", "profile", "recalibrate",
    "tensor_parallel_size", "prefix_caching", "max_tokens",
)  # fmt: skip

Status = Literal["running", "complete", "interrupted", "failed"]


class _RunManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a run was: enough to make it again, and to read its event log.

    ``strings`` and ``splits`` are what the codes in the event tables stand for; ``parts`` has one
    entry per committed flush, the rows of each table it wrote. Part-files that no entry names were
    being written when the run was killed, and are not part of it.
    """

    run_id: str
    created_utc: str  # ISO 8601, given by the caller: nothing on this floor reads a clock
    simulated: bool
    nexusbench: str
    python: str
    numpy: str
    pyarrow: str
    platform: str
    git_commit: str | None  # of the checkout that the package lies in, None if in none
    git_dirty: bool | None
    partitions: list[str]
    splits: list[list[Count]]  # row = split code of the event log: SMs per partition
    strings: list[str]
    parts: list[dict[str, Count]]
    status: Status
    message: str
    event_digest: str
    invariants: dict[str, str]
    schema: int


class EngineManifest(_RunManifest, frozen=True, kw_only=True, tag_field="observed", tag="engine"):
    """The manifest of a run of the engine."""

    config: RunConfig
    resolved: ResolvedEngineRun


class ReplayManifest(_RunManifest, frozen=True, kw_only=True, tag_field="observed", tag="client"):
    """The manifest of a replay against a server, of which only the client's side is known."""

    config: EndpointConfig
    resolved: ResolvedReplay


Manifest = EngineManifest | ReplayManifest


def new_manifest(
    run_id: str,
    created_utc: str,
    *,
    simulated: bool,
    config: RunConfig | EndpointConfig,
    resolved: Resolved,
    partitions: Sequence[str],
) -> Manifest:
    """The manifest of a run that begins, with versions and the checkout's git state. ``config`` and
    ``resolved`` are both an engine's or both a replay's.
    """
    kind = EngineManifest if isinstance(resolved, ResolvedEngineRun) else ReplayManifest
    common: JsonObject = {"config": config, "resolved": resolved, **made_with()}
    return kind(
        run_id=run_id,
        created_utc=created_utc,
        simulated=simulated,
        partitions=list(partitions),
        splits=[],
        strings=[],
        parts=[],
        status="running",
        message="",
        event_digest="",
        invariants={},
        schema=SCHEMA_VERSION,
        **common,
    )


def made_with() -> dict[str, str | bool | None]:
    """The versions that decide a run, the platform, and the state of this package's checkout."""
    commit, dirty = _own_git_state()
    return {
        "nexusbench": nexusbench.__version__,
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "pyarrow": _version("pyarrow"),
        "platform": platform.platform(),
        "git_commit": commit,
        "git_dirty": dirty,
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


@cache
def _own_git_state() -> tuple[str | None, bool | None]:
    """The state of this package's checkout, asked once: a sweep makes manifests by the thousand of
    the code that it imported, whatever happens to the files meanwhile.
    """
    return git_state(Path(nexusbench.__file__).parent)


def git_state(package: Path) -> tuple[str | None, bool | None]:
    """Commit and dirtiness of the checkout that tracks ``package``; (None, None) if none does.

    A package installed inside another repository (a virtual environment in a checkout) is not
    tracked there, so that repository's commit is not the package's. Untracked files in the
    package make it dirty: a dropped-in scheduler is a change.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit = _git(package, "rev-parse", "--verify", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".")
    return commit, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    # Variables like GIT_DIR (set inside hooks) would point git at another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def encode_json(document: object) -> bytes:
    """A document as indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


class _Version(msgspec.Struct):
    schema: int


def decode_manifest(data: bytes, file: Path) -> Manifest:
    """The manifest in ``data``, of this schema or of schema 1. Raises InputError that names
    ``file`` and the key path: not JSON, a wrong or missing entry, a newer schema.
    """
    hint = "The run cannot be read without it"
    version = decode_json(data, _Version, file, what=_WHAT, hint=hint).schema
    if version > SCHEMA_VERSION:
        raise InputError(
            f"made by a newer nexusbench (schema {version}, this one reads {SCHEMA_VERSION})",
            file=file,
            field="schema",
            hint="Upgrade nexusbench to read it",
        )
    if version < 1:
        raise InputError(f"not {_WHAT}: {version}", file=file, field="schema", hint=_FOREIGN)
    document: JsonObject = decode_json(data, JsonObject, file, what=_WHAT, hint=_FOREIGN)
    if version == 1:
        document = _from_schema_1(document)
    kind: Any = Manifest  # ``observed`` says which of the two it is
    manifest: Manifest = convert(document, kind, file, what=_WHAT, hint=_FOREIGN)
    _check(manifest, document["config"], file)
    # A default in the place of a lost setting would be another run, so schema 2 has none.
    lost = "" if version == 1 else _left_out(document, msgspec.to_builtins(manifest))
    if lost:
        raise InputError(f"not {_WHAT}: is missing", file=file, field=lost, hint=_FOREIGN)
    return manifest


def _left_out(document: JsonObject, whole: JsonObject) -> str:
    """The path of the first key of ``whole`` that ``document`` does not have; empty if none."""
    for key, value in whole.items():
        if key not in document:
            return key
        inner = document[key]
        nested = isinstance(value, dict) and isinstance(inner, dict)
        if nested and (lost := _left_out(inner, value)):
            return f"{key}.{lost}"
    return ""


def _from_schema_1(document: JsonObject) -> JsonObject:
    """A document of schema 1 as one of schema 2, which says itself what observed the run."""
    config, resolved = document.get("config"), document.get("resolved")
    of_server = isinstance(config, dict) and "endpoint" in config
    of_server |= isinstance(resolved, dict) and resolved.get("observed") == "client"
    observed = "client" if of_server else "engine"
    return {**document, "schema": SCHEMA_VERSION, "observed": observed}


def _check(manifest: Manifest, config: JsonObject, file: Path) -> None:
    """What no single field says: settings that no run leaves out are there and within their bounds,
    and every partition lies in a pool. Raises InputError.
    """
    wanted = _ASKED_OF_ENGINE if isinstance(manifest, EngineManifest) else _ASKED_OF_SERVER
    if missing := [name for name in wanted if name not in config]:
        at = f"config.{missing[0]}"
        raise InputError(f"not {_WHAT}: is missing", file=file, field=at, hint=_FOREIGN)
    try:
        check_config(manifest.config)
    except InputError as error:
        at, problem = f"config.{error.field}", f"not {_WHAT}: {error.problem}"
        raise InputError(problem, file=file, field=at, hint=_FOREIGN) from None
    if isinstance(manifest, ReplayManifest):
        return
    homes, partitions = manifest.resolved.homes, manifest.partitions
    pools = manifest.resolved.pools
    if len(homes) != len(partitions) or any(home >= len(pools) for home in homes):
        problem = f"{_WHAT}: partitions {partitions} lie in the pools {homes} of {len(pools)}"
        raise InputError(f"not {problem}", file=file, field="resolved.homes", hint=_FOREIGN)
