"""Our own trace format: JSON lines with all fields that a run can use, sessions among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.units import NS_PER_MS
from nexusbench.workloads.base import TokenIds, TraceRequest
from nexusbench.workloads.readers._jsonl import (
    RULES,
    Duration,
    HashIds,
    Identity,
    Milliseconds,
    Tokens,
    arrival_ns,
    check_hash_counts,
    check_token_ids,
    last_timestamp,
    read_lines,
)
from nexusbench.workloads.readers.base import Parsed, Reader, Signature
from nexusbench.workloads.source import Source

DEFAULT_HASH_BLOCK = 512
# Fields that hold for the whole file, or belong to another format, on whichever line they are.
_OF_FILE = (b'"concurrency"', b'"parent_chat_id"')


class NativeLine(
    msgspec.Struct, gc=False, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """One request; times in ms, lengths in tokens."""

    timestamp: Milliseconds | None = None
    input_length: Tokens
    output_length: Tokens
    hash_ids: HashIds = ()
    hash_block: Tokens | None = None
    token_ids: TokenIds | None = None
    id: Identity | None = None
    tenant: str = ""
    concurrency: Tokens | None = None
    session: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    turn: Annotated[int, msgspec.Meta(ge=0)] | None = None
    think_time: Milliseconds | None = None
    timeout: Duration | None = None
    cancel_after: Duration | None = None


class Native(Reader):
    """Reads nexusbench's own JSON lines.

    ``hash_block`` (prompt tokens per hash id) and ``concurrency`` (users of a closed loop) belong
    to the file: each stands on one line or on several, with one value. ``id`` stands on all lines
    or on none (then it is the position, from 0). docs/workloads.md has the other fields.
    """

    # Any JSON lines without a signature of another format.
    signature: ClassVar[Signature] = Signature(1)
    time_field: ClassVar[str] = "timestamp"
    unit: ClassVar[str] = "timestamps in ms"
    example: ClassVar[str] = '{"timestamp": 0, "input_length": 1, "output_length": 1}'
    source: ClassVar[str] = "docs/workloads.md"

    def read(self, source: Source) -> Parsed:
        """All requests. Raises InputError that names file, line and field of the first fault."""
        rows, lines = read_lines(source, NativeLine)
        block = _of_file("hash_block", rows, lines, source)
        concurrency = _of_file("concurrency", rows, lines, source)
        _check_hashes(rows, lines, block, source)
        check_token_ids(rows, lines, block, source.path)
        _check_ids(rows, lines, source)
        turns = [TurnTiming(row.timestamp, row.session, row.turn, row.think_time) for row in rows]
        requests = [
            TraceRequest(
                id=str(index if row.id is None else row.id),
                arrival_ns=arrival_ns(row.timestamp or 0),
                prompt_tokens=row.input_length,
                output_tokens=row.output_length,
                hash_ids=row.hash_ids,
                tenant=row.tenant,
                session=row.session or "",
                turn=row.turn or 0,
                think_ns=arrival_ns(row.think_time or 0),
                timeout_ns=arrival_ns(row.timeout or 0),
                cancel_after_ns=arrival_ns(row.cancel_after or 0),
                token_ids=row.token_ids,
                line=0 if row.token_ids is None else line,
            )
            for index, (row, line) in enumerate(zip(rows, lines, strict=True))
        ]
        notes = arrange(requests, turns, lines, source.path, closed=concurrency is not None)
        return Parsed(requests, lines, block or DEFAULT_HASH_BLOCK, notes, concurrency or 0)

    def skim(self, piece: bytes, after: int) -> int | None:
        """Times in order, and no field that holds for the whole file."""
        if any(key in piece for key in _OF_FILE):
            return None
        last = last_timestamp(piece, after / NS_PER_MS)
        return None if last is None else arrival_ns(last)


def _of_file(
    field: str, rows: Sequence[NativeLine], lines: Sequence[int], source: Source
) -> int | None:
    """The one value of a field that belongs to the file, None if absent. Raises InputError for
    two.
    """
    value: int | None = None
    said = 0
    for row, line in zip(rows, lines, strict=True):
        here: int | None = getattr(row, field)
        if here is None or here == value:
            continue
        if value is not None:
            raise InputError(
                f"is {here}, but line {said} says {value}",
                file=source.path,
                line=line,
                field=field,
                hint=f"A trace has one {field.replace('_', ' ')}; split the file",
            )
        value, said = here, line
    return value


def _check_hashes(
    rows: Sequence[NativeLine], lines: Sequence[int], block: int | None, source: Source
) -> None:
    """Raises InputError for hash ids of unknown block, or not one for each block of the prompt."""
    if block:
        check_hash_counts(rows, lines, block, source.path)
        return
    for row, line in zip(rows, lines, strict=True):
        if row.hash_ids:
            raise InputError(
                "missing, but there are hash_ids",
                file=source.path,
                line=line,
                field="hash_block",
                hint="Say how many tokens an id stands for on the first line, e.g. "
                '"hash_block": 512',
            )


def _check_ids(rows: Sequence[NativeLine], lines: Sequence[int], source: Source) -> None:
    for row, line in zip(rows, lines, strict=True):
        if (row.id is None) != (rows[0].id is None):
            here, there = ("missing", "has one") if row.id is None else ("given", "has none")
            raise InputError(
                f"{here}, but line {lines[0]} {there}",
                file=source.path,
                line=line,
                field="id",
                hint="Give every line an id, or none",
            )


Fault = Callable[[str, str, str], InputError]


class TurnTiming(msgspec.Struct, gc=False):
    """The fields of a line about time and session; None where absent."""

    timestamp: float | None
    session: str | None
    turn: int | None
    think_time: float | None


def arrange(
    requests: list[TraceRequest],
    turns: Sequence[TurnTiming],
    lines: Sequence[int],
    path: Path,
    *,
    closed: bool,
) -> list[str]:
    """Check times and turns line by line, set ``follows`` and the arrivals of what follows.

    A later turn without a timestamp follows the turn before; one with a timestamp arrives at that
    time, whatever became of the turn before. A session does the one or the other throughout.
    ``closed``: the file has a ``concurrency``, so nothing has a time. Returns notes. Raises
    InputError that names line and field.
    """
    last: dict[str, TraceRequest] = {}
    for request, turn, line in zip(requests, turns, lines, strict=True):
        before = last.get(request.session) if request.session else None

        def fault(problem: str, field: str, hint: str, line: int = line) -> InputError:
            return InputError(problem, file=path, line=line, field=field, hint=hint)

        _check_labels(turn, before, fault)
        _check_times(turn, before, fault, closed=closed)
        if before is not None and (closed or turn.timestamp is None):
            request.follows = True
            request.arrival_ns = before.arrival_ns
        elif turn.think_time is not None:
            hint = "Leave out the one or the other"
            raise fault("only for a later turn without a timestamp", "think_time", hint)
        if request.session:
            last[request.session] = request
    return _notes(requests, len(last))


def _check_labels(turn: TurnTiming, before: TraceRequest | None, fault: Fault) -> None:
    """A session's turns are 0, 1, 2 ... in the order of the file."""
    if turn.session is None:
        for field, value in (("turn", turn.turn), ("think_time", turn.think_time)):
            if value is not None:
                raise fault("given, but there is no session", field, "Name the session")
        return
    if turn.turn is None:
        raise fault("missing, but there is a session", "turn", f"It must be {RULES['turn']}")
    expected = 0 if before is None else before.turn + 1
    if turn.turn != expected:
        raise fault(
            f"is {turn.turn}, but the session's next turn in the file is {expected}", "turn",
            "Turns count 0, 1, 2 ... in the order of the lines",
        )  # fmt: skip


