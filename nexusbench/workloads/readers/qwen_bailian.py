"""Qwen-Bailian's traces: JSON lines of chats, with a hash id for each 16 prompt tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

import msgspec

from nexusbench.core.units import NS_PER_S
from nexusbench.workloads.base import MAX_HASH_ID, TraceRequest
from nexusbench.workloads.readers._jsonl import (
    RULES,
    HashIds,
    Tokens,
    check_hash_counts,
    last_timestamp,
    read_lines,
)
from nexusbench.workloads.readers.base import Parsed, Reader, Signature
from nexusbench.workloads.source import Source

HASH_BLOCK = 16
ROOT = -1  # parent_chat_id of a first turn
_MAX_SECONDS = 9_000_000_000

Seconds = (
    Annotated[int, msgspec.Meta(ge=0, le=_MAX_SECONDS)]
    | Annotated[float, msgspec.Meta(ge=0, le=_MAX_SECONDS)]
)
NoTokens = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


_RULES = {
    **RULES,
    "timestamp": f"a finite number of seconds, 0 to {_MAX_SECONDS:,}",
    "output_length": "a whole number of tokens, 0 or more",
    "chat_id": "a whole number",
    "parent_chat_id": f"a whole number, {ROOT} for a first turn",
    "type": "a text",
    "turn": "a whole number, 0 or more",
}


class QwenLine(msgspec.Struct, gc=False, forbid_unknown_fields=True, kw_only=True):
    """One turn of a chat; ``timestamp`` in seconds, lengths in tokens."""

    chat_id: int
    parent_chat_id: int = ROOT
    timestamp: Seconds
    input_length: Tokens
    output_length: NoTokens
    type: str = ""
    turn: Annotated[int, msgspec.Meta(ge=0)] = 1
    hash_ids: HashIds = ()


class QwenBailian(Reader):
    """Reads the published fields. The type of a chat becomes its tenant.

    A chat and what continues it become one session, each turn replayed at its own timestamp (open
    loop): the trace has the time of each turn, not the think time before it. A second continuation
    of the same chat begins a session of its own, as does one whose parent is not in the file. Rows
    without output are skipped and counted, rows out of order sorted.
    """

    # The field that only this format has.
    signature: ClassVar[Signature] = Signature(3, fields=("parent_chat_id",))
    time_field: ClassVar[str] = "timestamp"
    id_field: ClassVar[str] = "chat_id"
    tenant_field: ClassVar[str] = "type"
    unit: ClassVar[str] = "timestamps in s"
    example: ClassVar[str] = (
        '{"chat_id": 0, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 20, '
        '"output_length": 9, "type": "text", "turn": 1, "hash_ids": [0, 1]}'
    )
    source: ClassVar[str] = (
        "Qwen-Bailian anonymous usage traces (ATC 2025), Apache-2.0; "
        "github.com/alibaba-edu/qwen-bailian-usagetraces-anon"
    )

    def read(self, source: Source) -> Parsed:
        """All requests. Raises InputError that names file, line and field of the first fault."""
        rows, lines = read_lines(source, QwenLine, _RULES)
        order = sorted(range(len(rows)), key=lambda index: rows[index].timestamp)
        notes = (
            [] if order == list(range(len(rows))) else ["rows were not in order of time: sorted"]
        )
        free = _free_ids(rows)
        for row in rows:
            # Where only whole blocks have an id, the last, begun block gets an unused one.
            new = next(free)
            if len(row.hash_ids) == row.input_length // HASH_BLOCK and row.hash_ids:
                row.hash_ids = (*row.hash_ids, new)[: -(-row.input_length // HASH_BLOCK)]
        check_hash_counts(rows, lines, HASH_BLOCK, source.path)
        rows, lines = [rows[i] for i in order], [lines[i] for i in order]
        labels, more = _sessions(rows)
        requests: list[TraceRequest] = []
        kept: list[int] = []
        for row, line, (session, turn) in zip(rows, lines, labels, strict=True):
            if not row.output_length:
                continue
            requests.append(
                TraceRequest(
                    id=str(row.chat_id),
                    arrival_ns=_arrival_ns(row.timestamp),
                    prompt_tokens=row.input_length,
                    output_tokens=row.output_length,
                    hash_ids=row.hash_ids,
                    tenant=row.type,
                    session=session,
                    turn=turn,
                )
            )
            kept.append(line)
        if len(kept) < len(rows):
            notes.append(f"{len(rows) - len(kept):,} rows without output tokens skipped")
        return Parsed(requests, kept, HASH_BLOCK, [*more, *notes])

    def skim(self, piece: bytes, after: int) -> int | None:
        """Times in order; later chats change nothing of earlier ones."""
        last = last_timestamp(piece, after / NS_PER_S)
        return None if last is None else _arrival_ns(last)

    def clock(self, ns: int) -> str:
        """Seconds, as in the file."""
        return f"{ns / NS_PER_S:,.15g} s"


def _free_ids(rows: Sequence[QwenLine]) -> Iterator[int]:
    """Hash ids that no row has: those above all, or where 64 bits have none left, from 0 on."""
    above = max((max(row.hash_ids) for row in rows if row.hash_ids), default=-1) + 1
    if above + len(rows) <= MAX_HASH_ID:
        return itertools.count(above)
    used = {name for row in rows for name in row.hash_ids}
    return (name for name in itertools.count() if name not in used)


def _arrival_ns(seconds: float) -> int:
    """Seconds as whole nanoseconds; the whole part is exact however large it is."""
    whole = int(seconds)
    return whole * NS_PER_S + round((seconds - whole) * NS_PER_S)


def _sessions(rows: Sequence[QwenLine]) -> tuple[list[tuple[str, int]], list[str]]:
    """Session and turn of each row (from 0, rows that will be skipped left out), and notes."""
    labels: list[tuple[str, int]] = []
    open_end: dict[int, tuple[str, int]] = {}  # chats without a continuation so far
    lost = branches = 0
    known: set[int] = set()
    for row in rows:
        parent = open_end.pop(row.parent_chat_id, None)
        if parent is None and row.parent_chat_id != ROOT:
            lost += row.parent_chat_id not in known
            branches += row.parent_chat_id in known
        session, turn = parent if parent is not None else (str(row.chat_id), 0)
        labels.append((session, turn))
        known.add(row.chat_id)
        open_end[row.chat_id] = (session, turn + (row.output_length > 0))
    count = len({session for session, _ in labels})
    notes = [f"{count:,} sessions, replayed at their own timestamps (open loop)"]
    if branches:
        notes.append(f"{branches:,} turns branch off a chat that another turn goes on with")
    if lost:
        notes.append(f"{lost:,} turns go on with a chat that is not in the file")
    return labels, notes
