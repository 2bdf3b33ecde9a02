"""How the SLOs of those who decode stand, as Bullet watches it (arXiv 2504.19516, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from nexusbench.core.batch import Batch
from nexusbench.core.request import RequestView
from nexusbench.core.state import Limits
from nexusbench.core.units import NS_PER_MS

NORM_TTFT_MS, TPOT_MS = 3.0, 150.0  # Bullet's evaluation, ShareGPT
MOST_FORGOTTEN = 1024  # first tokens remembered of requests that are gone


class BulletSlo(msgspec.Struct, frozen=True):
    """What users expect, in ns: of TTFT (per prompt token if ``per_token``) and of TPOT."""

    ttft: float
    per_token: bool
    tpot: float

    def ttft_of(self, request: RequestView) -> float:
        """Nanoseconds from its arrival within which a request must have its first token."""
        return self.ttft * request.num_prompt_tokens if self.per_token else self.ttft


class SloOptions(Protocol):
    """The options that say what to expect; None where the user did not."""

    @property
    def norm_ttft_ms(self) -> float | None: ...
    @property
    def ttft_ms(self) -> float | None: ...
    @property
    def tbt_ms(self) -> float | None: ...


def expected(options: SloOptions, limits: Limits) -> BulletSlo:
    """Options first, then what the user asked for (--goodput), then the paper's values."""
    tpot = options.tbt_ms or limits.tbt_ms or TPOT_MS
    norm, ttft = options.norm_ttft_ms, options.ttft_ms or limits.ttft_ms
    if norm is not None or ttft is None:
        return BulletSlo((norm or NORM_TTFT_MS) * NS_PER_MS, True, tpot * NS_PER_MS)
    return BulletSlo(ttft * NS_PER_MS, False, tpot * NS_PER_MS)


class Pace:
    """Time per output token of who is decoding: from its first token on, over the tokens since, so
    that it grows while decode pauses.
    """

    def __init__(self) -> None:
        self._first: dict[int, int] = {}

    def completed(self, batch: Batch, now: int) -> None:
        """A step has ended: prompts that it finished have their first tokens."""
        for chunk in batch.chunks:
            r = chunk.request
            if r.num_tokens == r.num_prompt_tokens + 1 == r.num_computed_tokens + 1:
                self._first.setdefault(r.index, now)

    def late(self, decoding: Sequence[RequestView], at: float, tpot: float) -> bool:
        """Whether the P90 of the paces will be over ``tpot`` if everyone's next token comes at
        ``at`` (ns).
        """
        allowed = len(decoding) // 10
        for r in decoding:
            since = at - self._first.get(r.index, at)
            if since > tpot * (r.num_tokens - r.num_prompt_tokens):
                allowed -= 1
        return allowed < 0

    def forget(self, running: Sequence[RequestView]) -> None:
        """Keep only those who run, once most of those remembered do not."""
        if len(self._first) > MOST_FORGOTTEN + 4 * len(running):
            kept = {r.index for r in running}
            self._first = {i: at for i, at in self._first.items() if i in kept}
