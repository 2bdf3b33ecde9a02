"""Launches as a partitioner observes them: when each began, on how many SMs, beside what."""

from __future__ import annotations

from collections import deque
from typing import Literal

import msgspec

from nexusbench.core.batch import Batch, BatchShape, Plan, Split
from nexusbench.core.state import EngineState

MOST_QUEUED = 4  # per partition: more than any device's queue, for states that never complete


class NotedLaunch(msgspec.Struct, gc=False):
    """A launch as it was planned, and once it (or one repetition) has ended how long it took;
    ``beside`` is the neighbour at its start and its SMs.
    """

    batch: Batch
    start: int
    sms: int
    beside: tuple[BatchShape, int] | None
    ns: int = -1


class LaunchBook:
    """Launches between a partitioner's ``split`` and ``completed``. SMs follow from the split as
    the engine gives them out: a lone batch has all of them, unless ``idle`` is reserve.
    """

    def __init__(self, idle: Literal["expand", "reserve"]) -> None:
        self._expands = idle == "expand"
        self._queued: dict[str, deque[NotedLaunch]] = {}
        self._ended: dict[str, int] = {}

    def note(self, plan: Plan, split: Split, state: EngineState) -> None:
        """``plan`` is about to be launched under ``split``."""
        for batch in plan.batches:
            beside: tuple[BatchShape, int] | None = None
            for other, running in state.in_flight.items():
                if other != batch.partition and running:
                    beside = running[0].batch.shape, running[0].sms
            for other_batch in plan.batches:
                if beside is None and other_batch is not batch:
                    beside = other_batch.shape, split.of(other_batch.partition)
            alone = beside is None and self._expands
            sms = state.device.num_sms if alone else split.of(batch.partition)
            queue = self._queued.setdefault(batch.partition, deque(maxlen=MOST_QUEUED))
            queue.append(NotedLaunch(batch, state.now, sms, beside))

    def ended(self, batch: Batch, now: int) -> NotedLaunch | None:
        """The launch of ``batch``, a step of which ended at ``now``; None if it was never noted."""
        partition = batch.partition
        queue = self._queued.get(partition)
        while queue and queue[0].batch is not batch:
            queue.popleft()
        start = self._ended.get(partition, 0)
        self._ended[partition] = now
        if not queue:
            return None
        launch = queue[0]
        launch.ns = now - max(launch.start, start)
        return launch
