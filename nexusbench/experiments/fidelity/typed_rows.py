"""Rows of measured parquet tables as typed records: every fault names file, row and column."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from nexusbench.core.documents import located
from nexusbench.core.errors import InputError

Row = TypeVar("Row", bound=msgspec.Struct)
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Heads = Annotated[int, msgspec.Meta(ge=1, le=2**16)]
Millis = Annotated[float, msgspec.Meta(ge=1e-9, le=1e9)]
MOST_ROWS = 1_000_000
HINT = "Give a system's folder of aiconfigurator"


def newest(folder: Path, pattern: str) -> Path | None:
    """The file of the highest version that ``pattern`` finds, whose folder is called as the
    version is; None if there is none.
    """
    found = sorted(folder.glob(pattern), key=lambda path: (_version(path.parent.name), path))
    return found[-1] if found else None


def _version(name: str) -> list[int]:
    return [int(part) for part in name.split(".") if part.isdecimal()]


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """All rows of a table, in order. Columns that ``kind`` has not are not read. Raises InputError:
    no parquet, a column that is missing, a value of another type or out of its column's bounds.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows > MOST_ROWS:
                raise InputError(f"has more than {MOST_ROWS:,} rows", file=path, hint=HINT)
            names = set(file.schema_arrow.names)
            columns = msgspec.structs.fields(kind)
            for column in columns:
                if column.required and column.name not in names:
                    raise InputError("has no such column", file=path, field=column.name, hint=HINT)
            table = file.read([column.name for column in columns if column.name in names])
    except (OSError, ValueError, pa.ArrowException) as error:
        problem = f"cannot be read: {' '.join(str(error).split())}"
        raise InputError(problem, file=path, hint=HINT) from None
    found = []
    for number, row in enumerate(table.to_pylist(), start=1):
        try:
            found.append(msgspec.convert(row, kind))
        except msgspec.ValidationError as error:
            field, problem = located(error)
            raise InputError(
                f"row {number}: {problem}", file=path, field=field, hint=HINT
            ) from None
    return found
