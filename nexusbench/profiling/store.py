"""The folder of a sweep: ``sweep.json`` says of what, ``points.jsonl`` holds a line a point.

A kill at any moment loses at most the point that was being measured: a torn last line is cut off
before the next is appended.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from nexusbench.core.documents import decode_json, read_document, require_file
from nexusbench.core.errors import InputError, NexusbenchError, UsageError
from nexusbench.core.outputs import write_synced
from nexusbench.core.state import Limits
from nexusbench.profiles.points import Point
from nexusbench.profiles.profile import (
    PARTITIONS_FILE,
    POINTS_FILE,
    PROFILE_FILE,
    SWEEP_FILE,
    Fingerprint,
    read_points,
)

SWEEP_SCHEMA = 1
_SYNC_EVERY = 64  # points between two fsyncs


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a folder's points are of; only an equal sweep may add to them."""

    schema: int
    fingerprint: Fingerprint
    limits: Limits
    block_size: int
    kv_blocks: int
    effort: str
    seed: int


class PointStore:
    """The points of one folder; one process at a time may add to them."""

    def __init__(self, folder: Path, header: Header, *, fresh: bool = False) -> None:
        """Open or begin the folder. ``fresh`` forgets what was measured in it.

        Raises UsageError if it cannot be written, holds points of something else, or is in use;
        InputError for damaged files.
        """
        self.folder, self.path = folder, folder / POINTS_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            require_file(self.path)
            self._file: IO[bytes] = self.path.open("ab")
        except OSError as error:
            raise UsageError(
                f"cannot write to {folder}: {error.strerror}. Choose a folder with -o"
            ) from None
        try:
            _lock(self._file, folder)
            if fresh:
                self._file.truncate(0)
                for name in (SWEEP_FILE, PROFILE_FILE, PARTITIONS_FILE):
                    (folder / name).unlink(missing_ok=True)
            self._check_header(header)
            _cut_torn_line(self.path, self._file)
            self.points: dict[str, Point] = {}
            for point in read_points(self.path):
                self.points.setdefault(point.setting.key, point)
        except BaseException:
            self._file.close()
            raise
        self._unsynced = 0

    def add(self, point: Point) -> None:
        """Append one point; it survives a kill of the process from here on. Raises NexusbenchError
        where the disk is full or broken; earlier points are kept then.
        """
        with self._keeping():
            self._file.write(msgspec.json.encode(point) + b"\n")
            self._file.flush()
        self.points[point.setting.key] = point
        self._unsynced += 1
        if self._unsynced >= _SYNC_EVERY:
            with self._keeping():
                self._sync()

    def close(self) -> None:
        """Sync and let go."""
        if self._file.closed:
            return
        with self._keeping():
            self._sync()
            self._file.close()

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """A point that could not be written whole is cut off by the next writer."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self._file.close()  # which tries once more to write what it holds
            raise NexusbenchError(
                f"cannot write {self.path}: {error.strerror or error}. {len(self.points):,} points "
                "are kept; make room and repeat the command to go on from there"
            ) from None

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def _check_header(self, header: Header) -> None:
        path = self.folder / SWEEP_FILE
        if not path.exists():
            if self.path.stat().st_size:
                raise InputError(
                    "holds points, but no sweep.json that says of what", file=self.folder,
                    hint="Choose another folder with -o, or start over with --fresh",
                )  # fmt: skip
            write_synced(path, msgspec.json.format(msgspec.json.encode(header), indent=1) + b"\n")
            return
        problems = _differences(read_header(path), header)
        if problems:
            raise UsageError(
                f"{self.folder} holds another sweep: {'; '.join(problems)}. "
                "Choose another folder with -o, or start over with --fresh"
            )


def read_header(path: Path) -> Header:
    """The header in a ``sweep.json``. Raises InputError if it is damaged."""
    hint = "Start over with --fresh, or choose another folder with -o"
    data = read_document(path, hint=hint)
    return decode_json(data, Header, path, what="the header of a sweep", hint=hint)


def _differences(was: Header, now: Header) -> list[str]:
    """What makes two sweeps different, in words."""
    found = []
    old, new = was.fingerprint, now.fingerprint
    if was.schema != now.schema:
        found.append(f"it has schema {was.schema}, this version writes {now.schema}")
    if old.device != new.device:
        found.append(f"its device is {old.device}, not {new.device}")
    elif old.device_sha256 != new.device_sha256:
        found.append(f"{old.device} has other constants or tables now")
    if old.model_sha256 != new.model_sha256:
        found.append(f"its model is {old.model}, not {new.model}")
    pairs: list[tuple[str, Any, Any]] = [
        ("tensor-parallel size", old.tensor_parallel, new.tensor_parallel),
        ("seed", was.seed, now.seed),
        ("effort", was.effort, now.effort),
        ("block size", was.block_size, now.block_size),
        ("number of KV blocks", was.kv_blocks, now.kv_blocks),
    ]
    pairs += [
        (name, getattr(was.limits, name), getattr(now.limits, name))
        for name in Limits.__struct_fields__
    ]
    found += [f"its {name} is {before}, not {after}" for name, before, after in pairs
              if before != after]  # fmt: skip
    return found


def _cut_torn_line(path: Path, file: IO[bytes]) -> None:
    """Drop what follows the last newline: the process was killed while writing it."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        file.truncate(data.rfind(b"\n") + 1)


def _lock(file: IO[bytes], folder: Path) -> None:
    """Refuse a folder that another sweep is writing to (where the system has such locks)."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UsageError(
            f"another sweep is writing to {folder}. Wait for it, or choose another folder with -o"
        ) from None
