"""The request as a trace gives it, before any engine: arrival, lengths, shared prefix."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    TokenIds = array[int]
else:
    TokenIds = array  # msgspec must see a class


class TraceRequest(msgspec.Struct, gc=False):
    """One line of a trace. ``hash_ids`` name the prompt's blocks of ``Trace.hash_block`` tokens.

    ``session`` and ``turn`` (from 0) label a conversation. A turn that ``follows`` arrives
    ``think_ns`` after the end of the turn before; its ``arrival_ns`` is that of its session's first
    turn. Its client gives up ``timeout_ns`` or ``cancel_after_ns`` after its arrival (0: never).
    """

    id: str
    arrival_ns: int
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    tenant: str = ""
    max_tokens: int = 0  # the bound a policy may see; set by workloads.transform.bounds
    session: str = ""
    turn: int = 0
    follows: bool = False
    think_ns: int = 0
    timeout_ns: int = 0
    cancel_after_ns: int = 0
    token_ids: TokenIds | None = None  # the prompt itself, where the trace holds it
    line: int = 0  # where the file says so; 0 unless it gives token_ids


class Trace(msgspec.Struct):
    """Requests in order of arrival, first arrival at 0, and how they came to be.

    ``concurrency`` above 0 is a closed loop: so many users, each of whom sends the next request (or
    begins the next session) when the last one has ended; arrivals are then 0 for all.
    ``notes`` are the facts a reader must see (format and unit detected, rescaling, ties, limits).
    """

    name: str
    requests: list[TraceRequest]
    hash_block: int = 512
    format: str = "native"
    sha256: str = ""
    notes: list[str] = []
    oracle_max_tokens: bool = False  # policies see true lengths: must be labelled
    concurrency: int = 0
    whole: bool = True  # False: the file goes on after these requests (workloads.head)

    def __repr__(self) -> str:
        """One line, however many requests there are."""
        return f"Trace({self.name!r}, {len(self.requests):,} requests, format {self.format!r})"
