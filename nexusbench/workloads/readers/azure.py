"""Azure's LLM inference traces of 2023 and 2024: CSV with wall-clock times."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from nexusbench.core.errors import InputError
from nexusbench.core.registry import did_you_mean
from nexusbench.core.units import NS_PER_S
from nexusbench.workloads.base import TraceRequest
from nexusbench.workloads.readers._jsonl import MAX_TOKENS
from nexusbench.workloads.readers.base import Parsed, Reader
from nexusbench.workloads.source import Source

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_HEADER = ",".join(COLUMNS)
_EPOCH = datetime(1970, 1, 1)

# 2023 writes seven fraction digits, 2024 six or none and an offset from UTC.
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII
)
_ROW = re.compile(_TIME.pattern + r",(\d{1,10}),(\d{1,10})\r?", re.ASCII)
_COUNT = re.compile(r"\d{1,10}", re.ASCII)


class Azure(Reader):
    """Reads Azure's CSV. Times without an offset count as UTC.

    Rows with no generated token (a production service logs requests that fail or are filtered
    before their first token) have nothing to serve: they are skipped, and counted in a note.
    """

    time_field: ClassVar[str] = "TIMESTAMP"
    unit: ClassVar[str] = "wall-clock timestamps"
    example: ClassVar[str] = _HEADER
    sample: ClassVar[str] = (
        f"{_HEADER}\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    )
    source: ClassVar[str] = (
        "Azure Public Dataset, CC-BY-4.0 (Splitwise ISCA 2024, DynamoLLM HPCA 2025)"
    )

    def confidence(self, text: bytes) -> int:
        """The first line names two of the columns, so that an error can name the third."""
        header = text[: max(0, text.find(b"\n"))] or text
        cells = [cell.strip() for cell in header.decode().lower().split(",")]
        return 2 if sum(column.lower() in cells for column in COLUMNS) >= 2 else 0

    def read(self, source: Source) -> Parsed:
        """All requests. Raises InputError that names file, line and field of the first fault."""
        rows = source.text.decode().split("\n")
        _check_header(rows[0].strip(), source.path)
        match = _ROW.fullmatch
        requests: list[TraceRequest] = []
        lines: list[int] = []
        skipped = 0
        for line, row in enumerate(rows[1:], 2):
            parts = match(row)
            if parts is None:
                if not row.strip():
                    continue
                raise _explain(row.strip(), source.path, line)
            time, fraction, offset, prompt, output = parts.groups()
            prompt_tokens, output_tokens = int(prompt), int(output)
            if not output_tokens:
                skipped += 1
                continue
            try:
                arrival = _arrival_ns(time, fraction, offset)
            except ValueError:
                raise _explain(row.strip(), source.path, line) from None
            if not 1 <= prompt_tokens <= MAX_TOKENS or output_tokens > MAX_TOKENS:
                raise _explain(row.strip(), source.path, line)
            # The id is the row's position in the file, so that skipping does not rename the rest.
            requests.append(TraceRequest(str(line - 2), arrival, prompt_tokens, output_tokens))
            lines.append(line)
        notes = [f"{skipped:,} rows without a generated token skipped"] if skipped else []
        return Parsed(requests, lines, notes=notes)

    def clock(self, ns: int) -> str:
        """Date and time in UTC, with all digits."""
        whole, fraction = divmod(ns, NS_PER_S)
        date = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%d %H:%M:%S")
        return f"{date}.{fraction:09d} UTC"


def _arrival_ns(time: str, fraction: str | None, offset: str | None) -> int:
    """Nanoseconds since 1970. Raises ValueError for a date that does not exist."""
    since = datetime.fromisoformat(time) - _EPOCH
    whole = since.days * 86_400 + since.seconds
    if offset is not None and offset != "Z":
        hours, minutes = int(offset[1:3]), int(offset[4:6])
        if hours > 23 or minutes > 59:
            raise ValueError(offset)
        whole -= (hours * 3600 + minutes * 60) * (-1 if offset[0] == "-" else 1)
    return whole * NS_PER_S + (int(fraction.ljust(9, "0")) if fraction else 0)


def _check_header(header: str, path: Path) -> None:
    cells = [cell.strip() for cell in header.split(",")]
    known = list(COLUMNS)

    def fault(problem: str, field: str, hint: str) -> InputError:
        return InputError(problem, file=path, line=1, field=field, hint=hint)

    for cell in cells:
        if cell not in known:
            raise fault("unknown column", cell, did_you_mean(cell, known))
    for column in known:
        if column not in cells:
            raise fault("missing column", column, f"The header must be {_HEADER}")
    if cells != known:
        raise fault("columns in another order", cells[0], f"The header must be {_HEADER}")


def _explain(row: str, path: Path, line: int) -> InputError:
    """The error of a row that is not right: which column, and what it should be."""

    def fault(problem: str, field: str | None, hint: str) -> InputError:
        return InputError(problem, file=path, line=line, field=field, hint=hint)

    cells = row.split(",")
    if len(cells) != len(COLUMNS):
        missing = COLUMNS[len(cells)] if len(cells) < len(COLUMNS) else None
        return fault(
            f"{len(cells)} columns instead of {len(COLUMNS)}",
            missing,
            f"Each row is {_HEADER}; is the file cut off?",
        )
    time = _TIME.fullmatch(cells[0])
    try:
        if time is None:
            raise ValueError(cells[0])
        _arrival_ns(*time.groups())
    except ValueError:
        return fault(
            f"'{cells[0][:40]}' is no time", COLUMNS[0], "Write it as 2023-11-16 18:15:46.6805900"
        )
    for column, cell, least in zip(COLUMNS[1:], cells[1:], (1, 0), strict=True):
        if not _COUNT.fullmatch(cell) or not least <= int(cell) <= MAX_TOKENS:
            return fault(
                f"must be a whole number of tokens, {least} to {MAX_TOKENS:,}, not '{cell[:40]}'",
                column,
                "Correct or remove the row",
            )
    return fault("cannot be read", None, f"Each row is {_HEADER}")
