"""CSV files of measurements: columns that must be there, and cells that must be numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nexusbench.core.documents import read_table_text
from nexusbench.core.errors import InputError

Cells = Mapping[str, str]  # of a row, by column; a short row has None for the last ones


def csv_rows(path: Path, columns: Sequence[str], hint: str) -> Iterator[tuple[int, Cells]]:
    """Line number and cells of every row, gunzipped if the name ends in ``.gz``. Blanks around the
    names of columns do not count. Raises InputError that names the file, and the column that is
    missing or stands there twice, or the line that has more cells than there are columns.
    """
    reader = csv.DictReader(io.StringIO(read_table_text(path, hint=hint)))
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        check_header(reader.fieldnames, path)
        for key in columns:
            if key not in reader.fieldnames:
                problem = "is missing"
                raise InputError(problem, file=path, line=1, field=key, hint="Add the column")
        for row in reader:
            if any(row.get(None, ())):
                # A comma too many moves every cell after it into the next column.
                problem = f"has more cells than the {len(reader.fieldnames)} columns"
                more = "Quote cells that hold a comma, and write decimal points"
                raise InputError(problem, file=path, line=reader.line_num, hint=more)
            yield reader.line_num, row
    except csv.Error as fault:
        line = max(1, reader.line_num)
        raise InputError(f"is no CSV: {fault}", file=path, line=line, hint=hint) from None


def check_header(columns: Sequence[str], path: Path) -> None:
    """Raises InputError for a column that stands there twice: either could count."""
    for name in columns:
        if name and columns.count(name) > 1:
            problem = "stands in the header twice"
            raise InputError(problem, file=path, line=1, field=name, hint="Rename one of them")


def number_in(row: Cells, key: str, path: Path, line: int, hint: str = "") -> float:
    """A finite number. Raises InputError that names file, line and column."""
    text = row[key]
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        problem = "is missing" if text in (None, "") else f"is {text!r:.40}, not a finite number"
        hint = hint or "Correct this line"
        raise InputError(problem, file=path, line=line, field=key, hint=hint)
    return value
