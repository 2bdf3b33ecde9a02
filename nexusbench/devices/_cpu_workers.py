"""Threads that run launches: one for each partition and number of cores, each on its own cores."""

from __future__ import annotations

import atexit
import os
import queue
import threading
from collections.abc import Callable, Sequence

import msgspec
import torch

from nexusbench.core.batch import StepOutput
from nexusbench.core.clock import now_ns
from nexusbench.core.errors import Interrupted
from nexusbench.devices._executor import Stopped

JOIN_S = 20.0  # a worker is asked to stop between two layers; one that cannot is left behind


class Seat(msgspec.Struct, frozen=True):
    """Where a worker runs: its cores, and how much nicer than its neighbour it is (0: not at all).

    The nicer of two threads on one core gets the smaller share of it.
    """

    partition: str
    cores: tuple[int, ...]
    nice: int = 0


class Ended(msgspec.Struct, gc=False):
    """What arrives in the device's queue: a step (or one repetition of it), the error that a worker
    died of, or with neither a call to look up from waiting.
    """

    output: StepOutput | None = None
    error: BaseException | None = None
    seat: Seat | None = None
    step: int = -1


# report of one repetition -> nothing; reports as often as it repeats.
Job = Callable[[Callable[[StepOutput], None]], None]


class Worker:
    """A thread with its own OpenMP team, pinned to its seat's cores.

    Threads that torch starts inherit the cores and the niceness of the thread that first needs
    them, and keep them; so a seat is set once, before the first operation, and never changed.
    """

    def __init__(self, seat: Seat, ended: queue.SimpleQueue[Ended]) -> None:
        self.seat = seat
        self._jobs: queue.SimpleQueue[tuple[int, Job] | None] = queue.SimpleQueue()
        self._ended = ended
        # Python 3.11 takes a thread for ended when Ctrl-C interrupts its ``join``; this tells.
        self._over = threading.Event()
        name = f"nexusbench-{seat.partition}-{len(seat.cores)}"
        # A daemon: a worker that hangs in an operation must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        # The interpreter must not be taken down under a thread that is inside torch.
        atexit.register(self._leave)

    def submit(self, step: int, job: Job) -> None:
        """Run ``job`` after those before it; returns at once."""
        self._jobs.put((step, job))

    def stop(self) -> None:
        """End after the running job; returns at once."""
        self._jobs.put(None)

    def join(self) -> bool:
        """Wait for the end that :meth:`stop` asked for; False if the thread does not end."""
        if not self._over.wait(JOIN_S):
            return False
        self._thread.join(JOIN_S)
        atexit.unregister(self._leave)
        return True

    def _leave(self) -> None:
        """At exit, when :meth:`join` was interrupted or never called."""
        self.stop()
        try:
            if self._over.wait(JOIN_S):
                self._thread.join(JOIN_S)
                return
        except KeyboardInterrupt:
            pass
        os._exit(Interrupted.exit_code)  # without the teardown, which would crash

    def _run(self) -> None:
        step = -1
        try:
            take(self.seat)
            while (order := self._jobs.get()) is not None:
                step, job = order
                job(self._report)
                # Nothing of a step (scratch tensors, requests) stays alive while this one waits.
                del job, order
        except Stopped:
            return
        except BaseException as error:
            self._ended.put(Ended(None, error, self.seat, step))
        finally:
            self._over.set()

    def _report(self, output: StepOutput) -> None:
        output.end_ns = now_ns()
        self._ended.put(Ended(output))


def take(seat: Seat) -> None:
    """Pin the calling thread and the teams it will start. Where a system cannot pin, it runs
    anywhere: the number of threads still is the number of cores.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, seat.cores)
    if seat.nice and hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), seat.nice)
    # In this thread, before its first operation; it would else get what another thread set last.
    torch.set_num_threads(len(seat.cores))


def seat_for(partition: str, sms: int, cores: Sequence[int]) -> Seat:
    """Prefill counts its cores from the first, decode from the last, so that a split that sums to
    all cores shares none.
    """
    chosen = cores[-sms:] if partition == "decode" else cores[:sms]
    return Seat(partition, tuple(chosen))
