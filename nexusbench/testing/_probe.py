"""A policy under observation: what it changed must be what the context's journal says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import UNSET

from nexusbench.core.batch import Batch, Chunk, Plan, PreemptionKind, spread_of
from nexusbench.core.registry import overridden
from nexusbench.core.request import Request, RequestView
from nexusbench.core.state import EngineState, Limits
from nexusbench.kv.manager import Allocation
from nexusbench.kv.pages import NONE
from nexusbench.planning.context import SchedulerContext
from nexusbench.planning.journal import Admission, Decodes, Draft, Entry, Eviction, Journal, Move
from nexusbench.schedulers.base import Scheduler
from nexusbench.testing._errors import ConformanceError

MOST_CALLS = 20_000  # calls of the context in one instant, before it counts as an endless loop
FIELDS = (
    "id", "arrival_ns", "num_prompt_tokens", "max_tokens", "stop_len", "prefix_ids", "tenant",
    "num_tokens", "num_computed_tokens", "num_cached_tokens", "num_preemptions", "in_flight",
    "pool", "layers_done", "layers_tokens", "num_hashed_blocks", "order_key", "arrival_rank",
    "after", "named_tokens", "think_ns", "timeout_ns", "cancel_after_ns", "outcome",
)  # fmt: skip

# Class attributes by which the engine treats a policy.
FORWARDED = (
    "partitions", "default_partitioner", "work_conserving", "num_gpus", "needs_belief",
    "swap_gib", "belief", "calibrates",
)  # fmt: skip

Row = dict[str, Any]


def row_of(request: Request) -> Row:
    """Every field of a request that a policy must leave alone, blocks included."""
    row: Row = {name: getattr(request, name) for name in FIELDS}
    row["blocks"] = list(request.blocks)
    return row


class StateSnapshot:
    """Requests, queues and what is in flight, as plain values."""

    def __init__(self, state: EngineState) -> None:
        self.waiting = [r.index for r in state.waiting]
        self.prefilling = [r.index for r in state.prefilling]
        self.decoding = [r.index for r in state.decoding]
        self.swapped = [r.index for r in state.swapped]
        self.rows = {
            r.index: row_of(r)
            for queue in (state.waiting, state.prefilling, state.decoding, state.swapped)
            for r in queue
        }
        self.engine: tuple[int, Limits, Any, Any] = (
            state.now,
            state.limits,
            state.split,
            {name: [entry.step for entry in running] for name, running in state.in_flight.items()},
        )
        self.flying = {
            r.index
            for running in state.in_flight.values()
            for entry in running
            for r, _ in entry.batch.items
        }

    def replay(self, journal: Sequence[Entry]) -> None:
        """Do to this snapshot what the journal's entries did to the state."""
        for entry in journal:
            if isinstance(entry, Allocation):
                blocks = self.rows[entry.request.index]["blocks"]
                blocks += entry.shared
                for place, _ in entry.passed:
                    blocks[place] = NONE
                blocks += entry.taken
            elif isinstance(entry, Admission):
                index = entry.request.index
                self.waiting.remove(index)
                self.prefilling.append(index)
                self.rows[index]["num_computed_tokens"] = entry.cached
                self.rows[index]["num_cached_tokens"] = entry.cached
                self.rows[index]["pool"] = entry.request.pool
            elif isinstance(entry, Eviction):
                self._evict(entry.request.index)
                self.rows[entry.request.index]["order_key"] = entry.request.order_key
            elif isinstance(entry, Chunk):
                self.rows[entry.request.index]["in_flight"] = True
            elif isinstance(entry, Move):
                self._move(entry)
            elif isinstance(entry, Decodes):
                for request in entry.requests:
                    self.rows[request.index]["in_flight"] = True
        self.waiting.sort(key=lambda index: (self.rows[index]["order_key"], index))

    def _move(self, entry: Move) -> None:
        index = entry.transfer.request.index
        row = self.rows[index]
        row["in_flight"] = True
        row["num_preemptions"] += entry.preempted
        if entry.position >= 0:
            self.swapped.remove(index)
            decoding = row["num_computed_tokens"] + 1 == row["num_tokens"]
            (self.decoding if decoding else self.prefilling).append(index)

    def _evict(self, index: int) -> None:
        queue = self.decoding if index in self.decoding else self.prefilling
        queue.remove(index)
        self.waiting.append(index)
        row = self.rows[index]
        row["num_preemptions"] += 1
        row["blocks"] = []
        for name in ("num_computed_tokens", "num_hashed_blocks", "layers_done"):
            row[name] = 0

    def difference(self, other: StateSnapshot) -> str | None:
        """What ``other`` (the state as it is) has that this (as it should be) has not, in words."""
        for name in ("waiting", "prefilling", "decoding", "swapped"):
            before, after = getattr(self, name), getattr(other, name)
            if before != after:
                return f"changes which requests are {name}: {before} became {after}"
        for index, row in self.rows.items():
            now = other.rows[index]
            for name, value in row.items():
                if now[name] != value:
                    return f"changes {name} of '{row['id']}' from {value} to {now[name]}"
        if self.engine != other.engine:
            return "changes the engine's clock, limits, split or launches"
        return None


class WatchedContext(SchedulerContext):
    """A context that ends an endless loop inside one scheduling instant."""

    def __init__(self, journal: Journal, preemption: PreemptionKind = "recompute") -> None:
        super().__init__(journal, preemption)
        self.calls = 0  # in this instant

    def count(self) -> None:
        """One more call. Raises ConformanceError (I10) once there are too many."""
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise ConformanceError(
                "I10", f"makes no progress: {MOST_CALLS:,} calls of the context in one instant"
            )

    @property
    def journal(self) -> Sequence[Entry]:
        """What the policy did in this instant and did not roll back."""
        return self._journal.entries

    @property
    def times_lengths(self) -> bool:
        """Whether the device's batches say what they know of lengths."""
        return self._state.device.times_lengths

    @property
    def drafts(self) -> dict[str, Draft]:
        """The batches that it put together."""
        return self._drafts


