"""A checker of the Chrome trace event format, as far as our timelines use it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Event = dict[str, Any]
# Phase -> keys that must be there, besides ph, pid and name.
REQUIRED = {
    "M": {"args"},
    "X": {"tid", "ts", "dur", "cat"},
    "C": {"ts", "args"},
    "i": {"tid", "ts", "s"},
    "b": {"ts", "id", "cat"},
    "n": {"ts", "id", "cat"},
    "e": {"ts", "id", "cat"},
    "s": {"tid", "ts", "id", "cat"},
    "t": {"tid", "ts", "id", "cat"},
    "f": {"tid", "ts", "id", "cat", "bp"},
}


def load_events(path: Path) -> list[Event]:
    document = json.loads(path.read_text())
    assert set(document) == {"displayTimeUnit", "traceEvents", "otherData"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    events: list[Event] = document["traceEvents"]
    return events


def check(events: list[Event]) -> None:
    """Raises AssertionError that names the first event which is wrong."""
    for event in events:
        missing = ({"ph", "pid", "name"} | REQUIRED[event["ph"]]) - set(event)
        assert not missing, f"{event} lacks {missing}"
        assert isinstance(event["name"], str)
        assert event["name"], event
        assert event.get("ts", 0) >= 0, event
        assert event.get("dur", 0) >= 0, event
    _check_names(events)
    _check_order(events)
    _check_slices(events)
    _check_spans(events)
    _check_flows(events)
    for event in (event for event in events if event["ph"] == "C"):
        assert event["args"], event
        assert all(isinstance(v, int | float) for v in event["args"].values()), event


def _check_names(events: Iterable[Event]) -> None:
    processes = {e["pid"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    named = [e for e in events if e["ph"] == "M" and e["name"] == "thread_name"]
    threads = {(e["pid"], e["tid"]) for e in named}
    for event in events:
        assert event["pid"] in processes, f"process of {event} has no name"
        if event["ph"] in "Xistf":
            assert (event["pid"], event["tid"]) in threads, f"thread of {event} has no name"


def _check_order(events: Iterable[Event]) -> None:
    last: dict[int, float] = defaultdict(float)
    for event in events:
        if event["ph"] != "M":
            assert event["ts"] >= last[event["pid"]], f"{event} goes back in time"
            last[event["pid"]] = event["ts"]


def _check_slices(events: Iterable[Event]) -> None:
    """Slices of a thread follow each other: a viewer drops what overlaps without nesting."""
    ends: dict[tuple[int, int], float] = defaultdict(float)
    for event in events:
        if event["ph"] == "X":
            place = event["pid"], event["tid"]
            assert event["ts"] >= ends[place] - 1e-3, f"{event} overlaps the slice before it"
            ends[place] = event["ts"] + event["dur"]


def _check_spans(events: Iterable[Event]) -> None:
    open_spans: dict[tuple[str, str], list[str]] = defaultdict(list)
    for event in events:
        key = event.get("cat", ""), str(event.get("id"))
        if event["ph"] == "b":
            open_spans[key].append(event["name"])
        elif event["ph"] == "e":
            assert open_spans[key], f"{event} ends what never began"
            assert open_spans[key].pop() == event["name"], f"{event} ends another span"
        elif event["ph"] == "n":
            assert open_spans[key], f"{event} lies in no span"
    assert not any(open_spans.values()), "spans without an end"


def _check_flows(events: Iterable[Event]) -> None:
    """Each flow begins once, ends once, and binds to slices."""
    phases: dict[str, str] = defaultdict(str)
    slices: dict[tuple[int, int], Event] = {}
    for event in events:
        if event["ph"] == "X":
            slices[event["pid"], event["tid"]] = event
        elif event["ph"] in "stf":
            phases[event["id"]] += event["ph"]
            bound = slices[event["pid"], event["tid"]]
            inside = bound["ts"] <= event["ts"] <= bound["ts"] + bound["dur"]
            assert inside, f"{event} lies in no slice"
    for flow, seen in phases.items():
        assert seen[0] == "s", flow
        assert seen[-1] == "f", flow
        assert set(seen[1:-1]) <= {"t"}, flow
