"""BurstGPT's traces: CSV with seconds since the first midnight; failures have no response."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from nexusbench.core.errors import InputError
from nexusbench.core.registry import did_you_mean
from nexusbench.core.units import NS_PER_S
from nexusbench.workloads.base import TraceRequest
from nexusbench.workloads.readers._jsonl import MAX_TOKENS
from nexusbench.workloads.readers.base import Parsed, Reader
from nexusbench.workloads.source import Source

COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")
LATER_COLUMNS = ("Session ID", "Elapsed time")  # of release 1.2
_HEADER = ",".join(COLUMNS)
_SECONDS = re.compile(r"(\d{1,9})(?:\.(\d{1,9})\d*)?", re.ASCII)
_COUNT = re.compile(r"\d{1,10}(?:\.0+)?", re.ASCII)


class Burstgpt(Reader):
    """Reads releases 1.0 to 1.2. The model becomes the tenant; a session ID of 1.2 becomes the
    session, whose turns are replayed at their own times (open loop).

    Rows without response tokens are failures, and rows without request tokens have nothing to
    compute: both are skipped and counted in a note. The first weeks are far quieter than the rest
    (a slice from the head is not this trace): the note on the span says what was read.
    """

    time_field: ClassVar[str] = "Timestamp"
    unit: ClassVar[str] = "timestamps in s from 0:00 of day 1"
    example: ClassVar[str] = _HEADER
    sample: ClassVar[str] = (
        f"{_HEADER}\n5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n"
    )
    source: ClassVar[str] = "BurstGPT (KDD 2025); github.com/HPMLL/BurstGPT, CC-BY-4.0"

    def confidence(self, text: bytes) -> int:
        """The first line names three of the columns, so that an error can name another."""
        header = text.split(b"\n", 1)[0]
        cells = [cell.strip() for cell in header.decode().lower().split(",")]
        return 2 if sum(column.lower() in cells for column in COLUMNS) >= 3 else 0

    def read(self, source: Source) -> Parsed:
        """All requests. Raises InputError that names file, line and column of the first fault."""
        rows = csv.reader(source.text.decode().splitlines())
        places = _places([cell.strip() for cell in next(rows)], source.path)
        requests: list[TraceRequest] = []
        lines: list[int] = []
        failed = empty = 0
        turns: dict[str, int] = {}
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            cells = {name: row[at].strip() if at < len(row) else "" for name, at in places.items()}
            line = rows.line_num
            arrival = _arrival_ns(cells, source.path, line)
            prompt = _tokens(cells, "Request tokens", source.path, line)
            output = _tokens(cells, "Response tokens", source.path, line)
            if not output or not prompt:
                failed, empty = failed + (not output), empty + (output > 0)
                continue
            session = cells.get("Session ID", "")
            turn = turns.get(session, 0)
            if session:
                turns[session] = turn + 1
            # The id is the row's position in the file, so that skipping does not rename the rest.
            requests.append(
                TraceRequest(
                    id=str(line - 2), arrival_ns=arrival, prompt_tokens=prompt,
                    output_tokens=output, tenant=cells["Model"], session=session, turn=turn,
                )
            )  # fmt: skip
            lines.append(line)
        return Parsed(requests, lines, notes=_notes(failed, empty, len(turns)))

    def clock(self, ns: int) -> str:
        """Seconds, as in the file."""
        return f"{ns / NS_PER_S:,.15g} s"


def _notes(failed: int, empty: int, sessions: int) -> list[str]:
    notes = []
    if failed:
        notes.append(f"{failed:,} rows without response tokens (failures) skipped")
    if empty:
        notes.append(f"{empty:,} rows without request tokens skipped")
    if sessions:
        notes.append(f"{sessions:,} sessions, replayed at their own timestamps (open loop)")
    return notes


def _places(header: list[str], path: Path) -> dict[str, int]:
    """Column -> position. Raises InputError for an unknown, repeated or missing column."""

    def fault(problem: str, field: str, hint: str) -> InputError:
        return InputError(problem, file=path, line=1, field=field, hint=hint)

    known = [*COLUMNS, *LATER_COLUMNS]
    for position, cell in enumerate(header):
        if cell not in known:
            raise fault("unknown column", cell, did_you_mean(cell, known))
        if cell in header[:position]:
            raise fault("two columns have this name", cell, "Remove one")
    for column in COLUMNS:
        if column not in header:
            raise fault("missing column", column, f"The header must have {_HEADER}")
    return {cell: position for position, cell in enumerate(header)}


def _arrival_ns(cells: Mapping[str, str], path: Path, line: int) -> int:
    match = _SECONDS.fullmatch(cells["Timestamp"])
    if match is None:
        raise InputError(
            f"'{cells['Timestamp'][:40]}' is no number of seconds, 0 or more",
            file=path, line=line, field="Timestamp", hint="Correct or remove the row",
        )  # fmt: skip
    fraction = (match[2] or "").ljust(9, "0")
    return int(match[1]) * NS_PER_S + int(fraction)


def _tokens(cells: Mapping[str, str], column: str, path: Path, line: int) -> int:
    cell = cells[column]
    count = int(float(cell)) if _COUNT.fullmatch(cell) else -1
    if not 0 <= count <= MAX_TOKENS:
        raise InputError(
            f"must be a whole number of tokens, 0 to {MAX_TOKENS:,}, not '{cell[:40]}'",
            file=path, line=line, field=column, hint="Correct or remove the row",
        )  # fmt: skip
    return count
