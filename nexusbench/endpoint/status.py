"""How a replay is getting on."""

from __future__ import annotations

import msgspec


class Status(msgspec.Struct, frozen=True):
    """A moment of a replay; times in ns and ms, None if unknown."""

    now_ns: int
    requests: int
    ended: int
    flying: int
    tokens: int
    ttft_ms: float | None
    tbt_ms: float | None
