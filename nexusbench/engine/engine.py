"""THE loop: admit what has arrived, schedule, size the partitions, launch, complete."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import msgspec

from nexusbench.core.batch import Plan
from nexusbench.core.errors import EngineStalled, InvariantBreach, PlanRefused
from nexusbench.core.events import OUTCOMES, EventLog
from nexusbench.core.host import EngineHost
from nexusbench.core.request import Request
from nexusbench.core.state import EngineState, Limits
from nexusbench.devices.base import Device
from nexusbench.engine.arrivals import NEVER
from nexusbench.engine.executor import Executor
from nexusbench.engine.invariants import Auditor
from nexusbench.engine.served import Served
from nexusbench.engine.shared import SharedState
from nexusbench.kv.manager import KVCacheManager
from nexusbench.partitioners.base import Partitioner
from nexusbench.planning.journal import Journal
from nexusbench.schedulers.base import Scheduler, SchedulerContext

REJECTED = OUTCOMES.index("rejected")
MOST_FRUITLESS = 10_000  # decisions in a row that leave everything idle while work is there
MOST_MOVES = 1000  # preemptions and copies (or twice the seats) between a token and the next


class EngineConfig(msgspec.Struct, frozen=True):
    """Numbers of a run. ``audit_every``: steps between full checks of all block counts (I3).
    ``concurrency``: users of a closed loop, 0 for none. ``stop_tokens``: ids that end a request
    before its length does, on devices that make tokens. ``block_bytes``: bytes of a KV block, for
    the time of copies. ``host``: of the serving engine that is simulated, whose front end
    requests pass.
    """

    limits: Limits
    audit_every: int = 4096
    concurrency: int = 0
    stop_tokens: frozenset[int] = frozenset()
    block_bytes: float = 0.0
    host: EngineHost | None = None


class Engine(Served):
    """Serves ``requests`` on a device under a policy; every event is appended to ``log``.

    ``kv`` is the cache of the (first) GPU, ``others`` those of the device's further pools in
    order, the host's last. ``stopwatch`` reads a real clock in ns: it times decisions, outside the
    log. ``observer`` is called with the engine after every turn of the loop, for progress and for
    writing parts of the log; it may raise to stop the run. ``shared`` is given to the engines of a
    fleet (fleet.py), whose loop takes the place of :meth:`run`.
    """

    def __init__(
        self,
        device: Device,
        scheduler: Scheduler,
        partitioner: Partitioner,
        kv: KVCacheManager,
        requests: Sequence[Request],
        config: EngineConfig,
        *,
        log: EventLog | None = None,
        stopwatch: Callable[[], int] | None = None,
        observer: Callable[[Engine], None] | None = None,
        others: Sequence[KVCacheManager] = (),
        shared: SharedState | None = None,
    ) -> None:
        self.device, self.scheduler, self.partitioner, self.kv = device, scheduler, partitioner, kv
        self.requests, self.config = requests, config
        self.log = log if log is not None else EventLog()
        self.state = EngineState(
            device.spec, kv, config.limits, scheduler.partitions, partitioner.initial(device.spec),
            others,
        )  # fmt: skip
        if shared is None:
            shared = SharedState(requests, config.concurrency, config.host)
        self.shared = shared
        shared.states.append(self.state)
        self.pools = pools = (kv, *others)
        self.journal = Journal(
            self.state, pools, scheduler.name, scheduler.order_key, scheduler.ranking
        )
        self.context = SchedulerContext(self.journal, scheduler.options.preemption)
        self.arrivals, self.patience = shared.arrivals, shared.patience
        self.executor = Executor(
            self.state, pools, device, scheduler, partitioner, self.log, shared,
            config.stop_tokens, config.block_bytes,
        )  # fmt: skip
        self.executors = (self.executor,)
        self.auditor = Auditor(self.state, pools, self.executor)
        self.decision_ns = array("q")
        self._stopwatch, self._observer = stopwatch, observer
        self._wake_at: int | None = None
        self._staged, self._launched = device.spec.stages > 1, False
        self._ahead = config.host is not None and config.host.plans_ahead and not self._staged
        self._unseen: list[tuple[int, Request]] = []  # since when each is there
        self._planned_ns = 0  # when the last launch began
        self._fruitless = 0  # decisions in a row after which nothing was in flight
        self._only_preempted = False  # so did the last one, but for preemptions
        self._moves = self._tokens_before = 0  # moves since a request got a token; tokens by then

    def run(self) -> None:
        """Serve all requests; on return each has ended exactly once, and the invariants hold.

        Raises PlanRefused, EngineStalled or InvariantBreach, each naming the invariant.
        """
        executor, auditor, observer = self.executor, self.auditor, self._observer
        arrivals, state, shared = self.arrivals, self.state, self.shared
        next_audit = self.config.audit_every
        self.device.start()
        self.admit(self.device.now())
        while state.decoding or arrivals.num_left or state.prefilling or state.outside:
            if self.has_free_slot():
                self.fill()
            if self.is_stuck():
                raise EngineStalled(self.stall_report())
            for output in self.device.wait(self.next_event()):
                executor.complete(output)
            self.admit(self.device.now())
            if shared.num_steps >= next_audit:
                auditor.check_books()
                next_audit = shared.num_steps + self.config.audit_every
            if observer is not None:
                observer(self)
        auditor.check_end(self.requests)

    def admit(self, now: int) -> None:
        """Queue what has arrived by ``now``; cancel what its client has given up by then."""
        arrivals, patience = self.arrivals, self.patience
        self.set_clock(now)
        # A cancellation can free a user of a closed loop, whose next request arrives at once.
        while arrivals.next_ns <= now or patience.next_ns <= now:
            for request in arrivals.pop_due(now):
                self.offer(request)
            for request, reason in patience.pop_due(now):
                self.cancel(request, reason)

    def cancel(self, request: Request, reason: str) -> None:
        """Its client has given up ``request``, which may not have been planned yet."""
        self._see(self.state.now)
        self.executor.cancel(request, reason)

    def set_clock(self, now: int) -> None:
        """It is ``now`` on the device's clock. Raises InvariantBreach if it was later before."""
        state = self.state
        if now < state.now:
            raise InvariantBreach("I2", f"the device's clock went from {state.now} to {now} ns")
        state.now = now
        if self._unseen:
            running = state.decoding or state.prefilling
            self._see(self._planned_ns if running else now)

    def _see(self, until: int) -> None:
        """Queue what was there at ``until``: a host that plans ahead makes the plan of a launch
        when the one before begins, of what is there by then.
        """
        seen = [request for since, request in self._unseen if since <= until]
        self._unseen = self._unseen[len(seen) :]
        for request in seen:
            self._queue(request)

    def offer(self, r: Request) -> None:
        """Log an arrival and queue the request; one that can never fit is rejected at once."""
        limits = self.config.limits
        r.arrival_rank = self.num_arrived - 1
        self.log.tables["arrived"].row(r.index, r.arrival_ns, r.num_prompt_tokens, r.max_tokens)
        if r.stop_len > limits.max_model_len:
            self.executor.end(r, REJECTED, f"exceeds max_model_len {limits.max_model_len}")
        elif self.kv.most_blocks(r.stop_len, limits.max_num_batched_tokens) > self.kv.num_blocks:
            unit = "blocks" if self.kv.uniform else "pages"
            self.executor.end(r, REJECTED, f"exceeds the KV pool of {self.kv.num_blocks} {unit}")
        else:
            r.num_tokens = r.num_prompt_tokens
            self.patience.watch(r)
            if self._ahead and (self.state.decoding or self.state.prefilling):
                self._unseen.append((self.state.now, r))
            else:
                self._queue(r)

    def _queue(self, r: Request) -> None:
        r.order_key = self.journal.joining_key(r)
        self.state.waiting.add(r)

    def fill(self) -> None:
        """Decide; in a pipeline again while that launches something and there is room for more."""
        self.decide()
        if self._staged:
            while self._launched and self.has_free_slot():
                self.decide()

    def decide(self) -> None:
        """One scheduling instant: plan, split, commit."""
        state, journal = self.state, self.journal
        journal.begin()
        watch = self._stopwatch
        started = watch() if watch is not None else 0
        plan = self.scheduler.schedule(self.context)
        if not isinstance(plan, Plan):
            found = f"returns {type(plan).__name__} from schedule, not a Plan"
            raise PlanRefused("contract", self.scheduler.name, found)
        split = self.partitioner.split(plan, state) if plan.batches else state.split
        if watch is not None:
            self.decision_ns.append(watch() - started)
        try:
            self.auditor.check_plan(plan, split, journal)
        except PlanRefused:
            journal.rollback()
            raise
        self.executor.commit(plan, split, journal)
        if self.scheduler.work_conserving:
            self.auditor.check_work_conserving(plan)
        self._launched = bool(plan.batches)
        self._wake_at = plan.wake_at
        if plan.batches:
            self._planned_ns = state.now
        elif self._unseen and not state.busy:
            self._see(state.now)  # nothing is launched that a plan could be ahead of
            self.decide()
            return
        self._fruitless = 0 if state.busy else self._fruitless + 1
        self._only_preempted = bool(plan.preemptions) and not state.busy
        if plan.preemptions or plan.transfers:
            self._count_moves(plan)

    def _count_moves(self, plan: Plan) -> None:
        """Raise EngineStalled once requests are only preempted and moved. Output lengths are
        finite: a run whose requests get tokens ends, one whose requests get none never does.
        """
        if self.executor.num_tokens != self._tokens_before:
            self._moves, self._tokens_before = 0, self.executor.num_tokens
        self._moves += len(plan.preemptions) + len(plan.transfers)
        if self._moves > max(MOST_MOVES, 2 * self.config.limits.max_num_seqs):
            raise EngineStalled(
                f"I10: scheduler '{self.scheduler.name}' has preempted and moved requests "
                f"{self._moves:,} times since one last got a token; {self._stuck_requests()}"
            )

    @property
    def has_work(self) -> bool:
        """Whether a request that has arrived has not ended."""
        state = self.state
        return bool(state.decoding or state.prefilling) or state.outside

    def has_free_slot(self) -> bool:
        """Whether a partition can queue a batch and a request is unfinished that could be in it."""
        state = self.state
        if not (state.decoding or state.prefilling or state.outside):
            return False
        depth = self.device.spec.depth
        return any(len(running) < depth for running in state.in_flight.values())

    def next_event(self) -> int | None:
        """The time at which ``wait`` must return at the latest, or None: the plan's wake_at, the
        next cancellation, or the next arrival if a partition is free or a client may cancel it.
        """
        due = self.patience.next_ns
        if self._wake_at is not None and self.state.now < self._wake_at < due:
            due = self._wake_at
        arrival = self.arrivals.next_ns
        if arrival < due:
            depth = self.device.spec.depth
            running = self.state.in_flight.values()
            if self.patience.armed or any(len(launches) < depth for launches in running):
                due = arrival
        return None if due == NEVER else due

    def is_stuck(self) -> bool:
        """Whether nothing can change any more, or MOST_FRUITLESS decisions in a row had no effect.

        A plan that only preempts, or only sets wake_at, may prepare the next one; but not for ever.
        """
        if self.state.busy:
            return False
        nothing_due = self.next_event() is None and not self._only_preempted
        return nothing_due or self._fruitless > MOST_FRUITLESS

    def stall_report(self) -> str:
        """What the EngineStalled of a stuck engine says."""
        return (
            f"I10: scheduler '{self.scheduler.name}' planned nothing with nothing in flight and "
            f"nothing to wait for, {self._stuck_requests()}"
        )

    def _stuck_requests(self) -> str:
        state = self.state
        stuck = [*state.decoding, *state.prefilling, *state.swapped, *state.waiting]
        names = ", ".join(r.id for r in stuck[:3]) + (", ..." if len(stuck) > 3 else "")
        out = f"{len(state.swapped)} on the host, " if state.swapped else ""
        return (
            f"at {state.now} ns: {len(state.decoding)} decoding, {len(state.prefilling)} "
            f"prefilling, {out}{len(state.waiting)} waiting ({names}); "
            f"{self.kv.num_free} of {self.kv.num_blocks} KV blocks free"
        )
