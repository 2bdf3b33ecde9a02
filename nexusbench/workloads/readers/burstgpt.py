"""BurstGPT's traces: CSV with seconds since the first midnight; failures have no response."""

from __future__ import annotations

import io
import re
from typing import ClassVar

from nexusbench.core.errors import InputError
from nexusbench.core.units import NS_PER_S
from nexusbench.workloads.base import MAX_TOKENS, TraceRequest
from nexusbench.workloads.readers._csv import (
    count_in,
    layout_of,
    number,
    rows_of,
)
from nexusbench.workloads.readers.base import Parsed, Reader, Signature
from nexusbench.workloads.source import Source, shown

COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")
LATER_COLUMNS = ("Session ID", "Elapsed time")  # of release 1.2
_HEADER = ",".join(COLUMNS)
_SECONDS = re.compile(r"(\d{1,9})(?:\.(\d{1,9})\d*)?", re.ASCII)
_MAX_SECONDS = 999_999_999
_USED = ("Timestamp", "Model", "Request tokens", "Response tokens")


class Burstgpt(Reader):
    """Reads releases 1.0 to 1.2. The model becomes the tenant; a session ID of 1.2 becomes the
    session, whose turns are replayed at their own times (open loop).

    Rows without response tokens are failures, and rows without request tokens have nothing to
    compute: both are skipped and counted in a note. The first weeks are far quieter than the rest
    (a slice from the head is not this trace): the note on the span says what was read.
    """

    signature: ClassVar[Signature] = Signature(2, columns=COLUMNS, at_least=3)
    time_field: ClassVar[str] = "Timestamp"
    tenant_field: ClassVar[str] = "Model"
    session_field: ClassVar[str] = "Session ID"
    unit: ClassVar[str] = "timestamps in s from 0:00 of day 1"
    example: ClassVar[str] = _HEADER
    sample: ClassVar[str] = (
        f"{_HEADER}\n5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n"
    )
    source: ClassVar[str] = "BurstGPT (KDD 2025); github.com/HPMLL/BurstGPT, CC-BY-4.0"

    _time_first = True  # in the rows of the file that was read

    def read(self, source: Source) -> Parsed:
        """All requests. Raises InputError that names file, line and column of the first fault."""
        layout = layout_of(source, COLUMNS)
        self._time_first = layout.begins_with("Timestamp")
        time, model, prompts, outputs = (layout.places[name] for name in _USED)
        session_place = layout.places.get("Session ID", -1)
        requests: list[TraceRequest] = []
        lines: list[int] = []
        failed = empty = 0
        turns: dict[str, int] = {}
        for line, cells in rows_of(source, layout):
            arrival = _arrival_ns(cells[time])
            if arrival is None:
                raise InputError(
                    f"'{shown(cells[time])}' is no number of seconds, 0 or more",
                    file=source.path, line=line, field="Timestamp",
                    hint="Correct or remove the row",
                )  # fmt: skip
            prompt = count_in(cells[prompts], "Request tokens", 0, MAX_TOKENS, source, line)
            output = count_in(cells[outputs], "Response tokens", 0, MAX_TOKENS, source, line)
            if not output or not prompt:
                failed, empty = failed + (not output), empty + (output > 0)
                continue
            session = cells[session_place] if session_place >= 0 else ""
            turn = turns.get(session, 0)
            if session:
                turns[session] = turn + 1
            # The id is the row's position in the file, so that skipping does not rename the rest.
            requests.append(
                TraceRequest(
                    id=str(line - layout.line - 1), arrival_ns=arrival, prompt_tokens=prompt,
                    output_tokens=output, tenant=cells[model], session=session, turn=turn,
                )
            )  # fmt: skip
            lines.append(line)
        unused = layout.unused([*COLUMNS, *LATER_COLUMNS])
        return Parsed(requests, lines, notes=[*unused, *_notes(failed, empty, len(turns))])

    def skim(self, piece: bytes, after: int) -> int | None:
        """Times of rows that begin with one, in order; where cells are quoted, unknown."""
        if b'"' in piece or not self._time_first:
            return None
        for row in io.StringIO(piece.decode(), newline="\n"):
            if row.isspace():
                continue
            time = _arrival_ns(row.partition(",")[0].strip())
            if time is None or time < after:
                return None
            after = time
        return after

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


def _arrival_ns(cell: str) -> int | None:
    """Nanoseconds of a number of seconds, to the ninth digit; None for anything else."""
    match = _SECONDS.fullmatch(cell)
    if match is None:
        seconds = number(cell)
        if seconds is None or seconds > _MAX_SECONDS:
            return None
        return int(seconds.scaleb(9))
    return int(match[1]) * NS_PER_S + int((match[2] or "").ljust(9, "0"))
