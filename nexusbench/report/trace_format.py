"""Pieces of the Chrome trace event format that all writers of a timeline share."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from nexusbench.core.units import NS_PER_US

TraceEvent = dict[str, Any]  # one event of the format, or the ``args`` of one

# Threads of a process; partitions follow from PARTITIONS on.
ARRIVALS, SPLIT, COPIES, PARTITIONS = 1, 2, 3, 10
BLOCK = 65_536  # rows turned into Python objects at a time

# Time, rank among events of one moment, the event. Slices are written before what refers to them.
Ranked = tuple[int, int, bytes]


class Window(NamedTuple):
    """What is written, ns of the run's clock: what touches [start, end)."""

    start: int
    end: int

    def holds(self, time: int) -> bool:
        """The moment lies in it."""
        return self.start <= time < self.end


def micros(ns: int) -> float:
    """Microseconds, the unit of the format, without loss of nanoseconds."""
    return ns / NS_PER_US


def encode(event: TraceEvent) -> bytes:
    """One event as JSON."""
    return msgspec.json.encode(event)
