"""The manifest of a run: what was asked, what was resolved, and with which versions it was made."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec

import nexusbench
from nexusbench.core.documents import convert, decode_json
from nexusbench.core.errors import InputError
from nexusbench.results.resolved import Count, ResolvedOfEngine, kinds_of

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
_WHAT = "a run's manifest"
_FOREIGN = "It was changed, or made by another version of nexusbench: run again"

Status = Literal["running", "complete", "interrupted", "failed"]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a run was: enough to make it again, and to read its event log.

    ``config`` and ``resolved`` must hold what ``resolved.py`` says: readers rely on it.
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
    config: dict[str, Any]
    resolved: dict[str, Any]
    partitions: list[str]
    splits: list[list[Count]]  # row = split code of the event log: SMs per partition
    strings: list[str]
    parts: list[dict[str, Count]]
    status: Status
    message: str
    event_digest: str
    invariants: dict[str, str]
    schema: int


def new_manifest(
    run_id: str,
    created_utc: str,
    *,
    simulated: bool,
    config: Mapping[str, Any],
    resolved: Mapping[str, Any],
    partitions: Sequence[str],
    splits: Sequence[Sequence[int]] = (),
) -> Manifest:
    """The manifest of a run that begins, with versions and the checkout's git state."""
    commit, dirty = _own_git_state()
    return Manifest(
        run_id=run_id,
        created_utc=created_utc,
        simulated=simulated,
        nexusbench=nexusbench.__version__,
        python=platform.python_version(),
        numpy=_version("numpy"),
        pyarrow=_version("pyarrow"),
        platform=platform.platform(),
        git_commit=commit,
        git_dirty=dirty,
        config=dict(config),
        resolved=dict(resolved),
        partitions=list(partitions),
        splits=[list(split) for split in splits],
        strings=[],
        parts=[],
        status="running",
        message="",
        event_digest="",
        invariants={},
        schema=SCHEMA_VERSION,
    )


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

    A package installed inside somebody else's repository (a virtual environment in a checkout) is
    not tracked there, so that repository's commit is not taken for ours. Untracked files in the
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
    """The manifest in ``data``. Raises InputError that names ``file`` and the key path: not JSON,
    a wrong or missing entry, also in ``config`` and ``resolved``, a newer schema.
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
    if version < SCHEMA_VERSION:
        raise InputError(f"not {_WHAT}: {version}", file=file, field="schema", hint=_FOREIGN)
    manifest = decode_json(data, Manifest, file, what=_WHAT, hint=_FOREIGN)
    check_facts(manifest, file)
    return manifest


def check_facts(manifest: Manifest, file: object) -> None:
    """What readers take for granted of ``config``, ``resolved`` and ``partitions``. Raises
    InputError that names ``file`` and the key path.
    """
    asked, resolved = kinds_of(manifest.resolved)
    convert(manifest.config, asked, file, at="config", what=_WHAT, hint=_FOREIGN)
    facts = convert(manifest.resolved, resolved, file, at="resolved", what=_WHAT, hint=_FOREIGN)
    if not isinstance(facts, ResolvedOfEngine):
        return
    homes, partitions, pools = facts.homes, manifest.partitions, facts.pools
    if len(homes) != len(partitions) or any(home >= len(pools) for home in homes):
        problem = f"{_WHAT}: partitions {partitions} lie in the pools {homes} of {len(pools)}"
        raise InputError(f"not {problem}", file=file, field="resolved.homes", hint=_FOREIGN)
