"""Azure's LLM inference traces of 2023 and 2024: CSV with wall-clock times."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import ClassVar

from nexusbench.core.errors import InputError
from nexusbench.core.units import NS_PER_S
from nexusbench.workloads.base import MAX_TOKENS, TraceRequest
from nexusbench.workloads.readers._csv import (
    Layout,
    cells_of,
    count_in,
    layout_of,
    rows_of,
)
from nexusbench.workloads.readers.base import Parsed, Reader, Signature
from nexusbench.workloads.source import Source, shown

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_HEADER = ",".join(COLUMNS)
_EPOCH = datetime(1970, 1, 1)

# 2023 writes seven fraction digits, 2024 six or none and an offset from UTC. Digits beyond the
# ninth are below a nanosecond.
_OFFSET = r"(?:UTC|Z|[+-]\d\d(?::?\d\d)?)"
_TIME = re.compile(
    rf"(\d{{4}}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{{1,9}})\d*)?(?: ?({_OFFSET}))?", re.ASCII
)
_ROW = re.compile(_TIME.pattern + r",(\d{1,10}),(\d{1,10})\r?\n?", re.ASCII)
_DATE, _CLOCK = r"\d{4}-\d\d-\d\d", r"\d\d:\d\d:\d\d"
_START = re.compile(rf"{_DATE}([ T]){_CLOCK}(?:\.\d+)?((?: ?{_OFFSET})?),".encode())

Row = tuple[int, int, int, int]  # line, arrival in ns, prompt and output tokens


class Azure(Reader):
    """Reads Azure's CSV. Times without an offset count as UTC.

    Rows with no generated token (a production service logs requests that fail or are filtered
    before their first token) have nothing to serve: they are skipped, and counted in a note.
    """

    signature: ClassVar[Signature] = Signature(2, columns=COLUMNS, at_least=2)
    time_field: ClassVar[str] = "TIMESTAMP"
    unit: ClassVar[str] = "wall-clock timestamps"
    example: ClassVar[str] = _HEADER
    sample: ClassVar[str] = (
        f"{_HEADER}\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    )
    source: ClassVar[str] = (
        "Azure Public Dataset, CC-BY-4.0 (Splitwise ISCA 2024, DynamoLLM HPCA 2025)"
    )

    _time_first = True  # in the rows of the file that was read

    def read(self, source: Source) -> Parsed:
        """All requests. Raises InputError that names file, line and field of the first fault."""
        layout = layout_of(source, COLUMNS)
        self._time_first = layout.begins_with(COLUMNS[0])
        plain = layout.names == list(COLUMNS) and layout.delimiter == ","
        rows = _plain_rows if plain and b'"' not in source.text else _rows
        requests: list[TraceRequest] = []
        lines: list[int] = []
        skipped = 0
        for line, arrival, prompt, output in rows(source, layout):
            if not output:
                skipped += 1
                continue
            # The id is the row's position in the file, so that skipping does not rename the rest.
            requests.append(TraceRequest(str(line - layout.line - 1), arrival, prompt, output))
            lines.append(line)
        notes = [f"{skipped:,} rows without a generated token skipped"] if skipped else []
        return Parsed(requests, lines, notes=[*layout.unused(COLUMNS), *notes])

    def skim(self, piece: bytes, after: int) -> int | None:
        """Times in order: as texts, which is the same where all are written alike."""
        first = _START.match(piece)
        if first is None or not self._time_first:
            return None
        separator, offset = first[1].decode(), re.escape(first[2].decode())
        # Without the offset: Z would come after any digit.
        alike = rf"^({_DATE}{separator}{_CLOCK}(?:\.\d+)?){offset},"
        times = re.findall(alike.encode(), piece, re.MULTILINE)
        if len(times) != piece.count(b"\n") + (piece[-1:] != b"\n") or times != sorted(times):
            return None
        begin, end = (_time_of((time + first[2]).decode()) for time in (times[0], times[-1]))
        return end if begin is not None and end is not None and after <= begin else None

    def clock(self, ns: int) -> str:
        """Date and time in UTC, with all digits."""
        whole, fraction = divmod(ns, NS_PER_S)
        date = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%d %H:%M:%S")
        return f"{date}.{fraction:09d} UTC"


def _plain_rows(source: Source, layout: Layout) -> Iterator[Row]:
    """Line, arrival, prompt and output tokens of each row of the published form, at full speed."""
    match = _ROW.fullmatch
    text = io.StringIO(source.text[layout.begin :].decode(), newline="\n")
    for line, row in enumerate(text, layout.line + 1):
        parts = match(row)
        if parts is None:
            if not row.isspace():
                yield _row(cells_of(row.split(","), COLUMNS, source, line), source, line)
            continue
        time, fraction, offset, prompt, output = parts.groups()
        found = int(prompt), int(output)
        try:
            arrival = _arrival_ns(time, fraction, offset)
        except ValueError:
            arrival = -1
        if arrival < 0 or not 1 <= found[0] <= MAX_TOKENS or found[1] > MAX_TOKENS:
            yield _row(row.strip().split(","), source, line)
        else:
            yield (line, arrival, *found)


def _rows(source: Source, layout: Layout) -> Iterator[Row]:
    """The same of a file with quotes, other columns or another delimiter."""
    places = [layout.places[column] for column in COLUMNS]
    for line, cells in rows_of(source, layout):
        yield _row([cells[place] for place in places], source, line)


def _row(cells: Sequence[str], source: Source, line: int) -> Row:
    """A row of any spelling. Raises InputError that names the column."""
    arrival = _time_of(cells[0])
    if arrival is None:
        raise InputError(
            f"'{shown(cells[0])}' is no time since 1970", file=source.path, line=line,
            field=COLUMNS[0], hint="Write it as 2023-11-16 18:15:46.6805900",
        )  # fmt: skip
    output = count_in(cells[2], COLUMNS[2], 0, MAX_TOKENS, source, line)
    # A request that failed before its first token may have no prompt in the log either.
    prompt = count_in(cells[1], COLUMNS[1], 1 if output else 0, MAX_TOKENS, source, line)
    return line, arrival, prompt, output


def _time_of(cell: str) -> int | None:
    """Nanoseconds since 1970, None for what is no time or one before that."""
    parts = _TIME.fullmatch(cell)
    try:
        arrival = -1 if parts is None else _arrival_ns(*parts.groups())
    except ValueError:
        return None
    return arrival if arrival >= 0 else None


def _arrival_ns(time: str, fraction: str | None, offset: str | None) -> int:
    """Nanoseconds since 1970. Raises ValueError for a date that does not exist."""
    since = datetime.fromisoformat(time) - _EPOCH
    whole = since.days * 86_400 + since.seconds
    if offset is not None and offset[0] in "+-":
        hours, minutes = int(offset[1:3]), int(offset[3:].lstrip(":") or 0)
        if hours > 23 or minutes > 59:
            raise ValueError(offset)
        whole -= (hours * 3600 + minutes * 60) * (-1 if offset[0] == "-" else 1)
    return whole * NS_PER_S + (int(fraction.ljust(9, "0")) if fraction else 0)
