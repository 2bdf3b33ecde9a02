"""Where requests arrive faster than they leave: the first thing to know of any latency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from nexusbench.comparison.view import Column
    from nexusbench.metrics.run_events import RunEvents


class Load(msgspec.Struct, frozen=True):
    """What was offered and what came of it while requests arrived. ``overloaded``: requests arrive
    faster than they leave (docs/metrics.md); None, with a reason, where that cannot be told.
    """

    overloaded: bool | None
    offered_rate: float | None  # requests per second
    finished_rate: float | None
    left_behind: int | None  # in the system at the last arrival
    offered: int
    finished: int
    reason: str = ""


def load_of(summary: Mapping[str, Any]) -> Load:
    """The load of a run by its summary."""
    metrics = summary.get("metrics", {})  # a run that failed has none

    def value(tag: str) -> Any:
        return metrics.get(tag, {}).get("value")

    overload, behind = value("overload"), value("left_behind")
    return Load(
        overloaded=None if overload is None else bool(overload),
        offered_rate=value("offered_rate"),
        finished_rate=value("finished_rate"),
        left_behind=None if behind is None else int(behind),
        offered=int(value("offered") or 0),
        finished=int(value("finished") or 0),
        reason=str(metrics.get("overload", {}).get("reason", "")),
    )


def load_of_run(run: RunEvents) -> Load:
    """The load of a run by its events."""
    from nexusbench.metrics.load import FinishedRate, LeftBehind, OfferedRate, Overload
    from nexusbench.metrics.requests import Finished, Offered
    from nexusbench.metrics.summary import summarise

    wanted = (Overload, OfferedRate, FinishedRate, LeftBehind, Offered, Finished)
    return load_of(summarise(run, {metric.tag: metric() for metric in wanted}))


def worst_load(loads: Iterable[Load | None]) -> Load | None:
    """Of those in which requests arrive faster than they leave the one that left most behind; None
    where there are none.
    """
    found = [load for load in loads if load is not None and load.overloaded]
    return max(found, key=lambda load: load.left_behind or 0) if found else None


def conditions(
    overloaded: int, total: int, *, simulated: bool, different: Sequence[str] = ()
) -> str:
    """Under what a verdict on so many runs holds, to stand before it: ``Simulated, overloaded: ``;
    empty where there is nothing to say. ``different`` is in what their loads differ.
    """
    words = ["simulated"] if simulated else []
    if overloaded:
        words.append("overloaded" if overloaded == total else "partly overloaded")
    if different:
        words.append(f"over different loads ({', '.join(different)})")
    text = ", ".join(words)
    return f"{text[0].upper()}{text[1:]}: " if text else ""


def is_overloaded(column: Column) -> bool:
    """In at least one of its seeds."""
    return _worst(column) is not None


def load_lines(columns: Sequence[Column]) -> list[str]:
    """A sentence about the columns in which requests arrive faster than they leave; none where
    there are none.
    """
    told = [(column.label, load) for column in columns if (load := _worst(column)) is not None]
    return lines_about(told, len(columns))


def lines_about(
    loads: Sequence[tuple[str, Load]], total: int, *, name_one: bool = False, most: int = 0
) -> list[str]:
    """The same of so many runs in all, by label, with the rates of at most ``most`` (0: of all); a
    lone one is named only with ``name_one``.
    """
    told = [(label, load) for label, load in loads if load.overloaded]
    if not told:
        return []
    if total == 1 and not name_one:
        return [f"{_FASTER} ({_rates(told[0][1])}). {_MEANING}"]
    every = len(told) == total
    more = f"; and {len(told) - most:,} more" if 0 < most < len(told) else ""
    where = "" if total == 1 else " in all runs" if every else " in some runs"
    meaning = _MEANING if every else _MEANING_SOME
    return [f"{_FASTER}{where} ({_table(told[: most or None])}{more}). {meaning}"]


def _table(told: Sequence[tuple[str, Load]]) -> str:
    """The rates of several columns; what is offered only once where it is the same."""
    named = [(" ".join(label.split()), load) for label, load in told]
    offered = {(load.offered_rate, load.offered) for _, load in named}
    alike = len(named) > 1 and len(offered) == 1
    if not alike or any(load.offered_rate is None for _, load in named):
        return "; ".join(f"{label}: {_rates(load)}" for label, load in named)
    first = named[0][1]
    finished = ", ".join(f"{label} {rate_text(load.finished_rate)}" for label, load in named)
    behind = ", ".join(f"{label} {load.left_behind:,}" for label, load in named)
    return (
        f"offered {rate_text(first.offered_rate)} req/s; finished while they arrived: {finished} "
        f"req/s; not ended at the last arrival: {behind} of {first.offered:,}"
    )


def load_sentence(load: Load) -> str:
    """The same of one run; empty where requests leave as fast as they arrive."""
    return f"{_FASTER} ({_rates(load)}). {_MEANING}" if load.overloaded else ""


_FASTER = "Requests arrive faster than they leave"
_MEANING = (
    "Latency then measures the backlog, which grows with the length of the trace, more than the "
    "way of serving"
)
_MEANING_SOME = "Their latency" + _MEANING.removeprefix("Latency")


def _worst(column: Column) -> Load | None:
    """Of the column's overloaded seeds the one that left most behind."""
    return worst_load(load_of(view.summary) for view in column.views)


def _rates(load: Load) -> str:
    behind = f"{load.left_behind:,} of {load.offered:,} not ended at the last arrival"
    if load.offered_rate is None or load.finished_rate is None:
        return f"all offered at one moment, {behind}"
    return (
        f"offered {rate_text(load.offered_rate)} req/s, finished {rate_text(load.finished_rate)} "
        f"req/s while they arrived, {behind}"
    )


def rate_text(rate: float | None) -> str:
    """Three digits, or all before the point."""
    if rate is None:
        return "-"
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.3g}"
