"""When SGLang's scheduler looks for new requests (its SchedulerRecvSkipper)."""

from __future__ import annotations

from nexusbench.core.request import RequestView
from nexusbench.schedulers.base import SchedulerContext


class ReceiveInterval:
    """It looks after ``interval`` decode steps in a row, at once after a prompt, and while nothing
    runs; requests that have arrived since are not known to it.
    """

    def __init__(self, interval: int) -> None:
        self._interval = self._steps = interval
        self._known = -1  # the rank of the last arrival that it has seen

    def look(self, ctx: SchedulerContext) -> None:
        """Before a step: know of all that wait, if it is time."""
        if self._interval == 1:
            return
        if self._steps >= self._interval or not ctx.num_running:
            self._steps = 0
            self._known = max([self._known, *(r.arrival_rank for r in ctx.waiting)])
        self._steps += 1

    def head(self, ctx: SchedulerContext) -> RequestView | None:
        """The first waiting request, if it is known; the step after it looks again."""
        head = ctx.waiting.head
        if head is None or self._interval == 1:
            return head
        if head.arrival_rank > self._known:
            return None
        self._steps = self._interval
        return head