def _check_times(
    turn: TurnTiming, before: TraceRequest | None, fault: Fault, *, closed: bool
) -> None:
    """Check which turns have a timestamp."""
    timed = turn.timestamp is not None
    if closed:
        if turn.timestamp:
            hint = "In a closed loop a request arrives when a user is free; leave it out"
            raise fault("given, but the file has a concurrency", "timestamp", hint)
    elif before is None and not timed:
        raise fault("missing", "timestamp", f"It must be {RULES['timestamp']}")
    elif before is not None and before.turn and timed == before.follows:
        here, there = ("given", "none") if timed else ("missing", "one")
        raise fault(
            f"{here}, but turn {before.turn} of the session has {there}", "timestamp",
            "All later turns of a session have a timestamp, or none has",
        )  # fmt: skip


def _notes(requests: Sequence[TraceRequest], sessions: int) -> list[str]:
    if not sessions:
        return []
    waiting = sum(request.follows for request in requests)
    labelled = sum(request.turn > 0 for request in requests) - waiting
    notes = [f"{sessions:,} sessions"]
    if waiting:
        notes.append(f"{waiting:,} later turns arrive when the turn before has ended")
    if labelled:
        notes.append(f"{labelled:,} later turns are replayed at their own timestamps (open loop)")
    return [", ".join(notes)]
