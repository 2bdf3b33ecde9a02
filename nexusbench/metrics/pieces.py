"""Layer-wise prefill in the log: which rows of ``chunk`` are later layers of one before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nexusbench.metrics.intervals import IntArray
    from nexusbench.metrics.run_events import BoolArray, RunEvents


def later_layers(run: RunEvents) -> BoolArray:
    """For each row of ``chunk``, whether it goes on with the chunk of its request's row before.

    A launch of some layers writes a row for each chunk as a whole launch does. Nobody computes the
    same tokens twice unless a preemption lies between, so a row that repeats tokens and context of
    the row before without one is the same chunk, further on.
    """
    order, same = _compare(run)
    later = np.zeros(len(order), dtype=np.bool_)
    later[order] = same
    return later


def chunk_numbers(run: RunEvents) -> IntArray:
    """For each row of ``chunk`` a number that it shares with the other layers of the same chunk."""
    order, same = _compare(run)
    numbers = np.zeros(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(~same)
    return numbers


def continued(run: RunEvents) -> BoolArray:
    """For each row of ``submitted``, whether it computes later layers of chunks begun before."""
    steps = run.tables["chunk"]["step"][later_layers(run)]
    found: BoolArray = np.isin(run.tables["submitted"]["step"], steps)
    return found


def _compare(run: RunEvents) -> tuple[IntArray, BoolArray]:
    """Rows of ``chunk`` by request and time, and which is the same chunk as the one before it."""
    chunk, preempted, launched = (run.tables[t] for t in ("chunk", "preempted", "submitted"))
    rows, count = np.argsort(launched["step"], kind="stable"), len(chunk["step"])
    if not count:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
    time = launched["time"][rows[np.searchsorted(launched["step"], chunk["step"], sorter=rows)]]
    request = np.concatenate((chunk["request"], preempted["request"]))
    times = np.concatenate((time, preempted["time"]))
    is_chunk = np.arange(len(request)) < count
    # A preemption comes before a launch at the same moment.
    order = np.lexsort((is_chunk, times, request))
    lost = np.cumsum(~is_chunk[order])[is_chunk[order]]  # preemptions before each row
    order = order[is_chunk[order]]
    same = np.diff(lost, prepend=-1) == 0
    for column in ("request", "tokens", "context"):
        same[1:] &= np.diff(chunk[column][order]) == 0
    return order, same
