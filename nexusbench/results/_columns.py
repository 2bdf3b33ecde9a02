"""One Parquet file of a run as arrays; what it should not hold is named, never guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexusbench.core.documents import require_file
from nexusbench.core.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    Columns = dict[str, npt.NDArray[Any]]

_DAMAGED = "The file is damaged; run again"


def rows_of(file: Path) -> int:
    """The rows that a file says it has. Raises InputError naming it."""
    import pyarrow.parquet as pq

    require_file(file)
    with _reading(file):
        return int(pq.read_metadata(file).num_rows)


def table_of(file: Path, kinds: Mapping[str, str]) -> Columns:
    """The columns of a file, each of the Arrow type that ``kinds`` says. Raises InputError naming
    the file if it is missing, damaged or of another shape, and the column that is of another kind.
    """
    import pyarrow.parquet as pq

    require_file(file)
    with _reading(file):
        # Not as a dataset: the folders above it are no columns.
        table: pa.Table = pq.ParquetFile(file).read()
    if table.column_names != list(kinds):
        raise InputError(
            f"has the columns {', '.join(table.column_names)}, not {', '.join(kinds)}",
            file=file,
            hint="It was made by another version of nexusbench",
        )
    for name, kind in kinds.items():
        column = table.column(name)
        if str(column.type) != kind:
            raise InputError(
                f"holds {column.type}, not {kind}", file=file, field=name, hint=_DAMAGED
            )
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise InputError(f"row {row} has no value", file=file, field=name, hint=_DAMAGED)
    return {name: table.column(name).to_numpy() for name in kinds}


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise InputError(
            "missing, although the manifest lists it", file=file, hint="Restore it, or run again"
        ) from None
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"cannot be read: {reason}", file=file, hint=_DAMAGED) from None
