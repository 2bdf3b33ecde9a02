"""Work on several cores: items in, results out as they end, also where workers die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_any
from typing import Generic, TypeVar

import msgspec

from nexusbench.core.errors import Interrupted, NexusbenchError, UsageError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
# An item whose worker dies this often is given up: it may be what kills them.
MOST_DEATHS = 3


class Lost(msgspec.Struct, frozen=True):
    """What is returned for an item that no worker survived."""

    reason: str


class Task(msgspec.Struct, Generic[ItemT]):
    """An item on its way: its position, and how many workers died over it."""

    index: int
    item: ItemT
    deaths: int = 0


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(
    function: Callable[[ItemT], ResultT], items: Sequence[ItemT], jobs: int
) -> Iterator[tuple[int, ResultT | Lost]]:
    """``(position, function(item))`` as each ends, on ``jobs`` processes (1: in this one).

    ``function`` must be importable and answer for its own errors: what it raises ends everything.
    A worker that dies is replaced and its items are tried again.
    """
    if jobs < 1:
        raise UsageError(f"--jobs {jobs} is impossible. Choose 1 or more")
    if jobs == 1 or len(items) <= 1:
        for index, item in enumerate(items):
            yield index, function(item)
        return
    todo = deque(Task(index, item) for index, item in enumerate(items))
    while todo:
        yield from _until_broken(function, todo, min(jobs, len(todo)))


def _until_broken(
    function: Callable[[ItemT], ResultT], todo: deque[Task[ItemT]], jobs: int
) -> Iterator[tuple[int, ResultT | Lost]]:
    """Work ``todo`` off with one set of workers; what they leave when one dies is put back."""
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _worker_begins)
    others = {*multiprocessing.active_children()}
    running: dict[Future[ResultT], Task[ItemT]] = {}
    try:
        while todo or running:
            # No more than there are workers: if one dies, only these can be to blame.
            while todo and len(running) < jobs:
                task = todo.popleft()
                running[pool.submit(_call, function, task.item)] = task
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                yield running.pop(future).index, result
    except BrokenProcessPool:
        for task in running.values():
            task.deaths += 1
            if task.deaths < MOST_DEATHS:
                todo.appendleft(task)
            else:
                yield task.index, Lost(f"its worker died {MOST_DEATHS} times (out of memory?)")
    except (KeyboardInterrupt, Interrupted):
        # They ignore Ctrl-C, and this process would wait for what they are at, perhaps for hours.
        for worker in {*multiprocessing.active_children()} - others:
            worker.terminate()
        raise Interrupted("interrupted; what was finished is kept") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _call(function: Callable[[ItemT], ResultT], item: ItemT) -> ResultT:
    """Runs in a worker. Our errors are built from several parts and would not survive the way back:
    there they would look like the death of the worker.
    """
    try:
        return function(item)
    except Interrupted:
        raise
    except UsageError as error:
        raise UsageError(str(error)) from None
    except NexusbenchError as error:
        raise NexusbenchError(str(error)) from None


def _worker_begins() -> None:
    """Ctrl-C is the parent's to handle; and a parent that was killed must not be outlived."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_any([parent.sentinel])
        os._exit(1)
