"""When clients send requests and when they cancel them: all that the engine has of its clients.

A request arrives at a time of its own (open loop), a think time after an earlier one of its session
has finished (sessions), or when one of a fixed number of users is free (closed loop).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

from nexusbench.core.errors import UsageError
from nexusbench.core.host import EngineHost
from nexusbench.core.request import Request

NEVER = 2**63 - 1
TIMEOUT, BY_CLIENT = "timeout", "cancelled by client"
ORPHANED = "earlier turn did not finish"


class Arrivals:
    """The requests that have not arrived yet; ``next_ns`` is the time of the next arrival (NEVER
    while it depends on a request that has not ended).

    Each of ``concurrency`` users (0: no limit) begins the next session, or lone request, of the
    trace when its last one has ended. Where no request depends on another, this is a cursor.
    """

    def __init__(self, requests: Sequence[Request], concurrency: int = 0) -> None:
        """``requests`` that follow none are in order of arrival, and each stands after the one it
        follows. Raises UsageError if not.
        """
        self.num_left = len(requests)
        self.concurrency = concurrency
        self._follower = _followers(requests)
        # Whether the end of a request can make another one arrive: if not, ``ended`` is not called.
        self.chained = bool(self._follower or concurrency)
        self._roots = [r for r in requests if r.after < 0] if self._follower else requests
        self._root = 0
        self._due: list[tuple[int, int, Request]] = []
        self._free = concurrency
        self.next_ns = NEVER
        if concurrency:
            self._seat_users(0)
        self._look()

    def pop_due(self, now: int) -> Iterator[Request]:
        """The requests that have arrived by ``now``, in order of arrival."""
        while self.next_ns <= now:
            request = self._pop()
            self.num_left -= 1
            self._look()
            yield request

    def ended(self, request: Request, now: int, *, finished: bool) -> list[Request]:
        """Account for the end of ``request`` at ``now`` (called only if ``chained``).

        What follows a finished request arrives after its think time. What follows any other never
        arrives: these requests are returned, and the engine logs them as cancelled.
        """
        follower = self._follower.get(request.index)
        orphans: list[Request] = []
        if follower is not None and finished:
            follower.arrival_ns = now + follower.think_ns
            heappush(self._due, (follower.arrival_ns, follower.index, follower))
        else:
            while follower is not None:
                orphans.append(follower)
                follower = self._follower.get(follower.index)
            self.num_left -= len(orphans)
            if self.concurrency:
                self._free += 1
                self._seat_users(now)
        self._look()
        return orphans

    def _seat_users(self, now: int) -> None:
        """Let every free user start the next session of the trace."""
        while self._free and self._root < len(self._roots):
            request = self._roots[self._root]
            self._root += 1
            self._free -= 1
            request.arrival_ns = now
            heappush(self._due, (now, request.index, request))

    def _pop(self) -> Request:
        """Take out the request that arrives next."""
        if self._due and not self._root_is_first():
            return heappop(self._due)[2]
        self._root += 1
        return self._roots[self._root - 1]

    def _root_is_first(self) -> bool:
        """Of two that arrive at the same time, the one that stands first in the trace is first."""
        if self.concurrency or self._root >= len(self._roots):
            return False
        root = self._roots[self._root]
        return (root.arrival_ns, root.index) < self._due[0][:2]

    def _look(self) -> None:
        """Set ``next_ns`` to the time of the next arrival."""
        due = self._due[0][0] if self._due else NEVER
        if not self.concurrency and self._root < len(self._roots):
            due = min(due, self._roots[self._root].arrival_ns)
        self.next_ns = due


class FrontEndArrivals(Arrivals):
    """The same, behind the front end of a simulated server: ``next_ns`` is when the scheduler sees
    the next request. One process takes the requests one after the other, in order of arrival;
    ``arrival_ns`` stays when the client sent it, which latency counts from.
    """

    def __init__(self, requests: Sequence[Request], concurrency: int, host: EngineHost) -> None:
        self._host = host
        self._idle_from = 0  # when the front end has done all that came out of it
        self._served = 0  # requests that came out of it and have not ended
        super().__init__(requests, concurrency)
        self.chained = self.chained or host.stream_us > 0.0  # ends are counted

    def _done(self, request: Request) -> int:
        """When the front end has done ``request``, if that is the next."""
        begun = max(request.arrival_ns, self._idle_from)
        return begun + self._host.desk_ns(request.num_prompt_tokens)

    def _pop(self) -> Request:
        request = super()._pop()
        self._idle_from = self._done(request)
        self._served += 1
        return request

    def ended(self, request: Request, now: int, *, finished: bool) -> list[Request]:
        """As of ``Arrivals``; one request less to stream the tokens of."""
        self._served -= 1
        return super().ended(request, now, finished=finished)

    def _look(self) -> None:
        super()._look()
        if self.next_ns != NEVER:
            root = not self._due or self._root_is_first()
            request = self._roots[self._root] if root else self._due[0][2]
            self.next_ns = self._done(request) + self._host.reply_ns(self._served)


def arrivals_at(
    host: EngineHost | None, requests: Sequence[Request], concurrency: int = 0
) -> Arrivals:
    """The arrivals at a scheduler: behind the front end of ``host`` where one is simulated."""
    if host is None:
        return Arrivals(requests, concurrency)
    return FrontEndArrivals(requests, concurrency, host)


class Patience:
    """When clients cancel arrived requests that have not ended; ``next_ns`` is the next such time,
    or NEVER. ``armed``: some request has a timeout or is cancelled by its client.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.armed = any(r.timeout_ns or r.cancel_after_ns for r in requests)
        self.next_ns = NEVER
        self._heap: list[tuple[int, int, str, Request]] = []

    def watch(self, request: Request) -> None:
        """``request`` has arrived; both its limits count from its scheduled arrival."""
        timeout, cancel = request.timeout_ns, request.cancel_after_ns
        if not (timeout or cancel):
            return
        if timeout and not (cancel and cancel < timeout):
            entry = (request.arrival_ns + timeout, request.index, TIMEOUT, request)
        else:
            entry = (request.arrival_ns + cancel, request.index, BY_CLIENT, request)
        heappush(self._heap, entry)
        self.next_ns = self._heap[0][0]

    def pop_due(self, now: int) -> Iterator[tuple[Request, str]]:
        """The requests that their clients have cancelled by ``now``, each with the reason."""
        heap = self._heap
        while heap and (heap[0][0] <= now or heap[0][3].outcome >= 0):
            _, _, reason, request = heappop(heap)
            if request.outcome < 0:
                yield request, reason
        self.next_ns = heap[0][0] if heap else NEVER


def _followers(requests: Sequence[Request]) -> dict[int, Request]:
    """By index of a request the one that follows it. Raises UsageError for what has no order."""
    followers: dict[int, Request] = {}
    for r in requests:
        if r.after >= 0:
            if r.after >= r.index:
                raise UsageError(f"request '{r.id}' follows one that stands after it in the trace")
            if r.after in followers:
                raise UsageError(f"two requests follow request '{requests[r.after].id}'")
            followers[r.after] = r
    return followers
