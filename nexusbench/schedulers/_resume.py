"""What policies without phases do for a prompt in mid-prefill that finds no block."""

from __future__ import annotations

from nexusbench.core.request import RequestView
from nexusbench.schedulers._context import SchedulerContext


def resume(
    ctx: SchedulerContext,
    request: RequestView,
    num_tokens: int | None = None,
    partition: str = "all",
) -> int:
    """Give a partial prefill its next chunk, preempting the last to join where blocks lack (vLLM).

    Returns the tokens scheduled; 0 if the budget is gone, it was itself preempted, or a swapped
    victim's blocks come when its copy has ended.
    """
    while ctx.budget(partition) > 0:
        scheduled = ctx.try_schedule(request, num_tokens, partition)
        if scheduled:
            return scheduled
        victim = ctx.last_running(request)
        if victim is None:
            return 0
        ctx.preempt(victim)
        if victim is request or victim.in_flight:
            return 0
    return 0
