"""FlowPrefill (arXiv 2602.16603): a prefill gives way between two layers to a more urgent one."""

from __future__ import annotations

from typing import ClassVar, Literal

from nexusbench.core.batch import Batch, Plan
from nexusbench.core.registry import AboveZero, AtLeastOne
from nexusbench.core.request import RequestView
from nexusbench.core.units import NS_PER_MS
from nexusbench.planning.prompts import proceed
from nexusbench.schedulers._urgency import Urgency
from nexusbench.schedulers.base import Scheduler, SchedulerContext, SchedulerOptions

TTFT_MS = 2000.0  # where neither options nor --goodput bound it
FIRST = 1e18  # ns, 30 years: before all deadlines


class FlowprefillSchedulerOptions(SchedulerOptions, frozen=True, kw_only=True):
    """TTFT: ``norm_ttft_ms`` per prompt token, else ``ttft_ms``, else what --goodput asks for, else
    2 s. ``layers``: between two chances to give way. ``batch_tokens``: of short prompts together.
    ``late_ms``: a prompt that late goes first. Any ``order`` but ``slack`` gives way by that order.
    """

    order: Literal["slack", "fcfs", "spf", "lpm", "hit-rate"] = "slack"  # type: ignore[assignment]
    norm_ttft_ms: AboveZero | None = None
    ttft_ms: AboveZero | None = None
    layers: AtLeastOne = 4
    batch_tokens: AtLeastOne = 2048
    late_ms: AboveZero = 10_000.0


class FlowprefillScheduler(Scheduler[FlowprefillSchedulerOptions]):
    """Prompts on their own stream, in batches that can stop after any layers and go on later.

    When a prompt arrives or a prefill ends, and only then, the most urgent is chosen: those that
    can still keep their TTFT bound by earliest deadline, then the late ones by latest deadline
    (S-EDF: sign of the slack over the deadline, slack = deadline - now - predicted rest). Short
    prompts join while the first keeps a tenth of its SLO as slack. Deviations: the paper's prefill
    instance is a GPU of its own, here decodes have the other stream; it stops before any operator
    at no cost, here after every ``layers`` layers, each launch with its overhead; a prompt late by
    ``late_ms`` goes first (in the paper's order an overload starves it).
    """

    partitions: ClassVar[tuple[str, ...]] = ("prefill", "decode")
    default_partitioner: ClassVar[str] = "fixed"
    any_partitioner: ClassVar[bool] = True
    needs_belief: ClassVar[bool] = True
    advised: ClassVar[tuple[str, ...]] = ("order=slack", "order=spf")
    source: ClassVar[str] = "FlowPrefill, arXiv 2602.16603; code HSIEHCHIACHI/FlowPrefill"

    def __init__(self, options: FlowprefillSchedulerOptions | None = None) -> None:
        super().__init__(options)
        self._batches: list[list[RequestView]] = []  # begun and not ended, the last launched last
        self._event = True  # a prompt has arrived or a prefill has ended since the last choice

    def order_key(self, request: RequestView) -> float:
        """A prompt has come: the deadline of its first token, as far as that is known here."""
        self._event = True
        if self.options.order != "slack":
            return super().order_key(request)
        if request.num_tokens > request.num_prompt_tokens:
            return request.arrival_ns - FIRST  # it is recomputed
        per_token = (self.options.norm_ttft_ms or 0.0) * NS_PER_MS
        return request.arrival_ns + per_token * request.num_prompt_tokens

    def completed(self, batch: Batch, now: int) -> None:
        """Notice that a prefill has ended."""
        self._event |= any(not chunk.request.layers_done for chunk in batch.chunks)

    def finished(self, request: RequestView) -> None:
        """Its blocks are free."""
        self._event = True

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Decodes first; on the other stream the batch that was chosen, or a new choice."""
        ctx.schedule_decodes("decode", victim=ctx.last_running)
        self._batches = [left for batch in self._batches if (left := _going(ctx, batch))]
        free = ctx.free_slots("prefill") and not any(b[0].in_flight for b in self._batches)
        same = self._batches and not self._event
        if free and not (same and self._go_on(ctx, self._batches[-1])):
            self._choose(ctx)
        return ctx.plan()

    def _choose(self, ctx: SchedulerContext) -> None:
        """Launch what is most urgent, or else the next that there is room for."""
        urgency, self._event = self._urgency(ctx), False
        batches = {batch[0].index: batch for batch in self._batches}
        started = [r for r in ctx.prefilling if not r.in_flight and not r.layers_done]
        ready = [*[batch[0] for batch in batches.values()], *started]
        admitting = not ctx.preempted and not ctx.swap_in_all()
        if admitting and (first := urgency.first()) is not None:
            ready.append(first)
        for request in sorted(ready, key=lambda r: (urgency.priority(r), r.index)):
            if request.index in batches:
                launched = self._go_on(ctx, batches[request.index])
            elif request in started:
                launched = self._start(ctx, request)
            else:
                launched = not ctx.preempted and self._begin(ctx, request, urgency)
            if launched:
                return
        if admitting and not ctx.preempted and (head := ctx.waiting.head) is not None:
            self._begin(ctx, head, urgency)  # where the most urgent has no room

    def _urgency(self, ctx: SchedulerContext) -> Urgency:
        assert self.belief is not None
        own, norm = self.options, self.options.norm_ttft_ms
        ttft = norm or own.ttft_ms or ctx.limits.ttft_ms or TTFT_MS
        return Urgency(
            ctx, self.belief, ctx.sms("prefill"), order=own.order, ttft=ttft * NS_PER_MS,
            per_token=norm is not None, late=own.late_ms * NS_PER_MS,
        )  # fmt: skip

    def _begin(self, ctx: SchedulerContext, request: RequestView, urgency: Urgency) -> bool:
        """The first layers of a waiting prompt, and of short ones with it; whether it had room."""
        layers = (0, min(self.options.layers, ctx.num_layers))
        taken = ctx.try_schedule(request, None, "prefill", layers=layers)
        if not taken:
            return False
        self._batches.append([request])
        for other in urgency.companions(request, taken, self.options.batch_tokens):
            if not ctx.try_schedule(other, None, "prefill", layers=layers):
                break
            self._batches[-1].append(other)
        return True

    def _start(self, ctx: SchedulerContext, request: RequestView) -> bool:
        """The first layers of the next chunk of a prompt over the budget."""
        layers = (0, min(self.options.layers, ctx.num_layers))
        if not proceed(ctx, request, None, "prefill", layers=layers):
            return False
        self._batches.append([request])
        return True

    def _go_on(self, ctx: SchedulerContext, batch: list[RequestView]) -> bool:
        """The next layers of a batch, as far as it was not preempted in this instant."""
        left = _going(ctx, batch)
        for r in left:
            layers = (r.layers_done, min(r.layers_done + self.options.layers, ctx.num_layers))
            ctx.try_schedule(r, r.layers_tokens, "prefill", layers=layers)
        self._batches.remove(batch)
        self._batches += [left] if left else []
        return bool(left)


def _going(ctx: SchedulerContext, batch: list[RequestView]) -> list[RequestView]:
    """Those of a batch that are in flight or between two layers, and were not preempted."""
    return [r for r in batch if (r.layers_done or r.in_flight) and r in ctx.prefilling]