def _counted(name: str) -> Callable[..., Any]:
    """The method of the context that is called so, counted."""
    method = getattr(SchedulerContext, name)

    def counted(ctx: WatchedContext, *given: Any, **named: Any) -> Any:
        ctx.count()
        return method(ctx, *given, **named)

    return counted


for _name in (
    "free_slots", "budget", "schedule_decodes", "try_schedule", "preempt", "transfer", "swap_in"
):  # fmt: skip
    setattr(WatchedContext, _name, _counted(_name))


class CheckedScheduler(Scheduler):
    """Stands in for ``inner`` towards the engine, and checks each of its proposals."""

    def __init__(self, inner: Scheduler, state: EngineState | None = None) -> None:
        super().__init__(inner.options)
        self.inner, self.state = inner, state
        for name in FORWARDED:
            self.__dict__[name] = getattr(inner, name)

    @property
    def name(self) -> str:
        """The inner policy's."""
        return self.inner.name

    def order_key(self, request: RequestView) -> float:
        """The inner policy's, which must not change the request."""
        before = self._row(request)
        key = self.inner.order_key(request)
        self._same(before, request, "order_key")
        return key

    def completed(self, batch: Batch, now: int) -> None:
        """The inner policy's, which must not change a request."""
        if not overridden("completed", (self.inner, Scheduler)):
            return
        before = [(request, self._row(request)) for request, _ in batch.items]
        self.inner.completed(batch, now)
        for request, row in before:
            self._same(row, request, "completed")

    def finished(self, request: RequestView) -> None:
        """The inner policy's, which must not change the request."""
        before = self._row(request)
        self.inner.finished(request)
        self._same(before, request, "finished")

    def schedule(self, ctx: SchedulerContext) -> Plan:
        """The inner policy's plan, if it did only what the journal holds (I11, contract)."""
        assert self.state is not None
        assert isinstance(ctx, WatchedContext)
        ctx.calls = 0
        expected = StateSnapshot(self.state)
        flying = expected.flying
        self.inner.belief = self.belief  # set on the probe, once it stands in for the policy
        plan = self.inner.schedule(ctx)
        if not isinstance(plan, Plan):
            raise ConformanceError("contract", f"schedule returns {plan!r}, which is no Plan")
        expected.replay(ctx.journal)
        difference = expected.difference(StateSnapshot(self.state))
        if difference is not None:
            raise ConformanceError("I11", f"'{self.name}' {difference}, behind the context's back")
        self._check_plan(plan, ctx, flying)
        return plan

    def _row(self, request: RequestView) -> Row:
        assert isinstance(request, Request)
        return row_of(request)

    def _same(self, before: Row, request: RequestView, hook: str) -> None:
        if self._row(request) != before:
            raise ConformanceError("I11", f"'{self.name}' changes '{request.id}' in {hook}()")

    def _check_plan(self, plan: Plan, ctx: WatchedContext, flying: set[int]) -> None:
        """The plan must be what was scheduled through the context, no more and no less."""
        launched: set[int] = set()
        for batch in plan.batches:
            for request, _ in batch.items:
                if request.index in flying:
                    raise ConformanceError("I11", f"launches '{request.id}', which is in flight")
                if request.index in launched:
                    raise ConformanceError("contract", f"schedules '{request.id}' twice in a plan")
                launched.add(request.index)
            rows = sum(count for _, count in batch.items)
            most = ctx.limits.max_num_batched_tokens
            if rows > most:
                raise ConformanceError("contract", f"launches {rows} tokens; the budget is {most}")
            self._check_batch(batch, ctx.drafts.get(batch.partition), ctx.times_lengths)
        planned = {batch.partition for batch in plan.batches}
        for partition, draft in ctx.drafts.items():
            if (draft.decodes or draft.chunks) and partition not in planned:
                problem = f"scheduled requests on '{partition}' and leaves them out of its plan"
                raise ConformanceError("contract", problem)
        moves = [entry for entry in ctx.journal if isinstance(entry, Move)]
        if plan.transfers != [entry.transfer for entry in moves]:
            raise ConformanceError("contract", "the plan's transfers are not those it made")
        evicted = [
            entry.request if isinstance(entry, Eviction) else entry.transfer.request
            for entry in ctx.journal
            if isinstance(entry, Eviction) or (isinstance(entry, Move) and entry.preempted)
        ]
        if [preemption.request for preemption in plan.preemptions] != evicted:
            raise ConformanceError("contract", "the plan's preemptions are not those it made")

    def _check_batch(self, batch: Batch, draft: Draft | None, times_lengths: bool) -> None:
        known = [] if draft is None else [*draft.decodes, *(c.request for c in draft.chunks)]
        for request, _ in batch.items:
            if request not in known:
                problem = f"launches '{request.id}', which it did not schedule on this partition"
                raise ConformanceError("contract", problem)
        if draft is None or len(known) != len(list(batch.items)):
            raise ConformanceError("contract", "leaves out of its plan what it scheduled")
        here = [r.num_computed_tokens for r in batch.decodes if r.pool != draft.remote]
        context = sum(r.num_computed_tokens for r in batch.decodes)
        unequal = spread_of(here) if times_lengths else UNSET
        if (batch.shape.num_tokens, batch.shape.decode_context, batch.shape.unequal) != (
            sum(count for _, count in batch.items), context, unequal
        ):  # fmt: skip
            raise ConformanceError("contract", "gives its batch a shape that is not its items'")
