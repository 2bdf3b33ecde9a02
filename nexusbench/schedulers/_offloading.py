"""How much of the decodes' attention may run on the prefill GPU: Adrenaline's offload bound and its
conditions (arXiv 2503.20552, load-aware offloading, Algorithm 1).
"""

from __future__ import annotations

import math

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.request import RequestView
from nexusbench.costs.base import CostModel

_MANY = 4096  # rows that make any dense layer compute-bound
_GRANULE = 16  # tokens: mean contexts are rounded to this, and share a bound
_PROBE = 32  # decodes of the step whose attention is compared on two shares of SMs


class AttentionLoad(msgspec.Struct):
    """The attention of some requests: how many, their KV tokens now, and at their longest."""

    requests: int = 0
    tokens: int = 0
    worst: int = 0

    def add(self, request: RequestView) -> None:
        """One more."""
        self.requests += 1
        self.tokens += request.num_tokens
        self.worst += longest(request)


def longest(request: RequestView) -> int:
    """KV tokens of a request that generates all it may."""
    return request.num_prompt_tokens + request.max_tokens


def bound(
    hbm: float, bandwidth: float, batch_within_slo: float, batch_compute_bound: float
) -> float:
    """OB, the most offloaded attention for one of local: min(OB_mem, OB_comp), at least 0.

    ``hbm`` and ``bandwidth`` are what the attention executor has, as shares of the decode GPU's.
    """
    of_compute = (batch_compute_bound - batch_within_slo) / batch_within_slo
    return max(0.0, min(hbm, bandwidth, of_compute))


def safe(
    offloaded: AttentionLoad, request: RequestView, local: AttentionLoad, ratio: float
) -> bool:
    """C1: the bound holds if all offloaded requests grow to their longest and no local one does."""
    return offloaded.worst + longest(request) <= ratio * local.tokens


def fine_now(offloaded: AttentionLoad, local: AttentionLoad, ratio: float) -> bool:
    """C2: the bound holds at present lengths, in tokens and in requests."""
    return offloaded.tokens < ratio * local.tokens and offloaded.requests < ratio * local.requests


class OffloadBound:
    """OB of a pair of equal GPUs, from a belief about one of them."""

    def __init__(self, belief: CostModel, tbt_ns: float) -> None:
        self._belief, self._tbt_ns = belief, tbt_ns
        self._known: dict[tuple[int, int], float] = {}
        self._compute_bound: float | None = None

    def of(self, context: float, sms: int, remote_sms: int, hbm: float, tokens: int) -> float:
        """OB while local decodes have ``context`` tokens each on average, of ``tokens`` that fit.

        ``sms`` and ``remote_sms`` compute attention here and there; ``hbm`` as in :func:`bound`.
        """
        rounded = max(1, round(context / _GRANULE)) * _GRANULE
        known = self._known.get((rounded, remote_sms))
        if known is None:
            most = self.compute_bound(sms)
            within = max(1.0, min(self.within_slo(rounded, sms), tokens / rounded))
            share = self.bandwidth(rounded, sms, remote_sms) if remote_sms else 0.0
            known = self._known[rounded, remote_sms] = bound(hbm, share, within, most)
        return known

    def compute_bound(self, sms: int) -> float:
        """Bmax: decodes at which the dense layers take as long by their products as by their
        weights.
        """
        if self._compute_bound is None:
            flat, some, more = [
                self._belief.predict(BatchShape(rows, 0), sms) for rows in (1, _MANY, 2 * _MANY)
            ]
            self._compute_bound = flat * _MANY / (more - some) if more > some else math.inf
        return self._compute_bound

    def within_slo(self, context: int, sms: int) -> float:
        """B_TPOT: the largest batch within the TBT bound with all attention here; not beyond Bmax,
        where it leaves nothing to gain.
        """
        low, high = 0, int(min(self.compute_bound(sms), float(_MANY))) + 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._belief.predict(BatchShape(middle, middle * context), sms) <= self._tbt_ns:
                low = middle
            else:
                high = middle - 1
        return float(low)

    def bandwidth(self, context: int, sms: int, remote_sms: int) -> float:
        """BW_p / BW_d: the time of the same attention here over that there, at most 1."""
        here, there = [self._attention(context, count) for count in (sms, remote_sms)]
        return min(1.0, here / there) if there > 0 else 1.0

    def _attention(self, context: int, sms: int) -> float:
        with_keys = self._belief.predict(BatchShape(_PROBE, _PROBE * context), sms)
        return with_keys - self._belief.predict(BatchShape(_PROBE, 0), sms)
