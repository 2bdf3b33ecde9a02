"""A replay: three threads that send, receive and prepare, and one that looks on."""

from __future__ import annotations

import gc
import os
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Thread

import msgspec

from nexusbench.core.clock import now_ns, sleep
from nexusbench.core.errors import NexusbenchError
from nexusbench.core.request import Request
from nexusbench.core.units import NS_PER_MS, NS_PER_S
from nexusbench.endpoint.dialect import Letterhead
from nexusbench.endpoint.exchange import Exchange
from nexusbench.endpoint.preparing import Preparer
from nexusbench.endpoint.prompts import ReplayPrompts
from nexusbench.endpoint.receiver import Receiver
from nexusbench.endpoint.recording import ReplayRecording
from nexusbench.endpoint.sender import Ends, Impatience, Schedule, Sender
from nexusbench.endpoint.status import Status
from nexusbench.endpoint.words import Words

LEAD_NS = 300 * NS_PER_MS  # from the start of the threads to time 0, for the first connections
_LOOK_S = 0.05
# The interpreter's lock changes hands at the latest after this; its default, 5 ms, would be the
# sender's lateness whenever a chunk is being read.
_SWITCH_S = 50e-6


class ReplayPlan(msgspec.Struct):
    """What is replayed. ``concurrency``: users of a closed loop, 0 for none."""

    requests: Sequence[Request]
    schedule: Schedule
    patience: Impatience
    prompts: ReplayPrompts
    letterhead: Letterhead
    concurrency: int
    timeout_ns: int
    max_model_len: int | None
    orphaned: str  # the reason of a turn whose session has ended


class Replay:
    """Sends the requests of ``plan`` at their times; what happens goes to ``recording``."""

    def __init__(self, plan: ReplayPlan) -> None:
        self.plan = plan
        self.recording = ReplayRecording()
        self._zero = now_ns() + LEAD_NS
        self._ends = Ends()
        address, letterhead = plan.letterhead.address, plan.letterhead
        context = ssl.create_default_context() if address.tls else None
        words = Words(letterhead.key)
        self.receiver = Receiver(address, context, self.clock, self._ended, plan.timeout_ns, words)
        self.preparer = Preparer(
            plan.requests,
            plan.concurrency,
            lambda request: letterhead.request(plan.prompts.of(request), request.max_tokens),
            self.clock,
        )
        self._sender = Sender(
            plan.schedule,
            plan.patience,
            self.receiver,
            self._ends,
            self.clock,
            self.preparer.take,
            self.recording.add,
            max_model_len=plan.max_model_len,
            orphaned=plan.orphaned,
        )
        self._faults: list[BaseException] = []

    def clock(self) -> int:
        """Nanoseconds since the replay's time 0."""
        return now_ns() - self._zero

    def status(self) -> Status:
        """What is happening."""
        recording = self.recording
        return Status(
            now_ns=max(0, self.clock()),
            requests=len(self.plan.requests),
            ended=recording.num_ended,
            flying=len(self.receiver.flying),
            tokens=recording.num_tokens,
            ttft_ms=recording.ttft_ms,
            tbt_ms=recording.tbt_ms,
        )

    def run(self, look: Callable[[], None]) -> None:
        """Send everything and wait for the last answer. ``look`` is called about twenty times a
        second, after what has ended was gathered; it may raise to stop the replay.

        However it ends, ``recording`` holds all that has happened, also of requests under way.
        """
        self._begin()
        threads = {
            name: Thread(target=self._guard, args=(part.run,), name=name, daemon=True)
            for name, part in (
                ("receiver", self.receiver), ("preparer", self.preparer), ("sender", self._sender)
            )
        }  # fmt: skip
        with _undisturbed():
            for thread in threads.values():
                thread.start()
            try:
                while threads["sender"].is_alive() and not self._faults:
                    self.receiver.spare = self.preparer.spare()
                    self.recording.gather()
                    look()
                    sleep(_LOOK_S)
            finally:
                self._sender.stop()
                self.preparer.stop()
                threads["sender"].join()
                threads["preparer"].join()
                self.receiver.stop()
                threads["receiver"].join()
                self._gather_rest()
        if self._faults:
            fault = self._faults[0]
            raise NexusbenchError(f"the replay broke: {type(fault).__name__}: {fault}") from fault

    def horizon(self) -> int:
        """Nothing that is still under way began before this; to be asked before what has ended is
        gathered.
        """
        flying = [exchange.request.arrival_ns for exchange in list(self.receiver.flying.values())]
        return min([*flying, self.plan.schedule.next_ns, self.clock() - NS_PER_S])

    def under_way(self) -> list[Exchange]:
        """What has not ended yet."""
        return list(self.receiver.flying.values())

    def _begin(self) -> None:
        self._zero = now_ns()  # so that what is due in the first seconds is made now
        self.preparer.fill()
        self._zero = now_ns() + LEAD_NS

    def _ended(self, exchange: Exchange) -> None:
        """For the receiver's thread."""
        self.recording.add(exchange)
        if self.plan.schedule.chained:
            self._ends.tell(exchange)

    def _guard(self, run: Callable[[], None]) -> None:
        """A thread that breaks ends the replay; nothing is lost silently."""
        try:
            run()
        except BaseException as error:  # told in ``run``, by the thread that looks on
            self._faults.append(error)

    def _gather_rest(self) -> None:
        for exchange in self.under_way():
            self.recording.add(exchange)
        self.recording.gather()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No pauses for garbage, short turns of the interpreter's lock, and sockets enough; ahead of
    other processes where the system lets us (the threads started meanwhile inherit it).
    """
    before, collecting = sys.getswitchinterval(), gc.isenabled()
    ahead = _hurry()
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.disable()
    _allow_files()
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        if ahead:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        if collecting:
            gc.enable()


def _hurry() -> bool:
    """Put this thread into the lowest real-time class; False where that is not allowed or known.

    A sender that must wait for its turn among other processes is late by milliseconds; in this
    class it runs as soon as its timer rings. It sleeps nearly all the time.
    """
    if not hasattr(os, "SCHED_FIFO") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        return False
    return True


def _allow_files() -> None:
    """As many open files as this system lets a process have."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
