"""The thread that makes requests before they are due, so that to send one is only to write it."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from threading import Event

from nexusbench.core.request import Request
from nexusbench.core.units import MIB, NS_PER_S

_AHEAD_NS = 5 * NS_PER_S
_AHEAD_SESSIONS = 64  # of a closed loop, beyond those that its users have in hand
_MOST_BYTES = 64 * MIB
_NAP_S = 0.01
_SPARE_NS = NS_PER_S // 4
_LEAST_SPARE, _MOST_SPARE = 2, 256


class Preparer:
    """Makes payloads in the order in which they will be sent; one thread, ``run``.

    ``make`` gives the bytes of a request. A request that follows another is made once that one has
    been sent.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        concurrency: int,
        make: Callable[[Request], bytes],
        clock: Callable[[], int],
    ) -> None:
        self._make, self._clock, self._concurrency = make, clock, concurrency
        self._roots = [request for request in requests if request.after < 0]
        self._due = [request.arrival_ns for request in self._roots]
        self._follower = {r.after: r for r in requests if r.after >= 0}
        self._next = 0  # root to make
        self._following: deque[Request] = deque()
        self._ready: dict[int, bytes] = {}
        # Each is changed by one thread alone.
        self._made_bytes = self._taken_bytes = self._taken_roots = 0
        self.unprepared = 0
        self._stopped = Event()

    def take(self, request: Request) -> bytes:
        """The payload of ``request``, made on the spot if it is not there. For the sender."""
        payload = self._ready.pop(request.index, None)
        if payload is None:
            self.unprepared += 1
            payload = self._make(request)
        else:
            self._taken_bytes += len(payload)
        self._taken_roots += request.after < 0
        follower = self._follower.get(request.index)
        if follower is not None:
            self._following.append(follower)
        return payload

    def fill(self) -> None:
        """Make what will be sent soon."""
        while not self._stopped.is_set():
            if self._made_bytes - self._taken_bytes >= _MOST_BYTES:
                return
            if self._following:
                request = self._following.popleft()
            elif self._root_is_wanted():
                request = self._roots[self._next]
                self._next += 1
            else:
                return
            payload = self._make(request)
            self._made_bytes += len(payload)
            self._ready[request.index] = payload

    def _root_is_wanted(self) -> bool:
        # What was sent without being made before is not made any more.
        self._next = max(self._next, self._taken_roots)
        if self._next >= len(self._roots):
            return False
        if self._concurrency:
            return self._next < self._taken_roots + self._concurrency + _AHEAD_SESSIONS
        return self._due[self._next] < self._clock() + _AHEAD_NS

    def run(self) -> None:
        """Keep ahead of the sender until stopped."""
        while not self._stopped.wait(_NAP_S):
            self.fill()

    def stop(self) -> None:
        """Let ``run`` return."""
        self._stopped.set()

    def spare(self) -> int:
        """How many connections should lie ready now: one for each request of the next moment."""
        if self._concurrency:
            return min(_MOST_SPARE, max(_LEAST_SPARE, self._concurrency))
        now = self._clock()
        soon = bisect_left(self._due, now + _SPARE_NS) - bisect_left(self._due, now)
        return min(_MOST_SPARE, max(_LEAST_SPARE, soon))
