"""Requests in a timeline: a span each, and flows to the launches that decided its latency."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nexusbench.core.events import OUTCOMES
from nexusbench.metrics.arrays import IntArray
from nexusbench.metrics.run_events import RunEvents
from nexusbench.report.trace_format import (
    ARRIVALS,
    BLOCK,
    PARTITIONS,
    Ranked,
    Window,
    encode,
    micros,
)

# What is written of a request, in its own order: phase letter and name (None: its own name).
_MARKS = (
    ("b", None),
    ("b", "queued"), ("e", "queued"),
    ("b", "prefill"), ("e", "prefill"),
    ("n", "first token"),
    ("b", "decode"), ("e", "decode"),
    ("e", None),
)  # fmt: skip


def request_spans(run: RunEvents, process: int, cut: Window) -> Iterator[Ranked]:
    """Each request from its arrival to its end, with its phases; cut at the window's edges."""
    times = _marks(run, cut)
    rows, kinds = np.nonzero(times >= 0)
    moments = times[rows, kinds]
    order = np.argsort(moments, kind="stable")
    ids, outcomes = run.requests["id"], run.outcome
    for request, kind, time in _in_blocks(rows[order], kinds[order], moments[order]):
        phase, name = _MARKS[kind]
        event: dict[str, Any] = {
            "ph": phase, "pid": process, "tid": ARRIVALS, "cat": "request",
            "id": f"{process}.{request}", "name": name or f"request {ids[request]}",
            "ts": micros(time),
        }  # fmt: skip
        if name is None and phase == "b":
            event["args"] = _facts(run, request)
        elif name is None:
            outcome = int(outcomes[request])
            event["args"] = {"outcome": OUTCOMES[outcome] if outcome >= 0 else "unfinished"}
        yield time, 5, encode(event)


def _facts(run: RunEvents, request: int) -> dict[str, Any]:
    arrival, first = int(run.arrival[request]), int(run.first_token[request])
    facts: dict[str, Any] = {
        "arrival s": arrival / 1e9,
        "prompt tokens": int(run.requests["prompt_tokens"][request]),
        "output tokens": int(run.num_output_tokens[request]),
    }
    if first >= 0:
        facts["TTFT ms"] = (first - arrival) / 1e6
    return facts


def _marks(run: RunEvents, cut: Window) -> IntArray:
    """Times of _MARKS, one row per request, -1 where there is none."""
    arrival, admitted, first = run.arrival, run.first_admitted, run.first_token
    last = max((int(c["time"].max()) for c in run.tables.values() if len(c.get("time", ()))),
               default=0)  # fmt: skip
    end = np.where(run.ended >= 0, run.ended, last)
    here = run.offered & (arrival < cut.end) & (end >= cut.start)
    marks = np.full((run.num_requests, len(_MARKS)), -1, dtype=np.int64)
    marks[here, 0] = arrival[here]
    marks[here, 8] = end[here]
    waits = here
    marks[waits, 1] = arrival[waits]
    marks[waits, 2] = np.where(admitted >= 0, admitted, end)[waits]
    serves = here & (admitted >= 0)
    marks[serves, 3] = admitted[serves]
    marks[serves, 4] = np.where(first >= 0, first, end)[serves]
    answers = serves & (first >= 0)
    marks[answers, 5] = marks[answers, 6] = first[answers]
    marks[answers, 7] = end[answers]
    if cut.start > 0 or int(marks.max(initial=0)) >= cut.end:
        _clip(marks, cut)
    return marks


def _clip(marks: IntArray, cut: Window) -> None:
    """Move the edges of spans to the window's, and drop what lies outside of it."""
    for begin, end in ((0, 8), (1, 2), (3, 4), (6, 7)):
        gone = (marks[:, begin] < 0) | (marks[:, end] < cut.start) | (marks[:, begin] >= cut.end)
        low = np.maximum(marks[:, begin], cut.start)
        high = np.minimum(marks[:, end], cut.end)
        marks[:, begin] = np.where(gone, -1, low)
        marks[:, end] = np.where(gone, -1, high)
    outside = (marks[:, 5] < cut.start) | (marks[:, 5] >= cut.end)
    marks[outside, 5] = -1


