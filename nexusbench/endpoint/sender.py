"""The sending thread: sends each request at its time, whatever else goes on.

An event loop wakes up to a millisecond late. This thread sleeps until shortly before a request is
due and spins for the rest, then writes to a connection that is already open bytes that are already
made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Event
from typing import Protocol

from nexusbench.core.clock import sleep
from nexusbench.core.events import OUTCOMES
from nexusbench.core.request import Request
from nexusbench.core.units import NS_PER_MS, NS_PER_S, NS_PER_US
from nexusbench.endpoint.exchange import Exchange
from nexusbench.endpoint.receiver import Receiver

REJECTED, CANCELLED = OUTCOMES.index("rejected"), OUTCOMES.index("cancelled")
SPIN_NS = 200 * NS_PER_US
# So near to the moment the interpreter's lock is not given away any more.
_HOLD_NS = 40 * NS_PER_US
_LONGEST_WAIT_NS = 20 * NS_PER_MS


class Schedule(Protocol):
    """When requests arrive (nexusbench.engine.arrivals.Arrivals)."""

    num_left: int
    next_ns: int
    chained: bool

    def pop_due(self, now: int) -> Iterable[Request]:
        """The requests that have arrived by ``now``."""

    def ended(self, request: Request, now: int, *, finished: bool) -> Sequence[Request]:
        """Be told of an end; returns the requests that never arrive for it."""


class Impatience(Protocol):
    """When clients give up (nexusbench.engine.arrivals.Patience)."""

    next_ns: int
    armed: bool

    def watch(self, request: Request) -> None:
        """A request has arrived."""

    def pop_due(self, now: int) -> Iterator[tuple[Request, str]]:
        """The requests whose client has given up by ``now``, and why."""


class Ends:
    """The ends that the receiving thread tells the sending one of, where these matter to it."""

    def __init__(self) -> None:
        self._queue: deque[Exchange] = deque()
        self.rung = Event()

    def tell(self, exchange: Exchange) -> None:
        """An exchange has ended."""
        self._queue.append(exchange)
        self.rung.set()

    def take(self) -> Iterator[Exchange]:
        """All ends not taken yet."""
        self.rung.clear()
        while self._queue:
            yield self._queue.popleft()

    def __bool__(self) -> bool:
        return bool(self._queue)


class Sender:
    """Sends what ``schedule`` says, when it says so; one thread, ``run``.

    ``payload`` gives the bytes of a request; ``settled`` is called with every exchange that ends
    without being sent: longer than ``max_model_len`` (rejected), or a turn whose session has ended
    (cancelled for ``orphaned``).
    """

    def __init__(
        self,
        schedule: Schedule,
        patience: Impatience,
        receiver: Receiver,
        ends: Ends,
        clock: Callable[[], int],
        payload: Callable[[Request], bytes],
        settled: Callable[[Exchange], None],
        *,
        max_model_len: int | None,
        orphaned: str,
    ) -> None:
        self._schedule, self._patience, self._receiver = schedule, patience, receiver
        self._ends, self._clock, self._payload, self._settled = ends, clock, payload, settled
        self._max_model_len, self._orphaned = max_model_len, orphaned
        self._stopped = False

    def stop(self) -> None:
        """Let ``run`` return, whatever is left."""
        self._stopped = True
        self._ends.rung.set()

    def run(self) -> None:
        """Send everything; returns when nothing is left to send or to wait for."""
        schedule, receiver, clock = self._schedule, self._receiver, self._clock
        while not self._stopped:
            if schedule.chained:
                self._follow()
            if self._patience.next_ns <= clock():
                self._give_up()
            due = schedule.next_ns
            if not schedule.num_left and not receiver.flying and not self._ends:
                return
            left = min(due, self._patience.next_ns) - SPIN_NS - clock()
            if left > 0:
                # In slices, so that a stop or an end is seen.
                pause = min(left, _LONGEST_WAIT_NS) / NS_PER_S
                if schedule.chained:
                    self._ends.rung.wait(pause)
                else:
                    sleep(pause)
                continue
            if due - clock() <= SPIN_NS:
                self._spin(due)
                for request in schedule.pop_due(clock()):
                    self._offer(request)

    def _spin(self, due: int) -> None:
        clock = self._clock
        while (left := due - clock()) > 0:
            if left > _HOLD_NS:
                sleep(0)  # lets the receiving thread have the interpreter's lock

    def _offer(self, request: Request) -> None:
        """A request arrives: it is sent, or rejected as the engine would."""
        most = self._max_model_len
        if most is not None and request.stop_len > most:
            exchange = Exchange(request, b"")
            self._settle(exchange, REJECTED, f"exceeds max_model_len {most}", request.arrival_ns)
            if self._schedule.chained:
                self._ends.tell(exchange)
            return
        self._receiver.launch(Exchange(request, self._payload(request)))
        if self._patience.armed:
            self._patience.watch(request)

    def _follow(self) -> None:
        """Tell the schedule of ends, which make others arrive."""
        finished = OUTCOMES.index("finished")
        for exchange in self._ends.take():
            done = exchange.outcome == finished
            for orphan in self._schedule.ended(exchange.request, exchange.end_ns, finished=done):
                orphan.arrival_ns = exchange.end_ns
                self._settle(Exchange(orphan, b""), CANCELLED, self._orphaned, exchange.end_ns)

    def _give_up(self) -> None:
        """Call off the requests whose clients have lost patience."""
        for request, reason in self._patience.pop_due(self._clock()):
            exchange = self._receiver.flying.get(request.index)
            if exchange is not None:
                self._receiver.cancel(exchange, reason)

    def _settle(self, exchange: Exchange, outcome: int, reason: str, now: int) -> None:
        exchange.outcome, exchange.reason, exchange.end_ns = outcome, reason, now
        exchange.request.outcome = outcome
        self._settled(exchange)
