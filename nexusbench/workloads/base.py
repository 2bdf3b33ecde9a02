"""The request as a trace gives it, and numbers at which its times and lengths have a meaning."""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING

import msgspec

from nexusbench.core.errors import UsageError
from nexusbench.core.units import NS_PER_S

if TYPE_CHECKING:
    TokenIds = array[int]
else:
    TokenIds = array  # msgspec must see a class

# A century. Times of a run are 63-bit nanoseconds (292 years), and it ends after its last arrival.
LONGEST_S = 3_155_760_000
# The largest context ever announced is far below; above it, 32-bit token counts overflow.
MAX_TOKENS = 2**31 - 1
MAX_HASH_ID = 2**64 - 1  # hashes of 64 bits


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


def check_number(name: str, value: float, least: float = 1e-9, most: float = 1e15) -> None:
    """Refuse what is no number from ``least`` to ``most``. Raises UsageError."""
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} {value:g} is impossible. Choose a number above 0")
    if not least <= value <= most:
        raise UsageError(f"{name} {value:g} is too extreme. Choose {least:g} to {most:g}")


def check_span(last_ns: float, note: str) -> None:
    """Refuse arrivals (and times to think), in ns, that no run can reach. Raises UsageError."""
    if not last_ns <= LONGEST_S * NS_PER_S:
        raise UsageError(
            f"{note}: it would last {last_ns / NS_PER_S / 31_557_600:.3g} years, more than the 100 "
            "that can be served. Choose a faster one"
        )


def check_window(start: float, end: float | None) -> None:
    """Refuse a window, in s, that holds nothing or begins before 0. Raises UsageError."""
    high = math.inf if end is None else end
    if not (math.isfinite(start) and start >= 0 and high > start):
        raise UsageError(
            f"window {start:g}:{'' if end is None else f'{end:g}'} is empty or starts before 0. "
            "Choose 0 <= START < END, in seconds"
        )