def flow_events(run: RunEvents, process: int, cut: Window) -> Iterator[Ranked]:
    """Arrivals as slices of no length, and arrows from there to the launches of a request.

    An arrow binds to the slice that encloses it, so it stands at the beginning of its launch. A
    flow with fewer than two ends in the window is left out.
    """
    times, ranks, requests, threads = _places(run, cut)
    number = np.bincount(requests, minlength=run.num_requests)
    written = np.zeros(run.num_requests, dtype=np.int64)
    for time, rank, request, thread in _in_blocks(times, ranks, requests, threads):
        name = f"request {run.requests['id'][request]}"
        event: dict[str, Any] = {"pid": process, "tid": thread, "name": name, "ts": micros(time)}
        if rank == 1:
            yield time, 1, encode({"ph": "X", **event, "cat": "arrival", "dur": 0})
        if number[request] < 2:
            continue
        written[request] += 1
        last = written[request] == number[request]
        phase = "s" if written[request] == 1 else "f" if last else "t"
        flow = {"ph": phase, **event, "cat": "flow", "id": f"{process}.{request}"}
        yield time, 2, encode({**flow, "bp": "e"} if last else flow)


def _in_blocks(*columns: IntArray) -> Iterator[tuple[int, ...]]:
    """Rows of columns as plain integers, never all of them at once."""
    for begin in range(0, len(columns[0]), BLOCK):
        yield from zip(*(column[begin : begin + BLOCK].tolist() for column in columns), strict=True)


def _places(run: RunEvents, cut: Window) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Where flows stop, in the order of time: time, rank (1 for an arrival), request, thread."""
    launches, submitted = run.all_launches, run.tables["submitted"]
    start = np.full(len(submitted["step"]) + 1, -1, dtype=np.int64)
    start[launches.row] = launches.start
    stops = _stops(run)
    # Two stops at one launch are one.
    stops[stops[:, 2] == stops[:, 1], 2] = -1
    stops[stops[:, 2] == stops[:, 0], 2] = -1
    stops[stops[:, 1] == stops[:, 0], 1] = -1
    arrived = np.flatnonzero(run.offered)
    requests, columns = np.nonzero(stops >= 0)
    rows = stops[requests, columns]
    times = np.concatenate((run.arrival[arrived], start[rows]))
    ranks = np.concatenate((np.ones_like(arrived), np.full_like(requests, 2)))
    threads = np.concatenate(
        (np.full_like(arrived, ARRIVALS), PARTITIONS + submitted["partition"][rows])
    )
    owners = np.concatenate((arrived, requests))
    keep = np.flatnonzero((times >= cut.start) & (times < cut.end))
    order = keep[np.lexsort((ranks[keep], times[keep]))]
    return times[order], ranks[order], owners[order], threads[order]


def _stops(run: RunEvents) -> IntArray:
    """Rows of ``submitted`` that first scheduled each request, gave its first and last token."""
    submitted, chunk, done = (run.tables[name] for name in ("submitted", "chunk", "step_done"))
    order = np.argsort(submitted["step"], kind="stable")

    def row_of(steps: IntArray) -> IntArray:
        found: IntArray = order[np.searchsorted(submitted["step"], steps, sorter=order)]
        return found

    stops = np.full((run.num_requests, 3), -1, dtype=np.int64)
    # Going backwards leaves the first of each request.
    stops[chunk["request"][::-1], 0] = row_of(chunk["step"][::-1])
    first, last = (np.full(run.num_requests, -1, dtype=np.int64) for _ in range(2))
    place = 0
    for part in run.token_parts():
        positions = np.arange(place, place + len(part))
        fresh = np.full(run.num_requests, -1, dtype=np.int64)
        fresh[part[::-1]] = positions[::-1]
        first = np.where(first < 0, fresh, first)
        last[part] = positions
        place += len(part)
    beyond = np.cumsum(done["tokens"])
    for column, positions in ((1, first), (2, last)):
        known = positions >= 0
        steps = done["step"][np.searchsorted(beyond, positions[known], side="right")]
        stops[known, column] = row_of(steps)
    # A launch that never ended has no slice to point at.
    ended = np.zeros(len(submitted["step"]) + 1, dtype=np.bool_)
    ended[run.all_launches.row] = True
    stops[~ended[stops]] = -1
    return stops
