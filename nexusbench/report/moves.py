"""Copies of KV blocks between memories, as spans of a timeline."""

from __future__ import annotations

from collections.abc import Iterator

from nexusbench.metrics.run_events import RunEvents
from nexusbench.report.trace_format import COPIES, Ranked, Window, encode, micros


def copy_spans(run: RunEvents, process: int, cut: Window) -> Iterator[Ranked]:
    """An asynchronous span per copy, from when it was asked for to its end, cut at the window's
    edges; those of one direction wait for each other, so they overlap.
    """
    moved, pools = run.tables["moved"], run.facts.pools
    found: list[Ranked] = []
    columns = [moved[name].tolist() for name in ("request", "time", "end", "source", "target")]
    for number, (request, begin, end, source, target) in enumerate(zip(*columns, strict=True)):
        if end <= cut.start or begin >= cut.end:
            continue
        way = f"{_name(pools, source)} to {_name(pools, target)}"
        for phase, time in (("b", max(begin, cut.start)), ("e", min(end, cut.end))):
            event = {
                "ph": phase, "pid": process, "tid": COPIES, "cat": "copy",
                "id": f"{process}.copy.{number}", "name": way, "ts": micros(time),
                "args": {
                    "request": str(run.requests["id"][request]),
                    "tokens": int(moved["tokens"][number]),
                },
            }  # fmt: skip
            found.append((time, 5, encode(event)))
    found.sort(key=lambda row: row[:2])
    yield from found


def _name(pools: tuple[str, ...], number: int) -> str:
    return pools[number] if 0 <= number < len(pools) else str(number)
