"""Reading a run folder back, killed runs too; what is damaged is named, never guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexusbench.core.documents import decode_json, read_document
from nexusbench.core.errors import InputError
from nexusbench.core.events import SCHEMA
from nexusbench.core.registry import did_you_mean
from nexusbench.results.manifest import MANIFEST_FILE, Manifest, decode_manifest
from nexusbench.results.store import (
    EVENTS_FOLDER,
    REQUEST_COLUMNS,
    REQUESTS_FILE,
    SUMMARY_FILE,
    TOKENS_FILE,
    part_file,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Columns = dict[str, npt.NDArray[Any]]

DEFAULT_ROOT = Path("results")


# The entries of a manifest's ``resolved`` that metrics need, where a run has them.
_FACTS = (
    "num_sms", "kv_blocks", "block_size", "slo", "warmup_ns", "gpus", "device", "observed",
    "price_per_hour", "watts", "work", "pools", "homes", "host_gaps",
)  # fmt: skip


class RunReader:
    """One stored run: ``path`` its folder, ``manifest`` what it was."""

    def __init__(self, path: Path | str, root: Path = DEFAULT_ROOT) -> None:
        """Open a run folder, or the run called ``path`` under ``root``. Raises InputError if there
        is none.
        """
        self.path = _find(Path(path), root)
        file = self.path / MANIFEST_FILE
        self.manifest: Manifest = decode_manifest(read_document(file), file)

    @property
    def status(self) -> str:
        """``complete``, ``interrupted``, ``failed``, or ``killed or still running``."""
        status = self.manifest.status
        return "killed or still running" if status == "running" else status

    @property
    def complete(self) -> bool:
        """The run came to its own end."""
        return self.manifest.status == "complete"

    def requests(self) -> Columns:
        """The requests, columns REQUEST_COLUMNS. Raises InputError naming a damaged file."""
        return _read(self.path / REQUESTS_FILE, REQUEST_COLUMNS)

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
                file = self.path / EVENTS_FOLDER / part_file(name, number)
                columns = _read(file, SCHEMA[name])
                found = len(columns[SCHEMA[name][0]])
                if found != rows[name]:
                    raise InputError(
                        f"holds {found} rows, the manifest says {rows[name]}",
                        file=file,
                        hint="The file was changed after the run",
                    )
                yield columns

    def events(self) -> dict[str, Any]:
        """Everything metrics need, as plain dicts: ``tables``, ``requests`` and ``facts``, and the
        ``file`` that the facts are of.

        Raises InputError naming the file that is damaged.
        """
        resolved = self.manifest.resolved
        return {
            "file": self.path / MANIFEST_FILE,
            "tables": _Tables(self),
            "requests": self.requests(),
            "facts": {
                **{key: resolved[key] for key in _FACTS if key in resolved},
                "simulated": self.manifest.simulated,
                "partitions": self.manifest.partitions,
                "splits": self.manifest.splits,
                "strings": self.manifest.strings,
            },
        }

    def tokens(self) -> dict[int, list[int]]:
        """Token ids that each ended request got; empty for simulated runs. Raises InputError."""
        file = self.path / TOKENS_FILE
        if not file.exists():
            return {}
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(file)
            requests, tokens = table["request"].to_pylist(), table["tokens"].to_pylist()
        except (OSError, KeyError, pa.ArrowException) as error:
            raise InputError(f"cannot be read: {error}", file=file) from None
        return dict(zip(requests, tokens, strict=True))

    def summary(self) -> dict[str, Any] | None:
        """The stored summary; None where the run ended before it was written."""
        file = self.path / SUMMARY_FILE
        if not file.exists():
            return None
        return decode_json(read_document(file), dict[str, Any], file, what="a summary")


class _Tables(Mapping[str, Any]):
    """The event tables of a run, each read when it is asked for, and not kept."""

    def __init__(self, reader: RunReader) -> None:
        self._reader = reader

    def __getitem__(self, name: str) -> Columns:
        return self._reader.table(name)

    def parts(self, name: str) -> Iterator[Columns]:
        """One table part by part."""
        return self._reader.parts(name)

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


def _read(file: Path, columns: tuple[str, ...]) -> Columns:
    """One Parquet file as arrays. Raises InputError naming it if it is missing, damaged or of
    another shape.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file).read()
    except FileNotFoundError:
        raise InputError(
            "missing, although the manifest lists it", file=file, hint="Restore it, or run again"
        ) from None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"cannot be read: {reason}", file=file, hint="The file is damaged; run again"
        ) from None
    if tuple(table.column_names) != columns:
        raise InputError(
            f"has the columns {', '.join(table.column_names)}, not {', '.join(columns)}",
            file=file,
            hint="It was made by another version of nexusbench",
        )
    arrays: Columns = {}
    for name in columns:
        values: np.ndarray[Any, Any] = table.column(name).to_numpy()
        arrays[name] = values
    return arrays
