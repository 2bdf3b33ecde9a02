"""Mooncake's published traces (FAST 2025): JSON lines with a hash id for each 512 prompt tokens."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.units import NS_PER_MS
from nexusbench.workloads.base import TraceRequest
from nexusbench.workloads.readers._jsonl import (
    HashIds,
    Milliseconds,
    Tokens,
    arrival_ns,
    check_hash_counts,
    last_timestamp,
    read_lines,
)
from nexusbench.workloads.readers.base import Parsed, Reader, Signature
from nexusbench.workloads.source import Source

HASH_BLOCK = 512
# A file with one of these is in the native format, which must state its hash block.
_NATIVE_ONLY = (
    "hash_block", "id", "tenant", "session", "turn", "think_time", "timeout", "cancel_after",
    "concurrency", "token_ids",
)  # fmt: skip


class MooncakeLine(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One request; ``timestamp`` in ms, lengths in tokens, an id per 512 prompt tokens."""

    timestamp: Milliseconds
    input_length: Tokens
    output_length: Tokens
    hash_ids: HashIds


class Mooncake(Reader):
    """Reads the four fields of Mooncake's traces, all of them required."""

    signature: ClassVar[Signature] = Signature(2, fields=("hash_ids",), without=_NATIVE_ONLY)
    time_field: ClassVar[str] = "timestamp"
    unit: ClassVar[str] = "timestamps in ms"
    example: ClassVar[str] = (
        '{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [0, 1]}'
    )
    source: ClassVar[str] = "Mooncake, FAST 2025; github.com/kvcache-ai/Mooncake, FAST25-release"

    def read(self, source: Source) -> Parsed:
        """All requests. Raises InputError that names file, line and field of the first fault."""
        rows, lines = read_lines(source, MooncakeLine)
        for row, line in zip(rows, lines, strict=True):
            if not row.hash_ids:
                raise InputError(
                    "is empty",
                    file=source.path,
                    line=line,
                    field="hash_ids",
                    hint=f"Give one id for each {HASH_BLOCK} input tokens",
                )
        check_hash_counts(rows, lines, HASH_BLOCK, source.path)
        requests = [
            TraceRequest(
                id=str(index),
                arrival_ns=arrival_ns(row.timestamp),
                prompt_tokens=row.input_length,
                output_tokens=row.output_length,
                hash_ids=row.hash_ids,
            )
            for index, row in enumerate(rows)
        ]
        return Parsed(requests, lines, HASH_BLOCK)

    def skim(self, piece: bytes, after: int) -> int | None:
        """Times in order, and no field of the native format."""
        if self.signature.excludes(piece):
            return None
        last = last_timestamp(piece, after / NS_PER_MS)
        return None if last is None else arrival_ns(last)
