"""Writing a run folder so that a kill at any moment leaves a readable run.

    <root>/<run-id>/manifest.json        replaced atomically; commits each flush
                    requests.parquet     the offered requests, written before the manifest
                    events/<table>-<part>.parquet
                    tokens.parquet       what each request got, of devices that make tokens
                    summary.json         when the run has ended

Every file is written under a temporary name and renamed. A flush writes its part-files first and
then the manifest that lists them: parts that no manifest lists do not exist for the reader, so the
tables of a killed run always fit together. On a real clock the last part is written again and again
while it grows: its files may hold more rows than the manifest says, and the reader takes as many as
it says.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.events import SCHEMA, EventLog, EventTable
from nexusbench.core.outputs import not_written
from nexusbench.core.printable import one_line
from nexusbench.results.manifest import MANIFEST_FILE, Manifest, Status, encode_json

if TYPE_CHECKING:
    import pyarrow as pa

REQUESTS_FILE = "requests.parquet"
SUMMARY_FILE = "summary.json"
TOKENS_FILE = "tokens.parquet"
EVENTS_FOLDER = "events"
TEMPORARY_SUFFIX = ".tmp"
_LONGEST_NAME = 200  # bytes of a folder's name: file systems take 255, and a number may follow
# ``request`` is the index that the event log uses; arrival in ns; output_tokens is the true length.
REQUEST_COLUMNS = (
    "request", "id", "tenant", "arrival", "prompt_tokens", "output_tokens", "max_tokens",
)  # fmt: skip
# Parts that a later flush has replaced stay for a while: a reader may hold an older manifest.
_KEPT_WITHDRAWN = 2
TEXT_COLUMNS = ("id", "tenant")

Columns = Mapping[str, Any]  # of an event table


def part_file(table: str, part: int) -> str:
    """File name of one part of an event table."""
    return f"{table}-{part:05d}.parquet"


class Snapshot(msgspec.Struct):
    """A log at one moment, apart from it: what a thread can write while the log goes on."""

    tables: dict[str, dict[str, Any]]
    strings: list[str]
    splits: list[list[int]]


class RunWriter:
    """The writer of one run folder; ``path`` is the folder, ``manifest`` what was last written,
    ``sealed`` the parts that are not written again.

    An exception that a signal raises inside :meth:`flush` leaves the folder readable; what the log
    holds may then be stored already, and further flushes do nothing.
    """

    def __init__(
        self, root: Path, manifest: Manifest, requests: Mapping[str, Sequence[Any]]
    ) -> None:
        """Make ``root/<run_id>`` (``-2``, ``-3`` ... if taken) and write the requests and the
        manifest.

        ``requests`` holds equally long columns named by REQUEST_COLUMNS. Raises UsageError if the
        folder cannot be made, NexusbenchError if it cannot be written to.
        """
        self.path = _make_folder(Path(root), manifest.run_id)
        self.manifest = msgspec.structs.replace(manifest, run_id=self.path.name, parts=[])
        self.sealed: list[dict[str, int]] = []
        self._behind = self._draining = False  # rows of the log may not be stored; may be stored
        self._tail: int | None = None  # the part that the next flush withdraws
        self._withdrawn: deque[int] = deque()
        try:
            self._write_table(self.path / REQUESTS_FILE, _request_table(requests))
            self._write_manifest(self.manifest)
        except BaseException:
            # Without a manifest the folder is no run; it is new and holds nothing else.
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def flush(
        self,
        log: EventLog,
        splits: Sequence[Sequence[int]] | None = None,
        *,
        tail: Mapping[str, EventTable] | None = None,
    ) -> None:
        """Store the rows that ``log`` holds, commit them, and drain the log.

        ``splits`` replaces the manifest's split table if given. ``tail`` holds rows that may yet
        change their place: stored for readers of the running run, and withdrawn by the next
        flush. Raises NexusbenchError naming the file if it cannot be written; what was committed
        before stays readable and the log keeps its rows.
        """
        if self._draining:
            return
        self._behind = True
        withdrawn = self._tail
        # The number of a withdrawn part is not used again: its place among the parts stays empty.
        listed = self._commit(
            self.sealed if withdrawn is None else [*self.sealed, {}],
            {name: table.columns for name, table in log.tables.items()},
            log.strings,
            self.manifest.splits if splits is None else splits,
            {name: table.columns for name, table in (tail or {}).items()},
        )
        self._draining = True
        self._tail = len(listed) if len(self.manifest.parts) > len(listed) else None
        self.sealed = listed
        log.drain()
        self._draining = self._behind = False
        if withdrawn is not None:
            self._withdrawn.append(withdrawn)
        self._remove_parts(_KEPT_WITHDRAWN)

    def snapshot(self, log: EventLog, splits: Sequence[Sequence[int]]) -> Snapshot:
        """What :meth:`save` needs of a log."""
        tables = {
            name: {key: column[:] for key, column in table.columns.items()}
            for name, table in log.tables.items()
            if len(table)
        }
        return Snapshot(tables, list(log.strings), [list(row) for row in splits])

    def save(self, snapshot: Snapshot) -> None:
        """Store what a log held beyond the sealed parts; the log keeps it, and the next call or
        flush writes the same part again. Raises as :meth:`flush` does.

        For a thread, as long as nothing else of the writer is called meanwhile.
        """
        self._commit(self.sealed, snapshot.tables, snapshot.strings, snapshot.splits)

    def _commit(
        self,
        sealed: Sequence[dict[str, int]],
        tables: Mapping[str, Columns],
        strings: Sequence[str],
        splits: Sequence[Sequence[int]],
        tail: Mapping[str, Columns] | None = None,
    ) -> list[dict[str, int]]:
        """Write the part after the ``sealed`` ones, then ``tail`` as one of its own, then the
        manifest that lists them. Returns all parts but the tail's.
        """
        # A growing log's tables that are as long as before are the same.
        before: dict[str, int] = dict(*self.manifest.parts[len(sealed) :])
        rows = self._write_part(len(sealed), tables, before)
        listed = [*sealed, *([rows] if rows else [])]
        last = self._write_part(len(listed), tail or {}, {})
        changed = msgspec.structs.replace(
            self.manifest,
            strings=list(strings),
            splits=[list(row) for row in splits],
            parts=[*listed, *([last] if last else [])],
        )
        if changed != self.manifest:
            self._write_manifest(changed)
        return listed

    def _write_part(
        self, part: int, tables: Mapping[str, Columns], before: Mapping[str, int]
    ) -> dict[str, int]:
        """Write a file for each table that holds other than ``before`` many rows; how many each
        holds.
        """
        rows = {name: len(next(iter(columns.values()))) for name, columns in tables.items()}
        rows = {name: count for name, count in rows.items() if count}
        for name, count in rows.items():
            if count != before.get(name):
                path = self.path / EVENTS_FOLDER / part_file(name, part)
                self._write_table(path, _event_table(tables[name]))
        return rows

    def _remove_parts(self, kept: int) -> None:
        """Remove what no manifest lists any more, but for the latest ``kept``; what cannot be
        removed does no harm.
        """
        while len(self._withdrawn) > kept:
            part = self._withdrawn.popleft()
            for name in SCHEMA:
                with suppress(OSError):
                    (self.path / EVENTS_FOLDER / part_file(name, part)).unlink(missing_ok=True)

    def write_tokens(self, generated: Mapping[int, Sequence[int]]) -> None:
        """Keep the token ids of ended requests: columns ``request`` and ``tokens``; no file if
        there are none. Raises NexusbenchError naming the file if it cannot be written.
        """
        if not generated:
            return
        import pyarrow as pa

        requests = sorted(generated)
        lists = pa.array([generated[index] for index in requests], type=pa.list_(pa.int32()))
        table = pa.table({"request": pa.array(requests, type=pa.int64()), "tokens": lists})
        self._write_table(self.path / TOKENS_FILE, table)

    def finish(
        self,
        status: Status,
        summary: Mapping[str, Any] | None = None,
        message: str = "",
        *,
        event_digest: str = "",
        invariants: Mapping[str, str] | None = None,
        resolved: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the summary and the manifest's final status; ``resolved`` adds what only the end
        knows. A digest of rows that could not be stored is left out: it would not be that of the
        files.

        Raises NexusbenchError naming the file if it cannot be written.
        """
        if summary is not None:
            self._write_bytes(self.path / SUMMARY_FILE, encode_json(summary))
        self._write_manifest(
            msgspec.structs.replace(
                self.manifest,
                status=status,
                message=message,
                event_digest="" if self._behind else event_digest,
                invariants=dict(invariants or {}),
                resolved={**self.manifest.resolved, **(resolved or {})},
            )
        )
        self._remove_parts(0)

    def _write_manifest(self, manifest: Manifest) -> None:
        self._write_bytes(self.path / MANIFEST_FILE, encode_json(manifest))
        self.manifest = manifest

    def _write_bytes(self, path: Path, data: bytes) -> None:
        _write_atomically(path, lambda temporary: _write_all(temporary, data))

    def _write_table(self, path: Path, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        _write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def _make_folder(root: Path, base: str) -> Path:
    if base in ("", ".", "..") or Path(base).name != base:
        raise UsageError(f"run name '{base}' is not a plain folder name. Use letters, digits, - _")
    base = one_line(base).encode("utf-8", "replace")[:_LONGEST_NAME].decode("utf-8", "ignore")
    try:
        root.mkdir(parents=True, exist_ok=True)
        path, count = root / base, 1
        while True:
            try:
                # mkdir itself is the test, so that two runs started at once never share a folder.
                path.mkdir()
                break
            except FileExistsError:
                count += 1
                path = root / f"{base}-{count}"
        (path / EVENTS_FOLDER).mkdir()
    except OSError as error:
        place = Path(f"results to {root}")
        raise not_written(place, error, "Choose a folder that you may write to") from None
    return path


def _write_all(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` to a temporary name beside ``path``, then rename: readers see the old file or the
    new one.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise NexusbenchError(
            f"cannot write {path}: {error.strerror or error}. What was written before is kept and "
            "readable; make room, or choose another results folder"
        ) from None


def _event_table(columns: Mapping[str, Any]) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    # A copy: the log cannot drain an array while a view of its buffer is alive.
    return pa.table({name: pa.array(np.array(column)) for name, column in columns.items()})


def _request_table(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    import pyarrow as pa

    if set(columns) != set(REQUEST_COLUMNS) or len({len(c) for c in columns.values()}) != 1:
        raise NexusbenchError(
            f"request columns must be {', '.join(REQUEST_COLUMNS)}, all of one length"
        )
    return pa.table(
        {
            name: pa.array(columns[name], type=pa.string() if name in TEXT_COLUMNS else pa.int64())
            for name in REQUEST_COLUMNS
        }
    )
