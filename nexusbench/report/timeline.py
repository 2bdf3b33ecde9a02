"""A run as Chrome trace events, for Perfetto (ui.perfetto.dev) and chrome://tracing.

Format: "Trace Event Format" (Chromium), JSON object form, times in microseconds. One process per
run; in it a thread per partition with a slice per launch, a thread for the split and one for
arrivals; counters; an asynchronous span per request and per copy of KV blocks; flows from a
request's arrival to the launches that first scheduled it, gave its first token, and its last.
Events are written as they are made, in the order of time within a run, so a long run needs no more
memory than its event tables.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nexusbench import __version__
from nexusbench.core.errors import UsageError
from nexusbench.core.events import PREEMPTION_KINDS
from nexusbench.core.outputs import atomic_file
from nexusbench.core.parts import unit_of
from nexusbench.core.units import NS_PER_S
from nexusbench.metrics.arrays import IntArray
from nexusbench.metrics.occupancy import kv_over_time, queue_over_time
from nexusbench.metrics.run_events import RunEvents
from nexusbench.report.escape import plain
from nexusbench.report.moves import copy_spans
from nexusbench.report.requests import flow_events, request_spans
from nexusbench.report.trace_format import (
    ARRIVALS,
    BLOCK,
    COPIES,
    PARTITIONS,
    SPLIT,
    Ranked,
    Window,
    encode,
    micros,
)

_LAST_NS = int(np.iinfo(np.int64).max)


def _ns(seconds: float, whole: Callable[[float], int]) -> int:
    """Nanoseconds, of which a run has at most 63 bits: what is later is later than all of it."""
    return _LAST_NS if seconds >= _LAST_NS / NS_PER_S else whole(seconds * NS_PER_S)


class TimelineWriter:
    """Writes runs, one process each, into one file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._runs: list[dict[str, Any]] = []
        self._empty = True
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[')

    def add(self, run: RunEvents, label: str, window: tuple[float, float | None]) -> None:
        """Append a run; ``window`` in seconds. Raises UsageError if nothing happens in it."""
        label, (low, high) = plain(label), window
        cut = Window(_ns(low, round), _LAST_NS if high is None else _ns(high, math.ceil))
        last = _last_moment(run)
        if cut.start > last:
            raise UsageError(
                f"--window: {label} ends at {last / NS_PER_S:g} s, before {low:g} s. "
                "Choose an earlier one"
            )
        process = len(self._runs) + 1
        state = "simulated" if run.facts.simulated else "measured"
        self._runs.append({"pid": process, "label": label, "simulated": run.facts.simulated})
        for event in _names(run, process, f"{label} ({state})"):
            self._write(encode(event))
        for _, _, line in heapq.merge(*_streams(run, process, cut)):
            self._write(line)

    def close(self) -> None:
        """End the document."""
        facts = {"generator": f"nexusbench {__version__}", "runs": self._runs}
        self._file.write(b'\n],"otherData":' + encode(facts) + b"}\n")

    def _write(self, event: bytes) -> None:
        self._file.write(b"\n" + event if self._empty else b",\n" + event)
        self._empty = False


@contextmanager
def timeline_file(path: Path) -> Iterator[TimelineWriter]:
    """A timeline that is whole or not there. Raises UsageError if it cannot be written."""
    with atomic_file(path) as file:
        writer = TimelineWriter(file)
        yield writer
        writer.close()


def _last_moment(run: RunEvents) -> int:
    times = [c["time"] for c in run.tables.values() if "time" in c and len(c["time"])]
    return max((int(column.max()) for column in times), default=0)


def _names(run: RunEvents, process: int, name: str) -> Iterator[dict[str, Any]]:
    """Names of the process and its threads, and their order."""
    threads, facts = {ARRIVALS: "arrivals", SPLIT: "split"}, run.facts
    if len(run.tables["moved"]["time"]):
        threads[COPIES] = "KV copies"
    for code, partition in enumerate(facts.partitions):
        on = f" on {facts.pools[facts.homes[code]]}" if len(set(facts.homes)) > 1 else ""
        threads[PARTITIONS + code] = f"partition {partition}{on}"
    yield _meta(process, 0, "process_name", {"name": name})
    yield _meta(process, 0, "process_sort_index", {"sort_index": process})
    for thread, text in threads.items():
        yield _meta(process, thread, "thread_name", {"name": text})
        yield _meta(process, thread, "thread_sort_index", {"sort_index": thread})


def _meta(process: int, thread: int, name: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": thread, "name": name, "args": args}


def _streams(run: RunEvents, process: int, cut: Window) -> list[Iterable[Ranked]]:
    """Everything to write, each stream in the order of time."""
    queue, kv = queue_over_time(run), kv_over_time(run)
    if run.facts.observed == "client":  # sees no launches, no blocks, and what waits for nothing
        counted = _counter(process, cut, "requests", queue.times, running=queue.running)
        return [counted, request_spans(run, process, cut)]
    streams: list[Iterable[Ranked]] = [
        _launches(run, process, cut),
        _splits(run, process, cut),
        _preemptions(run, process, cut),
        _counter(process, cut, "requests", queue.times, waiting=queue.waiting,
                 running=queue.running),
        _counter(process, cut, "KV blocks", kv.times, used=kv.values),
        request_spans(run, process, cut),
        copy_spans(run, process, cut),
        flow_events(run, process, cut),
    ]  # fmt: skip
    unit = unit_of(run.facts.device)
    for code, partition in enumerate(run.facts.partitions):
        times, values = _sms(run, code)
        streams.append(_counter(process, cut, f"{unit} {partition}", times, **{unit: values}))
    return streams


def _launches(run: RunEvents, process: int, cut: Window) -> Iterator[Ranked]:
    """A slice per launch: what was computed, on how many SMs, and how well it was predicted."""
    launches = run.all_launches
    order = np.argsort(launches.start, kind="stable")
    order = order[(launches.end[order] > cut.start) & (launches.start[order] < cut.end)]
    submitted, unit = run.tables["submitted"], unit_of(run.facts.device)
    for begin in range(0, len(order), BLOCK):
        rows = order[begin : begin + BLOCK]
        at = launches.row[rows]
        columns = [submitted[name][at].tolist() for name in _LAUNCH]
        times = (launches.start[rows].tolist(), launches.end[rows].tolist())
        for start, end, solo, *values in zip(
            *times, launches.solo[rows].tolist(), *columns, strict=True
        ):
            yield (
                start,
                1,
                _launch(process, start, end, solo, dict(zip(_LAUNCH, values, strict=True)), unit),
            )


_LAUNCH = (
    "step", "partition", "sms", "decodes", "decode_context", "chunks", "prefill_tokens",
    "predicted",
)  # fmt: skip


def _launch(
    process: int, start: int, end: int, solo: int, seen: dict[str, int], unit: str
) -> bytes:
    decodes, tokens = seen["decodes"], seen["prefill_tokens"]
    kind = "mixed" if decodes and tokens else "prefill" if tokens else "decode"
    sizes = [f"{tokens} tok"] if tokens else []
    sizes += [f"x{decodes}"] if decodes else []
    actual, predicted = end - start, seen["predicted"]
    args: dict[str, Any] = {
        "step": seen["step"],
        "kind": kind,
        unit: seen["sms"],
        "decodes": decodes,
        "decode context": seen["decode_context"],
        "chunks": seen["chunks"],
        "prefill tokens": tokens,
        "actual ms": actual / 1e6,
    }
    if solo >= 0:
        args["alone ms"] = solo / 1e6
    if predicted >= 0:
        args["predicted ms"] = predicted / 1e6
        if actual:
            args["prediction error %"] = round(100 * (predicted - actual) / actual, 2)
    return encode(
        {
            "ph": "X", "pid": process, "tid": PARTITIONS + seen["partition"], "cat": kind,
            "name": f"{kind} {' '.join(sizes)}", "ts": micros(start), "dur": micros(actual),
            "args": args,
        }
    )  # fmt: skip


def _splits(run: RunEvents, process: int, cut: Window) -> Iterator[Ranked]:
    """An instant per re-partition, with what each partition got."""
    changes, facts = run.tables["repartitioned"], run.facts
    for time, split, reason in zip(*(changes[c].tolist() for c in changes), strict=True):
        if not cut.holds(time):
            continue
        row = facts.splits[split] if 0 <= split < len(facts.splits) else ()
        args: dict[str, Any] = dict(zip(facts.partitions, row, strict=False))
        if 0 <= reason < len(facts.strings):
            args["reason"] = facts.strings[reason]
        yield time, 3, encode(
            {
                "ph": "i", "s": "p", "pid": process, "tid": SPLIT, "cat": "split",
                "name": f"split {'/'.join(map(str, row))}", "ts": micros(time), "args": args,
            }
        )  # fmt: skip


def _preemptions(run: RunEvents, process: int, cut: Window) -> Iterator[Ranked]:
    """An instant per preemption."""
    rows = run.tables["preempted"]
    for request, time, kind, lost in zip(*(rows[c].tolist() for c in rows), strict=True):
        if cut.holds(time):
            args = {"kind": PREEMPTION_KINDS[kind], "lost tokens": lost}
            yield time, 3, encode(
                {
                    "ph": "i", "s": "t", "pid": process, "tid": ARRIVALS, "cat": "preemption",
                    "name": f"preempted {run.requests['id'][request]}", "ts": micros(time),
                    "args": args,
                }
            )  # fmt: skip


def _counter(
    process: int, cut: Window, name: str, times: IntArray, **series: IntArray
) -> Iterator[Ranked]:
    """A counter track; what held when the window begins is its first value."""
    first = max(0, int(np.searchsorted(times, cut.start, side="right")) - 1)
    beyond = int(np.searchsorted(times, cut.end, side="left"))
    for begin in range(first, beyond, BLOCK):
        part = slice(begin, min(beyond, begin + BLOCK))
        columns = [values[part].tolist() for values in series.values()]
        for time, *values in zip(times[part].tolist(), *columns, strict=True):
            moment = max(time, cut.start)
            yield moment, 4, encode(
                {
                    "ph": "C", "pid": process, "tid": 0, "name": name, "ts": micros(moment),
                    "args": dict(zip(series, values, strict=True)),
                }
            )  # fmt: skip


def _sms(run: RunEvents, partition: int) -> tuple[IntArray, IntArray]:
    """SMs on which a partition computes, 0 between its launches."""
    launches = run.all_launches
    mine = run.tables["submitted"]["partition"][launches.row] == partition
    start, end = launches.start[mine], launches.end[mine]
    sms = run.tables["submitted"]["sms"][launches.row][mine]
    # Ends before starts, so that at one moment the launch that begins has the last word.
    times = np.concatenate((end, start))
    values = np.concatenate((np.zeros_like(sms), sms))
    order = np.argsort(times, kind="stable")
    times, values = times[order], values[order]
    last = np.append(times[1:] != times[:-1], True) if len(times) else np.zeros(0, dtype=np.bool_)
    return times[last], values[last]
