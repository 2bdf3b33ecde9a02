"""Our own format: JSON lines with Mooncake's fields, plus identity, sessions and patience."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.units import NS_PER_MS
from nexusbench.workloads.base import TokenIds, TraceRequest
from nexusbench.workloads.readers._jsonl import (
    Duration,
    HashIds,
    Identity,
    Milliseconds,
    Tokens,
    arrival_ns,
    check_hash_counts,
    is_jsonl,
    last_timestamp,
    read_lines,
)
from nexusbench.workloads.readers._sessions import Turn, arrange
from nexusbench.workloads.readers._tokens import check_token_ids
from nexusbench.workloads.readers.base import Parsed, Reader
from nexusbench.workloads.source import Source

DEFAULT_HASH_BLOCK = 512
# What may stand on any line and then holds for all, or makes a line one of another format.
_OF_FILE = (b'"concurrency"', b'"parent_chat_id"')


class Line(msgspec.Struct, gc=False, forbid_unknown_fields=True, kw_only=True):
    """One request; times in ms, lengths in tokens."""

    timestamp: Milliseconds | None = None
    input_length: Tokens
    output_length: Tokens
    hash_ids: HashIds = ()
    hash_block: Tokens | None = None
    token_ids: TokenIds | None = None
    id: Identity | None = None
    tenant: str = ""
    session: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    turn: Annotated[int, msgspec.Meta(ge=0)] | None = None
    think_time: Milliseconds | None = None
    timeout: Duration | None = None
    cancel_after: Duration | None = None
    concurrency: Tokens | None = None


class Native(Reader):
    """Reads nexusbench's own JSON lines.

    ``hash_block`` (prompt tokens per hash id) and ``concurrency`` (users of a closed loop) belong
    to the file: each stands on one line or on several, with one value. ``id`` stands on all lines
    or on none (then it is the position, from 0). docs/workloads.md tells the rest.
    """

    time_field: ClassVar[str] = "timestamp"
    unit: ClassVar[str] = "timestamps in ms"
    example: ClassVar[str] = '{"timestamp": 0, "input_length": 1, "output_length": 1}'
    source: ClassVar[str] = "docs/workloads.md"

    def confidence(self, text: bytes) -> int:
        """Any JSON lines that no other reader knows better."""
        return 1 if is_jsonl(text) else 0

    def read(self, source: Source) -> Parsed:
        """All requests. Raises InputError that names file, line and field of the first fault."""
        rows, lines = read_lines(source, Line)
        block = _of_file("hash_block", rows, lines, source)
        concurrency = _of_file("concurrency", rows, lines, source)
        _check_hashes(rows, lines, block, source)
        check_token_ids(rows, lines, block, source.path)
        _check_ids(rows, lines, source)
        turns = [Turn(row.timestamp, row.session, row.turn, row.think_time) for row in rows]
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
        """Times of every line in order, and nothing said of the whole file."""
        if any(key in piece for key in _OF_FILE):
            return None
        last = last_timestamp(piece, after / NS_PER_MS)
        return None if last is None else arrival_ns(last)


def _of_file(field: str, rows: Sequence[Line], lines: Sequence[int], source: Source) -> int | None:
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
    rows: Sequence[Line], lines: Sequence[int], block: int | None, source: Source
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


def _check_ids(rows: Sequence[Line], lines: Sequence[int], source: Source) -> None:
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
