"""Reading a run folder back, killed runs too; what is damaged is named, never guessed."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nexusbench.core.documents import JsonObject, decode_json, read_document, require_file
from nexusbench.core.errors import InputError
from nexusbench.core.events import SCHEMA, StoredEvents, combined_digest
from nexusbench.core.registry import did_you_mean
from nexusbench.results._columns import rows_of, table_of
from nexusbench.results.manifest import MANIFEST_FILE, Manifest, decode_manifest
from nexusbench.results.resolved import facts_for_metrics
from nexusbench.results.store import (
    EVENTS_FOLDER,
    REQUEST_COLUMNS,
    REQUESTS_FILE,
    SUMMARY_FILE,
    TEXT_COLUMNS,
    TOKENS_FILE,
    part_file,
)

if TYPE_CHECKING:
    from nexusbench.results._columns import Columns

DEFAULT_ROOT = Path("results")
_CHANGED = "The file was changed after the run: restore it, or run again"


class RunReader:
    """One stored run: ``path`` its folder, ``manifest`` what it was."""

    def __init__(self, path: Path | str, root: Path = DEFAULT_ROOT) -> None:
        """Open a run folder, or the run called ``path`` under ``root``. Raises InputError if there
        is none.
        """
        self.path = _find(Path(path), root)
        file = self.path / MANIFEST_FILE
        self.manifest: Manifest = decode_manifest(read_document(file), file)
        self._verified = False
        for rows in self.manifest.parts:
            for name, count in rows.items():
                if name not in SCHEMA:
                    raise InputError(
                        f"{count} rows of an event table '{name}' cannot be", file=file,
                        field="parts", hint=_CHANGED,
                    )  # fmt: skip

    @property
    def status(self) -> str:
        """``complete``, ``interrupted``, ``failed``, or ``killed or still running``."""
        status = self.manifest.status
        return "killed or still running" if status == "running" else status

    @property
    def complete(self) -> bool:
        """The run was complete when it ended."""
        return self.manifest.status == "complete"

    def requests(self) -> Columns:
        """The requests, columns REQUEST_COLUMNS. Raises InputError naming a damaged file."""
        return table_of(
            self.path / REQUESTS_FILE,
            {name: "string" if name in TEXT_COLUMNS else "int64" for name in REQUEST_COLUMNS},
        )

    def table(self, name: str) -> Columns:
        """One event table, all committed parts in order. Raises InputError naming a damaged or
        missing part.
        """
        import numpy as np

        if name not in SCHEMA:
            raise InputError(
                f"no event table '{name}'", file=self.path, hint=did_you_mean(name, list(SCHEMA))
            )
        total = sum(rows.get(name, 0) for rows in self.manifest.parts)
        # The files are looked at before room is made: a manifest can ask for any number of rows.
        for number, rows in enumerate(self.manifest.parts):
            if name in rows:
                self._check_rows(name, number, rows_of(self._part(name, number)))
        kind = np.int32 if name == "token" else np.int64
        whole: Columns = {column: np.empty(total, dtype=kind) for column in SCHEMA[name]}
        filled = 0
        for part in self.parts(name):
            found = len(part[SCHEMA[name][0]])
            for column, values in part.items():
                whole[column][filled : filled + found] = values
            filled += found
        return whole

    def parts(self, name: str) -> Iterator[Columns]:
        """One event table part by part, in order: for what is too long to hold. Raises as
        :meth:`table` does.
        """
        for number, rows in enumerate(self.manifest.parts):
            if name in rows:
                kinds = dict.fromkeys(SCHEMA[name], "int32" if name == "token" else "int64")
                columns = table_of(self._part(name, number), kinds)
                self._check_rows(name, number, len(columns[SCHEMA[name][0]]))
                yield {column: values[: rows[name]] for column, values in columns.items()}

    def locate(self, name: str, row: int) -> tuple[Path, int]:
        """The file that holds a row of an event table, and which of its rows it is."""
        for number, rows in enumerate(self.manifest.parts):
            if row < rows.get(name, 0):
                return self._part(name, number), row
            row -= rows.get(name, 0)
        return self.path / EVENTS_FOLDER, row

    def _part(self, name: str, number: int) -> Path:
        return self.path / EVENTS_FOLDER / part_file(name, number)

    def _check_rows(self, name: str, number: int, found: int) -> None:
        """The last part of a run that was cut off was growing: it may be ahead of the manifest."""
        expected = self.manifest.parts[number][name]
        growing = not self.complete and number == len(self.manifest.parts) - 1
        if found < expected or (found > expected and not growing):
            raise InputError(
                f"holds {found} rows, the manifest says {expected}",
                file=self._part(name, number), hint=_CHANGED,
            )  # fmt: skip

    def verify(self) -> None:
        """The event tables are those that the run wrote, by their digest; a run that was killed has
        none yet. Raises InputError for a damaged file, or where they are not.
        """
        asked = self.manifest.event_digest
        if self._verified or not asked:
            return
        found: dict[tuple[str, str], bytes] = {}
        for name, columns in SCHEMA.items():
            kind = "<i4" if name == "token" else "<i8"
            hashes = {column: hashlib.sha256() for column in columns}
            for part in self.parts(name):
                for column, values in part.items():
                    hashes[column].update(values.astype(kind, copy=False).data)
            found |= {(name, column): partial.digest() for column, partial in hashes.items()}
        digest = combined_digest(found, self.manifest.strings)
        if digest != asked:
            raise InputError(
                f"the tables in events/ have the digest {digest[:12]}..., the manifest says "
                f"{asked[:12]}...: rows, or the manifest's strings, are not those of the run",
                file=self.path / MANIFEST_FILE, field="event_digest", hint=_CHANGED,
            )  # fmt: skip
        self._verified = True

    def first_parts(self, count: int) -> RunReader:
        """The same run as it was when it had so many parts."""
        reader = copy.copy(self)
        reader.manifest = msgspec.structs.replace(self.manifest, parts=self.manifest.parts[:count])
        return reader

    def events(self) -> StoredEvents:
        """Everything metrics need. Raises InputError naming the file that is damaged."""
        self.verify()
        manifest = self.manifest
        facts = facts_for_metrics(
            manifest.resolved,
            simulated=manifest.simulated,
            partitions=manifest.partitions,
            splits=manifest.splits,
            strings=manifest.strings,
        )
        return StoredEvents(_Tables(self), self.requests(), facts, self.path / MANIFEST_FILE)

    def tokens(self) -> dict[int, list[int]]:
        """Token ids that each ended request got; empty for simulated runs. Raises InputError."""
        file = self.path / TOKENS_FILE
        if not file.exists():
            return {}
        import pyarrow as pa
        import pyarrow.parquet as pq

        require_file(file)
        try:
            table = pq.ParquetFile(file).read()
            requests = table["request"].cast(pa.int64()).to_pylist()
            tokens = table["tokens"].cast(pa.list_(pa.int32())).to_pylist()
        except (OSError, KeyError, pa.ArrowException) as error:
            raise InputError(f"cannot be read: {error}", file=file) from None
        if len(set(requests)) != len(requests) or None in requests or None in tokens:
            raise InputError("holds a request twice, or nothing of one", file=file, hint=_CHANGED)
        return dict(zip(requests, tokens, strict=True))

    def summary(self) -> JsonObject | None:
        """The stored summary; None where the run ended before it was written. Raises InputError
        also where the events that it was computed from are not there any more.
        """
        self.verify()
        file = self.path / SUMMARY_FILE
        if not file.exists():
            return None
        return decode_json(read_document(file), JsonObject, file, what="a summary")


class _Tables(Mapping[str, Any]):
    """The event tables of a run, each read when it is asked for, and not kept."""

    def __init__(self, reader: RunReader) -> None:
        self._reader = reader

    def __getitem__(self, name: str) -> Columns:
        return self._reader.table(name)

    def parts(self, name: str) -> Iterator[Columns]:
        """One table part by part."""
        return self._reader.parts(name)

    def locate(self, name: str, row: int) -> tuple[Path, int]:
        """The file of a row, and its place in it."""
        return self._reader.locate(name, row)

    def __iter__(self) -> Iterator[str]:
        return iter(SCHEMA)

    def __len__(self) -> int:
        return len(SCHEMA)


def list_runs(root: Path = DEFAULT_ROOT) -> list[str]:
    """The ids of all run folders directly under ``root``, sorted."""
    return sorted(file.parent.name for file in Path(root).glob(f"*/{MANIFEST_FILE}"))


def _find(path: Path, root: Path) -> Path:
    for folder in (path, root / path):
        if (folder / MANIFEST_FILE).is_file():
            return folder
    if path.is_dir():
        raise InputError(
            f"not a run folder: it has no {MANIFEST_FILE}",
            file=path,
            hint="Give the folder of one run, <results>/<run-id>",
        )
    if path.exists():
        raise InputError("a file, not a run folder", file=path, hint="Give the run's folder")
    known = list_runs(root)
    raise InputError(
        f"no such run, neither as a folder nor under {root}/",
        file=path,
        hint=did_you_mean(str(path), known) if known else f"There are no runs under {root}/",
    )
