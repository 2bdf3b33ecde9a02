"""Sessions of a native trace: which turn follows which, and what a file may not say about that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.workloads.base import TraceRequest
from nexusbench.workloads.readers._jsonl import RULES

Fault = Callable[[str, str, str], InputError]


class Turn(msgspec.Struct, gc=False):
    """What a line says about its time; None where it does not."""

    timestamp: float | None
    session: str | None
    turn: int | None
    think_time: float | None


def arrange(
    requests: list[TraceRequest],
    turns: Sequence[Turn],
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


def _check_labels(turn: Turn, before: TraceRequest | None, fault: Fault) -> None:
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


def _check_times(turn: Turn, before: TraceRequest | None, fault: Fault, *, closed: bool) -> None:
    """Who has a timestamp, and who must not."""
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
