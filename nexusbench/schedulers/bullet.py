"""Bullet (arXiv 2504.19516): prefill some layers at a time beside decode, both watched by SLO."""

from __future__ import annotations

from typing import ClassVar, Literal

from nexusbench.core.batch import Batch, Plan
from nexusbench.core.registry import AboveZero, AtLeastOne
from nexusbench.core.request import RequestView
from nexusbench.policies.bullet import Pace, Prospects, expected
from nexusbench.schedulers.base import Scheduler, SchedulerContext, SchedulerOptions


class BulletSchedulerOptions(SchedulerOptions, frozen=True, kw_only=True):
    """SLOs, and the parts of Algorithm 1 to leave out.

    TTFT: ``norm_ttft_ms`` per prompt token, else ``ttft_ms``, else what --goodput asks for, else 3
    ms per prompt token; TPOT: ``tbt_ms``, else --goodput's, else 150 ms (Bullet's on ShareGPT). The
    partitioner has the same. ``layers_per_step``: L_step (its value is not in our sources).
    ``order=latency``: by arrival, but shorter prompts may overtake. ``pause`` lets decode wait.
    """

    order: Literal["latency", "fcfs", "spf", "lpm", "hit-rate"] = "latency"  # type: ignore[assignment]
    norm_ttft_ms: AboveZero | None = None
    ttft_ms: AboveZero | None = None
    tbt_ms: AboveZero | None = None
    layers_per_step: AtLeastOne = 4
    pause: bool = True


class BulletScheduler(Scheduler[BulletSchedulerOptions]):
    """Prefill decides every L_step layers, decode every step; an Algorithm 1 on both.

    The prompt that takes least time is next, as long as no prompt that it overtakes misses a TTFT
    SLO by that; prompts join a batch while it is bound by memory. While a TTFT breaks and the P90
    of TPOT allows it, decode waits until the prefill step under way ends. Deviations: a prompt over
    the budget is chunked and continues first; a late prompt is not overtaken; only the first 32 of
    the queue are considered.
    """

    partitions: ClassVar[tuple[str, ...]] = ("prefill", "decode")
    default_partitioner: ClassVar[str] = "bullet"
    work_conserving: ClassVar[bool] = False  # decode pauses for late prompts
    needs_belief: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True
    advised: ClassVar[tuple[str, ...]] = ("order=latency", "order=spf")
    source: ClassVar[str] = "Bullet, arXiv 2504.19516, section 3 and Algorithm 1"

    def __init__(self, options: BulletSchedulerOptions | None = None) -> None:
        super().__init__(options)
        self._pace, self._begun = Pace(), False
        self._batch: list[tuple[RequestView, int]] = []  # prompts under way and their tokens
        self._layer = 0  # how far they are
        self._step_ends = 0.0  # when the prefill step launched last should end

    def completed(self, batch: Batch, now: int) -> None:
        """Note first tokens."""
        self._pace.completed(batch, now)

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Decode, unless it pauses; then the next layers of the prompts under way, or new ones."""
        if not self._begun:
            assert self.belief is not None
            self._prospects, self._begun = Prospects(self.belief), True
            self._slo = expected(self.options, ctx.limits)
        self._pace.forget(ctx.decoding)
        if ctx.free_slots("decode") and ctx.decoding:
            mark, before = ctx.savepoint(), (self._batch, self._layer)
            if self.options.pause and self._pauses(ctx):
                return ctx.plan()
            ctx.rollback(mark)
            self._batch, self._layer = before
            ctx.schedule_decodes("decode", victim=ctx.last_running)
        if ctx.free_slots("prefill"):
            self._prefill(ctx)
        return ctx.plan()

    def _pauses(self, ctx: SchedulerContext) -> bool:
        """Whether decode waits for prefill, in flight or drafted here: for a TTFT, if P90 holds."""
        sms, tokens = ctx.split.of("prefill"), {r.index: count for r, count in self._batch}
        done = self._layer / ctx.num_layers
        started = [(r, done * tokens.get(r.index, 0)) for r in ctx.prefilling]
        pending = self._prospects.pending(started, ctx.waiting, sms)
        if not self._prospects.breaks_ttft(pending, ctx.now, self._slo):
            return False
        if ctx.free_slots("prefill"):
            self._prefill(ctx)
            if not self._batch or ctx.preempted:
                return False
        ends = max(self._step_ends, ctx.now)
        ends += self._prospects.decode(ctx.decoding, ctx.split.of("decode"))
        return not self._pace.late(ctx.decoding, ends, self._slo.tpot)

    def _prefill(self, ctx: SchedulerContext) -> None:
        """The next layers of the prompts under way; if there are none, a batch from its start."""
        sms = ctx.split.of("prefill") if ctx.decoding else ctx.num_sms
        batch = self._under_way(ctx)
        first = self._layer if batch else 0
        layers = (first, min(ctx.num_layers, first + self.options.layers_per_step))
        for r, tokens in batch:
            ctx.try_schedule(r, tokens, "prefill", layers=layers)
        self._batch = batch or self._new_batch(ctx, layers, sms)
        if self._batch:
            self._layer = layers[1]
            self._step_ends = ctx.now + self._prospects.step(self._batch, layers, sms)

    def _under_way(self, ctx: SchedulerContext) -> list[tuple[RequestView, int]]:
        """The prompts between two steps, less those that were preempted or cancelled."""
        if self._layer >= ctx.num_layers:
            return []
        return [(r, tokens) for r, tokens in self._batch if r in ctx.prefilling]

    def _new_batch(
        self, ctx: SchedulerContext, layers: tuple[int, int], sms: int
    ) -> list[tuple[RequestView, int]]:
        """Half-done prompts, then the queue, until they are bound by compute."""
        prospects, begins = self._prospects, float(ctx.now)
        batch: list[tuple[RequestView, int]] = []
        for r in [r for r in ctx.prefilling if not r.in_flight]:
            if r in ctx.prefilling and (tokens := self._take(ctx, r, layers)):
                batch.append((r, tokens))
                begins += prospects.prompt(r, sms)
        if ctx.preempted or ctx.swap_in_all():
            return batch
        total, enough = sum(tokens for _, tokens in batch), prospects.saturating_tokens(sms)
        queue = ctx.waiting if self.options.order == "latency" else ()
        while total < enough and (head := ctx.waiting.head) is not None:
            chosen = prospects.next_prompt(queue, begins, self._slo, sms) or head
            begins += prospects.prompt(chosen, sms)
            tokens = ctx.try_schedule(chosen, None, "prefill", layers=layers)
            if not tokens:
                break
            batch.append((chosen, tokens))
            total += tokens
        return batch

    def _take(self, ctx: SchedulerContext, r: RequestView, layers: tuple[int, int]) -> int:
        """Schedule a half-done prompt, if need be with the blocks of a later one."""
        while not (tokens := ctx.try_schedule(r, None, "prefill", layers=layers)):
            later = [x for x in ctx.prefilling if not x.in_flight and x is not r]
            if not later or ctx.budget("prefill") < 1:
                break
            ctx.preempt(later[-1], "recompute")  # the blocks are needed now
        return tokens
