"""Orders of the waiting queue that depend on what the prefix cache holds: lpm, hit-rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from nexusbench.core.request import Request, RequestView
from nexusbench.core.state import WaitingQueue
from nexusbench.kv.manager import KVCacheManager

LPM_MOST_WAITING = 128  # in a longer queue SGLang matches no prefixes and uses the own order
_LONGER = float(1 << 24)  # more than any rank: one cached token counts more than any other order


class Ranking(msgspec.Struct, frozen=True):
    """Which of the two, and the seconds of waiting that are worth a full hit (0: no ageing)."""

    order: Literal["lpm", "hit-rate"]
    ageing_s: float


class CacheOrder:
    """Updates the keys of a waiting queue when the prefix cache changes.

    ``lpm`` (SGLang): longest cached prefix first, equals in the policy's own order; the own order
    alone while more than 128 wait. ``hit-rate`` (KVShare, arXiv 2503.16525): cached share of the
    tokens, largest first, plus age / ``ageing_s``. As for spf the age is counted from time 0, which
    orders the same and needs no clock; so keys change only when the cache does.
    """

    def __init__(
        self,
        ranking: Ranking,
        waiting: WaitingQueue,
        kv: KVCacheManager,
        order_key: Callable[[RequestView], float],
    ) -> None:
        self._ranking, self._waiting, self._kv, self._order_key = ranking, waiting, kv, order_key
        self._crowded = False
        self._seen = 0  # changes of the cache that the keys account for

    def begin(self) -> None:
        """A new instant: sort the queue again if what the cache holds has changed."""
        waiting, changes = self._waiting, self._kv.pool.changes
        crowded = self._ranking.order == "lpm" and len(waiting) > LPM_MOST_WAITING
        if crowded == self._crowded and (crowded or changes == self._seen):
            return
        self._seen, self._crowded = changes, crowded
        requests = list(waiting)
        cached = [0] * len(requests) if crowded else self._kv.count_cached(requests)
        keys = [self.key(r, n) for r, n in zip(requests, cached, strict=True)]
        if keys != [r.order_key for r in requests]:
            waiting.reorder(keys)

    def key(self, request: RequestView, cached: int) -> float:
        """The key of ``request`` (smaller is first) if ``cached`` of its tokens are cached."""
        if self._ranking.order == "lpm":
            own = self._order_key(request)
            return own if self._crowded else own - _LONGER * cached
        ageing = self._ranking.ageing_s
        arrived = request.arrival_ns * 1e-9 / ageing if ageing else 0.0
        return arrived - cached / request.num_tokens

    def joining(self, request: Request) -> float:
        """The key of a request that starts to wait now."""
        if self._crowded:
            return self._order_key(request)
        return self.key(request, self._kv.count_cached([request])[0])
