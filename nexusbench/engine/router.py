"""Which engine of a fleet a request goes to, by the rule of vLLM's data-parallel load balancer."""

from __future__ import annotations

from collections.abc import Sequence

from nexusbench.core.state import EngineState
from nexusbench.core.units import NS_PER_MS

REFRESH_NS = 100 * NS_PER_MS
WAITING_WEIGHT = 4


class LeastLoaded:
    """The engine with the least of 4 x waiting + running, the first of several.

    The counts are as old as the last multiple of 100 ms; between two of these each request that is
    sent on counts as one that waits. Source: vLLM 0.19, v1/engine/core_client.py
    (DPLBAsyncMPClient) and coordinator.py, one API server. Sessions and prefixes are not looked at.
    """

    def __init__(self, states: Sequence[EngineState]) -> None:
        self._states = states
        self._waiting = [0] * len(states)
        self._running = [0] * len(states)
        self._due = REFRESH_NS

    def look(self, now: int) -> None:
        """The clock has come to ``now``, and what ends then has not been accounted for: if counts
        became due on the way, they are still those of that moment.
        """
        if now < self._due:
            return
        self._due = now - now % REFRESH_NS + REFRESH_NS
        for engine, state in enumerate(self._states):
            self._waiting[engine] = len(state.waiting)
            self._running[engine] = state.num_running

    def route(self) -> int:
        """The number of the engine that the next request goes to."""
        waiting, running = self._waiting, self._running
        scores = [WAITING_WEIGHT * w + r for w, r in zip(waiting, running, strict=True)]
        chosen = scores.index(min(scores))
        waiting[chosen] += 1
        return chosen
