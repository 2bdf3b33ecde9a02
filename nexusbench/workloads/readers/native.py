"""Our own format: JSON lines with Mooncake's fields, plus identity, tenant and hash block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.workloads.base import TraceRequest
from nexusbench.workloads.readers._jsonl import (
    HashIds,
    Identity,
    Milliseconds,
    Tokens,
    arrival_ns,
    check_hash_counts,
    is_jsonl,
    read_lines,
)
from nexusbench.workloads.readers.base import Parsed, Reader
from nexusbench.workloads.source import Source

DEFAULT_HASH_BLOCK = 512


class Line(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One request; ``timestamp`` in ms, lengths in tokens."""

    timestamp: Milliseconds
    input_length: Tokens
    output_length: Tokens
    hash_ids: HashIds = ()
    hash_block: Tokens | None = None
    id: Identity | None = None
    tenant: str = ""


class Native(Reader):
    """Reads nexusbench's own JSON lines.

    ``hash_block`` (prompt tokens per hash id) belongs to the file: it stands on one line or on all,
    with one value. ``id`` stands on all lines or on none (then it is the position, from 0).
    """

    time_field: ClassVar[str] = "timestamp"
    unit: ClassVar[str] = "timestamps in ms"
    example: ClassVar[str] = '{"timestamp": 0, "input_length": 1, "output_length": 1}'

    def confidence(self, text: bytes) -> int:
        """Any JSON lines that no other reader knows better."""
        return 1 if is_jsonl(text) else 0

    def read(self, source: Source) -> Parsed:
        """All requests. Raises InputError that names file, line and field of the first fault."""
        rows, lines = read_lines(source, Line)
        block = _hash_block(rows, lines, source)
        if block:
            check_hash_counts(rows, lines, block, source.path)
        _check_ids(rows, lines, source)
        requests = [
            TraceRequest(
                id=str(index if row.id is None else row.id),
                arrival_ns=arrival_ns(row.timestamp),
                prompt_tokens=row.input_length,
                output_tokens=row.output_length,
                hash_ids=row.hash_ids,
                tenant=row.tenant,
            )
            for index, row in enumerate(rows)
        ]
        return Parsed(requests, lines, block or DEFAULT_HASH_BLOCK)


def _hash_block(rows: Sequence[Line], lines: Sequence[int], source: Source) -> int | None:
    """The file's hash block, None if there are no hash ids. Raises InputError for two, or none."""
    block: int | None = None
    said = 0
    hashed: int | None = None
    for row, line in zip(rows, lines, strict=True):
        if hashed is None and row.hash_ids:
            hashed = line
        if row.hash_block is None or row.hash_block == block:
            continue
        if block is not None:
            raise InputError(
                f"is {row.hash_block}, but line {said} says {block}",
                file=source.path,
                line=line,
                field="hash_block",
                hint="A trace has one hash block; split the file or hash it again",
            )
        block, said = row.hash_block, line
    if hashed is not None and block is None:
        raise InputError(
            "missing, but there are hash_ids",
            file=source.path,
            line=hashed,
            field="hash_block",
            hint='Say how many tokens an id stands for on the first line, e.g. "hash_block": 512',
        )
    return block


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
