"""Columns of text: header, delimiter, quotes and numbers, for every format that has them."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.registry import did_you_mean
from nexusbench.workloads.source import MAX_LINE, Source, shown

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NUMBER = re.compile(r"\+?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_GROUPED = re.compile(r"\d{1,3}(?:[,. '_\u2009\u00a0\u202f]\d{3})+(?:[.,]\d*)?")
_MOST_NAMED = 8


class Layout(msgspec.Struct, frozen=True):
    """Where the columns of a file stand; ``line`` is the header's, ``begin`` where rows start."""

    names: list[str]
    delimiter: str
    line: int
    begin: int

    @property
    def places(self) -> dict[str, int]:
        """Column -> position."""
        return {name: place for place, name in enumerate(self.names)}

    def begins_with(self, name: str) -> bool:
        """Whether each row begins with the cell of that column, and a comma after it."""
        return self.names[0] == name and self.delimiter == ","

    def unused(self, known: Sequence[str]) -> list[str]:
        """Notes on what is unusual: another delimiter, columns that nothing is made of."""
        notes = []
        if self.delimiter != ",":
            notes.append(f"columns separated by {DELIMITERS[self.delimiter]}")
        others = [f"'{shown(name)}'" for name in self.names if name and name not in known]
        if others:
            more = f" and {len(others) - _MOST_NAMED:,} more" if others[_MOST_NAMED:] else ""
            notes.append(f"columns not used: {', '.join(others[:_MOST_NAMED])}{more}")
        return notes


def header_of(text: bytes) -> Layout:
    """The columns that the first line with anything in it names, whatever separates them."""
    begin = len(text) - len(text.lstrip())
    begin = text.rfind(b"\n", 0, begin) + 1
    end = text.find(b"\n", begin)
    end = len(text) if end < 0 else end
    line = text[begin:end].decode(errors="replace").strip()
    delimiter = max(DELIMITERS, key=line.count)
    try:
        cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        cells = line.split(delimiter)
    names = [cell.strip() for cell in cells]
    while names and not names[-1]:  # rows need not go on with them
        names.pop()
    return Layout(names, delimiter, text.count(b"\n", 0, begin) + 1, min(end + 1, len(text)))


def layout_of(source: Source, required: Sequence[str]) -> Layout:
    """The columns of a file. Raises InputError where one of ``required`` is missing, misspelt or
    there twice.
    """
    found = header_of(source.text)

    def fault(problem: str, field: str, hint: str) -> InputError:
        field = shown(field)
        return InputError(problem, file=source.path, line=found.line, field=field, hint=hint)

    for place, name in enumerate(found.names):
        if name and name in found.names[:place]:
            raise fault("two columns have this name", name, "Remove one")
    missing = [name for name in required if name not in found.names]
    for name in found.names:
        if missing and name not in required and difflib.get_close_matches(name, missing, 1, 0.6):
            raise fault("unknown column", name, did_you_mean(name, missing))
    if missing:
        header = ",".join(required)
        raise fault("missing column", missing[0], f"The header must have {header}")
    return found


def rows_of(source: Source, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Line (its first, where a quoted cell goes over several) and cells of each row that is not
    blank, as many as the header has. Raises InputError for another number, and for open quotes.
    """
    # The module's own limit of 128 KiB a cell would refuse the prompts that some files hold.
    csv.field_size_limit(MAX_LINE)
    text = io.StringIO(source.text[layout.begin :].decode(), newline="\n")
    rows = csv.reader(text, delimiter=layout.delimiter, strict=True, skipinitialspace=True)
    names, line = layout.names, layout.line + 1
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            fault = str(error).replace("unexpected end of data", "a quote that is not closed")
            raise InputError(
                f"cannot be read as columns: {fault}", file=source.path, line=line,
                hint='Put a cell with a delimiter or a quote in it in "quotes", and double each "',
            ) from None  # fmt: skip
        if row is None:
            return
        if any(cell and not cell.isspace() for cell in row):
            yield line, cells_of(row, names, source, line)
        line = layout.line + 1 + rows.line_num


def cells_of(row: list[str], names: Sequence[str], source: Source, line: int) -> list[str]:
    """The cells of a row, one for each column; blank ones at its end do not count.

    Raises InputError for more or less of them.
    """
    cells = [cell.strip() for cell in row]
    while len(cells) > len(names) and not cells[-1]:
        cells.pop()
    if len(cells) == len(names):
        return cells
    short = len(cells) < len(names)
    hint = "is the file cut off?" if short else "write numbers without thousands separators"
    raise InputError(
        f"{len(cells)} columns instead of {len(names)}", file=source.path, line=line,
        field=shown(names[len(cells)]) if short else None,
        hint=f"Each row is {','.join(shown(name) for name in names[:_MOST_NAMED])}; {hint}",
    )  # fmt: skip


def number(cell: str) -> Decimal | None:
    """A number of 0 or more, without and with an exponent; None for anything else."""
    return Decimal(cell) if _NUMBER.fullmatch(cell) else None


def whole_number(cell: str, most: int) -> int | None:
    """A whole number of 0 to ``most`` in any of its spellings (``10``, ``10.0``, ``1e1``), None for
    anything else.
    """
    found = number(cell)
    # Compared before it is converted: 1e999 as an integer would have a thousand digits.
    if found is None or found > most or found != found.to_integral_value():
        return None
    return int(found)


def count_in(cell: str, column: str, least: int, most: int, source: Source, line: int) -> int:
    """The tokens that a cell says. Raises InputError that names column and line."""
    count = whole_number(cell, most)
    if count is None or count < least:
        grouped = _GROUPED.fullmatch(cell)
        hint = "Write it without separators" if grouped else "Correct or remove the row"
        raise InputError(
            f"must be a whole number of tokens, {least} to {most:,}, not '{shown(cell)}'",
            file=source.path, line=line, field=column, hint=hint,
        )  # fmt: skip
    return count
