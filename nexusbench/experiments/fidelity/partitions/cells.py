"""A CSV table of partitions: its header, and cells that are checked as they are read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from nexusbench.core.documents import read_table_text
from nexusbench.core.errors import InputError
from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.fidelity.measured_csv import Cells, check_header, csv_rows, number_in

HINT = "See the formats in docs/fidelity.md, 'Partitions'"
MOST_ROWS, MOST_COLUMNS = 50_000, 1_000
MOST_TOKENS, MOST_BATCH, MOST_SIZE = 2**24, 2**14, 2**20
_LEAST, _MOST = 1e-9, 1e12  # of a measured number


class MeasuredRow:
    """One row; every fault names file, line and column."""

    def __init__(self, path: Path, line: int, cells: Cells) -> None:
        self.path, self.line, self._cells = path, line, cells

    def has(self, key: str) -> bool:
        """Whether the row says anything in this column."""
        return bool((self._cells.get(key) or "").strip())

    def text(self, key: str, default: str | None = None) -> str:
        """What stands there. Raises InputError where nothing does and there is no default."""
        found = (self._cells.get(key) or "").strip()
        if found:
            return found
        if default is None:
            raise self.error(key, "is missing")
        return default

    def count(self, key: str, most: int, default: int | None = None) -> int:
        """A whole number from 1 to ``most``. Raises InputError for anything else."""
        if default is not None and not self.has(key):
            return default
        return self.whole(key, most)

    def whole(self, key: str, most: int, least: int = 1) -> int:
        """A whole number from ``least`` to ``most``. Raises InputError for anything else."""
        value = number_in(self._cells, key, self.path, self.line, HINT)
        if value == round(value) and least <= value <= most:
            return round(value)
        problem = f"is {self._cells[key]!r:.40}, not a whole number of {least} to {most:,}"
        raise self.error(key, problem)

    def positive(self, key: str) -> float:
        """A measured number. Raises InputError for one that none can be."""
        value = number_in(self._cells, key, self.path, self.line, HINT)
        if _LEAST <= value <= _MOST:
            return value
        problem = f"is {self._cells[key]!r:.40}, not a number of {_LEAST:g} to {_MOST:g}"
        raise self.error(key, problem)

    def sms(self, key: str, gpu: GpuSpec) -> int:
        """A number of SMs that ``gpu`` has. Raises InputError for more."""
        value = self.count(key, MOST_SIZE)
        if value > gpu.num_sms:
            problem = f"is {value} SMs; {gpu.name} has {gpu.num_sms}"
            raise self.error(key, problem, "Give the GPU that was measured, or one with more SMs")
        return value

    def error(self, key: str, problem: str, hint: str = HINT) -> InputError:
        """The complaint about one cell."""
        return InputError(problem, file=self.path, line=self.line, field=key, hint=hint)


def header_of(path: Path) -> tuple[str, ...]:
    """The columns of a CSV file. Raises InputError if there are none, or one stands there twice."""
    text = read_table_text(path, hint=HINT)
    try:
        header = next(csv.reader(io.StringIO(text)), [])
    except csv.Error as fault:
        raise InputError(f"is no CSV: {fault}", file=path, line=1, hint=HINT) from None
    columns = tuple(name.strip() for name in header)
    if not any(columns):
        raise InputError("holds no header line", file=path, line=1, hint=HINT)
    if len(columns) > MOST_COLUMNS:
        problem = f"has {len(columns):,} columns, more than {MOST_COLUMNS}"
        raise InputError(problem, file=path, line=1, hint=HINT)
    check_header(columns, path)
    return columns


def rows_of(path: Path, columns: tuple[str, ...]) -> Iterator[MeasuredRow]:
    """The rows of a CSV file with those columns. Raises InputError for none, or far too many."""
    number = 0
    for line, cells in csv_rows(path, columns, HINT):
        number += 1
        if number > MOST_ROWS:
            problem = f"holds more than {MOST_ROWS:,} rows"
            raise InputError(problem, file=path, line=line, hint="Split the file")
        yield MeasuredRow(path, line, cells)
    if not number:
        raise InputError("holds no rows", file=path, hint=HINT)
