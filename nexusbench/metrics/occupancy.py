"""The state of a run at each moment: requests waiting and running, KV blocks, SMs computing.

Step functions are a pair of arrays: ``times`` (ns, growing) and the value that holds from each of
them until the next. They cover all of the log, the warm-up too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nexusbench.metrics.arrays import FloatArray, IntArray
from nexusbench.metrics.run_events import RunEvents


class StepFunction(NamedTuple):
    """A step function: ``values[i]`` holds from ``times[i]`` until ``times[i + 1]``."""

    times: IntArray
    values: IntArray


class Queue(NamedTuple):
    """Requests that waited and that were admitted, from each of ``times`` on."""

    times: IntArray
    waiting: IntArray
    running: IntArray


def queue_over_time(run: RunEvents) -> Queue:
    """Counted from arrivals, admissions, preemptions and ends, so idle moments are right too."""
    tables = run.tables
    admitted = np.bincount(tables["admitted"]["request"], minlength=run.num_requests)
    preempted = np.bincount(tables["preempted"]["request"], minlength=run.num_requests)
    # A request with one admission more than preemptions was running when it ended.
    ended_running = (admitted > preempted)[tables["ended"]["request"]].astype(np.int64)
    parts = [
        (tables["arrived"]["time"], 1, 0),
        (tables["admitted"]["time"], -1, 1),
        (tables["preempted"]["time"], 1, -1),
        (tables["ended"]["time"], ended_running - 1, -ended_running),
    ]
    times = np.concatenate([time for time, _, _ in parts])
    waits = np.concatenate([np.broadcast_to(wait, len(time)) for time, wait, _ in parts])
    runs = np.concatenate([np.broadcast_to(go, len(time)) for time, _, go in parts])
    order = np.argsort(times, kind="stable")
    moments, first = np.unique(times[order], return_index=True)
    if not len(moments):
        return Queue(moments, moments, moments)
    return Queue(
        moments,
        np.cumsum(np.add.reduceat(waits[order], first)),
        np.cumsum(np.add.reduceat(runs[order], first)),
    )


def kv_over_time(run: RunEvents) -> StepFunction:
    """KV blocks in use as seen at each launch, and none from when the last running request left."""
    submitted, queue = run.tables["submitted"], queue_over_time(run)
    empty = queue.times[queue.running == 0]
    times = np.concatenate((empty, submitted["time"]))
    values = np.concatenate((np.zeros_like(empty), submitted["kv_used"]))
    order = np.argsort(times, kind="stable")
    times, values = times[order], values[order]
    # Of several rows at one time the last holds: a launch is logged after the ends before it.
    last = np.append(times[1:] != times[:-1], True) if len(times) else np.zeros(0, dtype=np.bool_)
    return StepFunction(times[last], values[last])


def sms_at_work(run: RunEvents, partition: int, edges: IntArray) -> FloatArray:
    """Mean SMs on which a partition (its index) computed, in each interval between ``edges``."""
    launches = run.all_launches
    mine = run.tables["submitted"]["partition"][launches.row] == partition
    start, end = launches.start[mine], launches.end[mine]
    if not len(start):
        return np.zeros(len(edges) - 1)
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    area = run.tables["submitted"]["sms"][launches.row][mine][order] * (end - start)
    after = np.cumsum(area)
    points = np.column_stack((start, end)).ravel()
    areas = np.column_stack((after - area, after)).ravel()
    mean: FloatArray = np.diff(np.interp(edges, points, areas)) / np.diff(edges)
    return mean


def split_over_time(run: RunEvents) -> StepFunction:
    """The row of the split table that was in force."""
    changes = run.tables["repartitioned"]
    return StepFunction(changes["time"], changes["split"])


def at_edges(steps: StepFunction, edges: IntArray, reduce: np.ufunc = np.maximum) -> IntArray:
    """``reduce`` (maximum, minimum) of a step function over each interval between ``edges``.

    The value at the begin of an interval is part of it; before the first step it is 0.
    """
    times = np.concatenate(([np.iinfo(np.int64).min], steps.times))
    # One more at the end, so that an interval may end with the last of them.
    values = np.concatenate(([0], steps.values, [0]))
    first = np.searchsorted(times, edges[:-1], side="right") - 1
    beyond = np.maximum(np.searchsorted(times, edges[1:], side="left"), first + 1)
    bounds = np.column_stack((first, beyond)).ravel()
    reduced: IntArray = reduce.reduceat(values, bounds)[::2]
    return reduced
