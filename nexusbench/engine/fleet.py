"""A fleet: several engines on one clock behind a router, with one event log."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from nexusbench.core.errors import EngineStalled, InvariantBreach
from nexusbench.core.request import Request
from nexusbench.devices.base import Ranks
from nexusbench.engine.arrivals import NEVER
from nexusbench.engine.engine import Engine
from nexusbench.engine.router import LeastLoaded
from nexusbench.engine.served import Served

_UNROUTED = -1


class Fleet(Served):
    """Serves the requests of ``engines``, which share a log and a SharedState, each on the one of
    ``ranks`` with its number.

    The loop is an engine's: each one that can launch decides, then the clock goes on to what ends
    or arrives next. ``observer`` is called after every turn and may raise to stop the run.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        ranks: Ranks,
        audit_every: int,
        observer: Callable[[Served], None] | None = None,
    ) -> None:
        first = engines[0]
        self.engines, self.ranks = engines, ranks
        self.log, self.requests, self.shared = first.log, first.requests, first.shared
        self.executors = [engine.executor for engine in engines]
        self.router = LeastLoaded(self.shared.states)
        self._audit_every, self._observer = audit_every, observer
        self._home = array("i", [_UNROUTED]) * len(self.requests)  # by request: its engine

    @property
    def decision_ns(self) -> array[int]:  # type: ignore[override]
        """Of all engines, one after the other."""
        made = array("q")
        for engine in self.engines:
            made.extend(engine.decision_ns)
        return made

    def run(self) -> None:
        """Serve all requests, as :meth:`Engine.run` does and with what it raises."""
        shared, ranks, observer = self.shared, self.ranks, self._observer
        next_audit = self._audit_every
        ranks.start()
        self.admit(0)
        while shared.arrivals.num_left or any(engine.has_work for engine in self.engines):
            if ranks.accepting:
                for engine in self.engines:
                    if engine.has_free_slot():
                        engine.fill()
            self._check_stuck()
            outputs = ranks.wait(self._next_event())
            now = ranks.now()
            self.router.look(now)
            for number, output in outputs:
                self.executors[number].complete(output)
            self.admit(now)
            if shared.num_steps >= next_audit:
                for engine in self.engines:
                    engine.auditor.check_books()
                next_audit = shared.num_steps + self._audit_every
            if observer is not None:
                observer(self)
        self._check_end()

    def admit(self, now: int) -> None:
        """Send on what has arrived by ``now``; cancel what its client has given up by then."""
        arrivals, patience = self.shared.arrivals, self.shared.patience
        for engine in self.engines:
            engine.set_clock(now)
        while arrivals.next_ns <= now or patience.next_ns <= now:
            for request in arrivals.pop_due(now):
                chosen = self.router.route()
                self._home[request.index] = chosen
                self.engines[chosen].offer(request)
            for request, reason in patience.pop_due(now):
                self.engines[self._home[request.index]].cancel(request, reason)

    def _next_event(self) -> int | None:
        """When ``wait`` must return at the latest: also with each arrival, which is sent on when it
        comes.
        """
        due = self.shared.arrivals.next_ns
        for engine in self.engines:
            event = engine.next_event()
            if event is not None and event < due:
                due = event
        return None if due == NEVER else due

    def _check_stuck(self) -> None:
        """Raise EngineStalled if nothing is in flight and no engine can go on."""
        engines = self.engines
        if any(engine.state.busy for engine in engines):
            return
        if all(engine.is_stuck() for engine in engines):
            stuck = next((engine for engine in engines if engine.has_work), engines[0])
            raise EngineStalled(stuck.stall_report())

    def _check_end(self) -> None:
        """I1, I3 and I4 of each engine, over the requests that it ended."""
        served: list[list[Request]] = [[] for _ in self.engines]
        for request in self.requests:
            home = self._home[request.index]
            if home == _UNROUTED and request.after >= 0:
                # It never arrived: the engine that ended the turn before it ended it too.
                home = self._home[request.index] = self._home[request.after]
            if home == _UNROUTED:
                raise InvariantBreach("I1", f"request '{request.id}' never ended")
            served[home].append(request)
        for engine, requests in zip(self.engines, served, strict=True):
            engine.auditor.check_end(requests)
