"""Which prompt is most urgent: earliest deadline among those that can still keep it (S-EDF of
FlowPrefill, arXiv 2602.16603).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from nexusbench.core.batch import BatchShape
from nexusbench.core.request import RequestView
from nexusbench.costs.base import CostModel
from nexusbench.planning.context import SchedulerContext
from nexusbench.policies.bullet import Prospects

URGENT = 0.1  # a prompt with less slack than this share of its SLO takes no others along
LOOK_AHEAD = 32  # prompts of the queue that may join a batch
Priority = tuple[int, float]  # smaller goes first
NEEDED, IN_TIME, LATE = 0, 1, 2


class Urgency:
    """Priorities of prompts on ``sms`` SMs at ``ctx.now``, all times in ns.

    A prompt's deadline is its arrival plus ``ttft`` (per prompt token, if ``per_token``). In time
    are those with slack, deadline - now - predicted rest, above 0: by earliest deadline. Then the
    late ones, by latest deadline. Before both: what is over its deadline by ``late``, and requests
    that are recomputed, whose first token is no longer due.
    """

    def __init__(
        self,
        ctx: SchedulerContext,
        belief: CostModel,
        sms: int,
        *,
        order: str = "slack",
        ttft: float,
        per_token: bool,
        late: float,
    ) -> None:
        self._ctx, self._belief, self._sms = ctx, belief, sms
        self._prospects = Prospects(belief)
        self._order, self._ttft, self._per_token, self._late = order, ttft, per_token, late

    def slo(self, r: RequestView) -> float:
        """From its arrival, the time within which a request must have its first token."""
        return self._ttft * r.num_prompt_tokens if self._per_token else self._ttft

    def left(self, r: RequestView) -> float:
        """Until its deadline."""
        return r.arrival_ns + self.slo(r) - self._ctx.now

    def priority(self, r: RequestView) -> Priority:
        """Of a waiting prompt, or one that is between two launches."""
        if self._order != "slack":
            key = self._ctx.order_key(r)
            return IN_TIME, key - (r.num_computed_tokens if self._order == "spf" else 0)
        deadline, left = r.arrival_ns + self.slo(r), self.left(r)
        if r.num_tokens > r.num_prompt_tokens or left < -self._late:
            return NEEDED, deadline
        if left > 0.0:  # else there is nothing to predict
            done = r.layers_tokens * r.layers_done / self._ctx.num_layers
            if left > self._prospects.prompt(r, self._sms, done):
                return IN_TIME, deadline
        return LATE, -deadline

    def first(self) -> RequestView | None:
        """The most urgent of the queue, which is in order of deadlines with what is recomputed at
        its head: so behind the first in time there is none more urgent.
        """
        best: tuple[Priority, RequestView] | None = None
        for request in self._ctx.waiting:
            priority = self.priority(request)
            if best is None or priority < best[0]:
                best = priority, request
            if priority[0] != LATE:
                break
        return None if best is None else best[1]

    def companions(self, request: RequestView, tokens: int, most: int) -> Iterator[RequestView]:
        """Waiting prompts that fit beside ``tokens`` of ``request`` into a batch of ``most``, while
        it keeps a tenth of its SLO as slack.
        """
        left, spare = self.left(request), URGENT * self.slo(request)
        if tokens > most or left < spare:
            return
        for other in islice(self._ctx.waiting, LOOK_AHEAD):
            more = other.num_tokens - self._ctx.cached_tokens(other)
            if tokens + more > min(most, tokens + self._ctx.budget("prefill")):
                continue
            shape = BatchShape(0, 0, ((tokens + more, 0),))
            if left - self._belief.predict(shape, self._sms) < spare:
                return
            tokens += more
            yield other
