"""What policies share: prompts in mid-prefill that find no block, and filling a token budget."""

from __future__ import annotations

from nexusbench.core.request import RequestView
from nexusbench.planning.context import SchedulerContext


def resume(
    ctx: SchedulerContext,
    request: RequestView,
    num_tokens: int | None = None,
    partition: str = "all",
) -> int:
    """Give a partial prefill its next chunk, preempting the last to join where blocks lack (vLLM).

    Returns the tokens scheduled; 0 if no budget is left, the request is preempted or being copied,
    or its blocks are those of a victim whose swap has not ended.
    """
    if request.in_flight or request not in ctx.prefilling:
        return 0  # being copied, or preempted in this instant for an earlier request
    while ctx.budget(partition) > 0:
        scheduled = ctx.try_schedule(request, num_tokens, partition)
        if scheduled:
            return scheduled
        victim = ctx.last_running(request)
        if victim is None:
            return 0
        if victim is request and ctx.blocks_coming:
            # Swaps under way free blocks. If it were swapped too, both would be swapped for ever.
            return 0
        ctx.preempt(victim)
        if victim is request or victim.in_flight:
            return 0
    return 0


def fill(ctx: SchedulerContext, partition: str = "all", *, whole_prompt: bool) -> None:
    """Chunks for what is left of the budget (vLLM): prompts in mid-prefill, then waiting ones, with
    ``whole_prompt`` only such as fit into free blocks with all their tokens.
    """
    for request in [r for r in ctx.prefilling if not r.in_flight]:
        if not resume(ctx, request, partition=partition) or ctx.budget(partition) <= 0:
            break
    if ctx.preempted or ctx.swap_in_all():
        return
    while (head := ctx.waiting.head) is not None:
        if whole_prompt and not fits_whole(ctx, head):
            return
        if not ctx.try_schedule(head, partition=partition):
            return


def fits_whole(ctx: SchedulerContext, request: RequestView) -> bool:
    """Whether free blocks hold all tokens of a waiting request, beside what the cache has."""
    kv = ctx.kv
    blocks = kv.most_blocks(request.num_tokens, ctx.limits.max_num_batched_tokens)
    return blocks - kv.cached_blocks(ctx.cached_tokens(request)) <= kv.num_free


def proceed(
    ctx: SchedulerContext,
    request: RequestView,
    num_tokens: int | None = None,
    partition: str = "all",
    *,
    layers: tuple[int, int] | None = None,
) -> int:
    """Give a partial prefill its next chunk, in policies that admit strictly in order.

    It waits while others hold the blocks that it lacks, for decodes end by themselves. Only where
    the engine would stand still, the partial prefill that joined last on its GPU is preempted.
    Returns the tokens scheduled; 0 if there is no budget or block, or it was just preempted itself.

    Why no stall is left in such a policy, whatever was preempted, swapped out and brought back:
    say that nothing is in flight and the policy plans nothing. Then no request decodes where its
    blocks are: the first of them gets a block, or takes one by preempting, or is alone and fits
    (the engine rejects what does not), and each way something is planned. If partial prefills are
    left on a GPU, the first of them was given its chunk here: alone in the pool, it fits. Finished
    prompts that only wait to be copied to another GPU find it empty by the same two arguments. If
    no request holds blocks, the first one on the host is brought back, or else the head of the
    queue starts, in an empty pool. Nor can this go round for ever: partial prefills are only taken
    from where no request decodes, so the first in order, which is never taken from, reaches its
    next token before the second can be taken from again.

    Without swaps there is never a second partial prefill: a prompt is admitted only when all before
    it got the rest of theirs. One that was swapped out and copied back is the second.
    """
    if request not in ctx.prefilling:
        return 0  # preempted in this instant for an earlier request
    scheduled = ctx.try_schedule(request, num_tokens, partition, layers=layers)
    while not scheduled and ctx.idle and not any(ctx.is_at(r, partition) for r in ctx.decoding):
        others = [r for r in ctx.prefilling if r is not request and ctx.is_at(r, partition)]
        if not others:
            break
        ctx.preempt(others[-1], "recompute")  # a copy would need the same blocks again
        scheduled = ctx.try_schedule(request, num_tokens, partition, layers=layers)
    return scheduled
