"""SGLang's scheduler (0.4.4): prefill first, admission by estimated growth, retraction where the
estimate was too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from nexusbench.core.batch import Plan
from nexusbench.core.registry import AtLeastOne, NotNegative, Share
from nexusbench.core.request import RequestView
from nexusbench.core.state import KvView
from nexusbench.planning.prompts import proceed
from nexusbench.schedulers._receiving import ReceiveInterval
from nexusbench.schedulers.base import Scheduler, SchedulerContext, SchedulerOptions

CLIP_MAX_NEW_TOKENS = 4096  # what PrefillAdder assumes at most of one request's further output
RETRACT_STEPS = 20  # decode steps that must fit after a retraction


class SglangSchedulerOptions(SchedulerOptions, frozen=True, kw_only=True):
    """``schedule_conservativeness`` scales the new-token ratio; ``max_prefill_tokens`` bounds one
    prefill batch, ``receive_interval`` decode steps between looks for requests (_receiving.py).

    The chunk size is the engine's token budget, so that all schedulers compared have the same one.
    """

    schedule_conservativeness: NotNegative = 1.0
    init_new_token_ratio: Share = 0.7
    min_new_token_ratio_factor: Share = 0.14
    new_token_ratio_decay_steps: AtLeastOne = 600
    max_prefill_tokens: AtLeastOne = 16_384
    receive_interval: AtLeastOne = 1


class SglangScheduler(Scheduler[SglangSchedulerOptions]):
    """Whenever a prompt can be admitted a prefill batch runs alone and decodes wait; else all
    decodes step once.

    Admission: free tokens, less what the running requests are expected to add (``new_token_ratio``
    of what they may). The ratio sinks with every decode step and is reset after a retraction.
    Deviations: blocks of 16 instead of single tokens, which ``order=lpm`` counts a prefix in.
    """

    source: ClassVar[str] = (
        "SGLang 0.4.4.post1: scheduler.py, schedule_policy.py, schedule_batch.py"
    )

    def __init__(self, options: SglangSchedulerOptions | None = None) -> None:
        super().__init__(options)
        own = self.options
        self._start_ratio = min(1.0, own.init_new_token_ratio * own.schedule_conservativeness)
        self._least_ratio = self._start_ratio * own.min_new_token_ratio_factor
        self._decay = (self._start_ratio - self._least_ratio) / own.new_token_ratio_decay_steps
        self._ratio = self._start_ratio
        self._latest_rank = 0
        self._received = ReceiveInterval(own.receive_interval)

    def order_key(self, request: RequestView) -> float:
        """As the base class; a retracted request stands behind all that have arrived."""
        self._latest_rank = max(self._latest_rank, request.arrival_rank)
        if self.options.order != "spf" and request.num_preemptions:
            return self._latest_rank + 0.5
        return super().order_key(request)

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """A prefill batch if there can be one, else a decode step."""
        if not ctx.free_slots():
            return ctx.plan()
        self._received.look(ctx)
        if not self._prefill(ctx):
            self._decode(ctx)
        return ctx.plan()

    def _prefill(self, ctx: SchedulerContext) -> bool:
        """PrefillAdder: the chunked prompt first, then the queue until tokens run out."""
        started = False
        for request in list(ctx.prefilling):
            started = bool(proceed(ctx, request)) or started
        if ctx.preempted or ctx.swap_in_all():
            return started
        pool = ctx.kv.tokens_in(ctx.kv.num_blocks)
        room = self._room(ctx, pool)
        taken, most = 0, self.options.max_prefill_tokens
        while (head := self._received.head(ctx)) is not None and ctx.budget() > 0 and taken < most:
            cached = ctx.cached_tokens(head)
            extend = head.num_tokens - cached
            total = ctx.kv.growth(cached, extend + self._expected_output(head, pool))
            alone = not ctx.num_running
            if total >= room and not alone:
                break
            scheduled = ctx.try_schedule(head, most - taken)
            if not scheduled:
                break
            started, taken, room = True, taken + scheduled, room - total
            if scheduled < extend:
                break  # truncated: it must be finished before others are chunked
        return started

    def _expected_output(self, request: RequestView, pool: int) -> int:
        """Tokens a request may still add, clipped as SGLang does (by 4,096, and by the pool's)."""
        generated = request.num_tokens - request.num_prompt_tokens
        most = min(request.max_tokens, pool - request.num_prompt_tokens - 1)
        return max(0, min(most - generated, CLIP_MAX_NEW_TOKENS))

    def _room(self, ctx: SchedulerContext, pool: int) -> float:
        """Room for tokens that is free now, less the expected growth of all running requests."""
        kv = ctx.kv
        free = kv.num_free * kv.block_size
        growth = self._growth(kv, ctx.decoding, pool) + self._growth(kv, ctx.prefilling, pool)
        for done, whole in [(r.num_computed_tokens, r.num_tokens) for r in ctx.prefilling]:
            free -= kv.growth(done, whole - done)
        return free - growth * self._ratio

    def _growth(self, kv: KvView, requests: Sequence[RequestView], pool: int) -> int:
        """Room that the expected output of ``requests`` takes."""
        expected = [self._expected_output(r, pool) for r in requests]
        if kv.uniform:
            return sum(expected)
        return sum([kv.growth(r.num_tokens, n) for r, n in zip(requests, expected, strict=True)])

    def _decode(self, ctx: SchedulerContext) -> None:
        """One step for all decodes, after retracting those that memory has no room for."""
        kv, size = ctx.kv, ctx.kv.block_size
        computed = [r.num_computed_tokens for r in ctx.decoding if not r.num_computed_tokens % size]
        needed = len(computed) if kv.uniform else sum([kv.next_blocks(n) for n in computed])
        if needed > ctx.kv.num_free + ctx.blocks_coming:
            self._retract(ctx)
        else:
            self._ratio = max(self._least_ratio, self._ratio - self._decay)
        ctx.schedule_decodes(victim=ctx.last_running)

    def _retract(self, ctx: SchedulerContext) -> None:
        """Fewest output tokens first (ties: longest prompt) until 20 steps fit for the rest."""
        order = sorted(
            [r for r in ctx.decoding if not r.in_flight],
            key=lambda r: (r.num_tokens - r.num_prompt_tokens, -r.num_prompt_tokens),
            reverse=True,
        )
        kv = ctx.kv
        steps = [kv.growth(r.num_tokens, RETRACT_STEPS) for r in order]
        needed = sum(steps)
        while len(order) > 1 and (kv.num_free + ctx.blocks_coming) * kv.block_size < needed:
            ctx.preempt(order.pop())
            needed -= steps.pop()
        decoded = sum(r.num_tokens - r.num_prompt_tokens for r in order)
        allowed = sum(r.max_tokens for r in order)
        self._ratio = min(1.0, (decoded + RETRACT_STEPS * len(order)) / max(1, allowed))
