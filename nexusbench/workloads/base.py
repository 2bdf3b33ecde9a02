"""The request as a trace gives it, before any engine: arrival, lengths, shared prefix."""

from __future__ import annotations

import msgspec


class TraceRequest(msgspec.Struct, gc=False):
    """One line of a trace. ``hash_ids`` name the prompt's blocks of ``Trace.hash_block`` tokens."""

    id: str
    arrival_ns: int
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    tenant: str = ""
    max_tokens: int = 0  # the bound a policy may see; set by workloads.transform.bounds


class Trace(msgspec.Struct):
    """Requests in order of arrival, first arrival at 0, and how they came to be.

    ``notes`` are the facts a reader must see (format and unit detected, rescaling, ties, limits).
    """

    name: str
    requests: list[TraceRequest]
    hash_block: int = 512
    format: str = "native"
    sha256: str = ""
    notes: list[str] = []
    oracle_max_tokens: bool = False  # policies see true lengths: must be labelled
