"""One finished or stored run as the tables read it, and runs of one policy over several seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from nexusbench.comparison.load import load_of
from nexusbench.core.config import EndpointConfig, RunConfig
from nexusbench.core.documents import JsonObject
from nexusbench.core.errors import InputError
from nexusbench.core.events import OUTCOMES
from nexusbench.core.printable import one_line
from nexusbench.results.resolved import Resolved, ResolvedEngineRun, ResolvedReplay

if TYPE_CHECKING:
    from nexusbench.metrics.groups import GroupRow
    from nexusbench.metrics.summary import Entry, Summary
    from nexusbench.results.reader import RunReader


class Judgement(msgspec.Struct, frozen=True):
    """By what runs are judged: None is each run's own. ``by`` names groupings of requests."""

    slo: dict[str, float] | None = None
    price_per_hour: float | None = None
    watts: float | None = None
    by: tuple[str, ...] = ()

    @property
    def own(self) -> bool:
        """Whether a stored summary serves."""
        given = (self.slo, self.price_per_hour, self.watts)
        return not self.by and all(value is None for value in given)


class RunView(msgspec.Struct):
    """A run: ``config`` is what was asked, ``resolved`` what it became, ``status`` how it ended."""

    label: str
    status: str
    simulated: bool
    config: RunConfig | EndpointConfig
    resolved: Resolved
    summary: Summary
    folder: Path | None = None
    event_digest: str = ""
    span_ns: int = 0  # of the requests' arrivals
    message: str = ""
    groups: dict[str, list[GroupRow]] = {}  # grouping -> its groups, where asked for
    rejections: dict[str, int] = {}  # reason -> requests
    failures: dict[str, int] = {}  # the same of what failed

    @property
    def complete(self) -> bool:
        """It was not cut short."""
        return self.status == "complete"

    @property
    def decision_us(self) -> Mapping[str, float]:
        """Real time per scheduling decision, microseconds; empty where unknown."""
        if isinstance(self.resolved, ResolvedReplay) or self.resolved.decision_us is UNSET:
            return {}
        return self.resolved.decision_us

    def as_json(self) -> JsonObject:
        """The run for ``--json``."""
        document = {
            "label": self.label,
            "run_id": self.folder.name if self.folder else None,
            "folder": str(self.folder) if self.folder else None,
            "status": self.status,
            "message": self.message,
            "simulated": self.simulated,
            "event_digest": self.event_digest,
            "rejections": self.rejections,
            "failures": self.failures,
            "load": msgspec.to_builtins(load_of(self.summary)),
            "config": msgspec.to_builtins(self.config),
            "resolved": msgspec.to_builtins(self.resolved),
            "summary": msgspec.to_builtins(self.summary),
        }
        return {**document, "groups": msgspec.to_builtins(self.groups)} if self.groups else document


class Estimate(msgspec.Struct, frozen=True):
    """A statistic: of one run, or the mean over seeds with half its 95 % interval. ``left_out`` is
    what it is without each of some blocks of the run (metrics/noise.py); empty where unknown.
    """

    value: float
    half: float | None = None
    left_out: tuple[float, ...] = ()


class Column(msgspec.Struct):
    """What one column of a table shows: the runs of one policy, one per seed."""

    label: str
    views: list[RunView]

    @property
    def first(self) -> RunView:
        """The run of the first seed."""
        return self.views[0]

    @property
    def complete(self) -> bool:
        """None of its runs was cut short, so that it may be called best."""
        return all(view.complete for view in self.views)

    @property
    def gpus(self) -> int:
        """GPUs that it uses: of a pair, of a group in lockstep."""
        return self.first.resolved.gpus

    def entry(self, tag: str) -> Entry | None:
        """A metric of the first seed, with its unit, direction and title."""
        return self.first.summary.metrics.get(tag)

    def statistic(self, tag: str, name: str) -> Estimate | None:
        """One statistic of a metric; None where no run has it."""
        if tag == "decision_us":
            return _estimate([view.decision_us.get(name) for view in self.views])
        found = _estimate([view.summary.value(tag, name) for view in self.views])
        if found is None:
            return None
        without = [view.summary.left_out.get(tag, {}).get(name) for view in self.views]
        return msgspec.structs.replace(found, left_out=_mean_of_each(without))

    @property
    def served(self) -> tuple[float, float]:
        """Shares of the offered requests and of their tokens that finished; 1 where unknown."""
        offered, finished = (
            sum(view.summary.value(tag) or 0 for view in self.views)
            for tag in ("offered", "finished")
        )
        work = self.statistic("finished_work", "value")
        return (finished / offered if offered else 1.0, 1.0 if work is None else work.value / 100)

    def per_gpu(self, tag: str) -> Estimate | None:
        """A rate of the whole run, for each GPU that it uses."""
        rate, gpus = self.statistic(tag, "value"), self.gpus
        if rate is None:
            return None
        half = None if rate.half is None else rate.half / gpus
        return Estimate(rate.value / gpus, half, tuple(value / gpus for value in rate.left_out))

    def weak(self, tag: str, name: str) -> bool:
        """In some run the percentile has too few samples beyond it."""
        entries = (view.summary.metrics.get(tag) for view in self.views)
        return any(entry is not None and name in entry.weak for entry in entries)

    def split_share(self) -> tuple[str, float] | None:
        """The split that was used longest, and its percentage of launched time."""
        totals: dict[str, float] = {}
        for view in self.views:
            for split, percent in view.summary.split_shares.items():
                totals[split] = totals.get(split, 0.0) + percent / len(self.views)
        if not totals:
            return None
        split = max(totals, key=lambda name: totals[name])
        return split, totals[split]


def _estimate(values: Sequence[float | None]) -> Estimate | None:
    from nexusbench.metrics.summary import interval

    known = [value for value in values if value is not None]
    if not known:
        return None
    found = interval(known)
    return Estimate(found.mean, found.half)


def _mean_of_each(rows: Sequence[Sequence[float] | None]) -> tuple[float, ...]:
    """The mean over seeds, block by block; nothing where some seed has other blocks, or none."""
    known = [row for row in rows if row]
    if not known or len(known) < len(rows) or len({len(row) for row in known}) > 1:
        return ()
    return tuple(sum(values) / len(known) for values in zip(*known, strict=True))


def view_of_reader(reader: RunReader, judgement: Judgement | None = None) -> RunView:
    """The view of a stored run, computed from its events where no stored summary serves.

    Raises InputError naming what is damaged.
    """
    from nexusbench.metrics.groups import group
    from nexusbench.metrics.run_events import RunEvents
    from nexusbench.metrics.summary import summarise, usable_summary

    judged = judgement or Judgement()
    manifest = reader.manifest
    _check_parts(reader)
    # Another version may have stored less of a summary than this one shows.
    summary = usable_summary(reader.summary()) if judged.own and reader.complete else None
    groups: dict[str, list[GroupRow]] = {}
    if summary is None:
        events = RunEvents.from_reader(
            reader, slo=judged.slo, price_per_hour=judged.price_per_hour, watts=judged.watts
        )
        summary = summarise(events)
        groups = {name: group(events, name) for name in judged.by}
    ended = reader.table("ended")
    config = manifest.config
    return RunView(
        label=one_line(config.scheduler if isinstance(config, RunConfig) else "endpoint"),
        status=reader.status,
        simulated=manifest.simulated,
        config=config,
        resolved=manifest.resolved,
        summary=summary,
        folder=reader.path,
        event_digest=manifest.event_digest,
        span_ns=span(reader.requests()["arrival"]),
        message=manifest.message,
        groups=groups,
        rejections=count_reasons(ended, manifest.strings, "rejected"),
        failures=count_reasons(ended, manifest.strings, "failed"),
    )


def _check_parts(reader: RunReader) -> None:
    """All event files that the manifest lists are there. Raises InputError naming the first that
    is not.
    """
    from nexusbench.results.store import EVENTS_FOLDER, part_file

    for number, rows in enumerate(reader.manifest.parts):
        for name in rows:
            file = reader.path / EVENTS_FOLDER / part_file(name, number)
            if not file.is_file():
                hint = "Restore it, or run again"
                raise InputError("missing, although the manifest lists it", file=file, hint=hint)


def count_reasons(ended: Mapping[str, Any], strings: Sequence[str], outcome: str) -> dict[str, int]:
    """Reason -> how many requests of an ``ended`` table had that ``outcome`` for it."""
    codes = ended["reason"][ended["outcome"] == OUTCOMES.index(outcome)].tolist()
    known = range(len(strings))
    return dict(Counter(strings[code] if code in known else "no reason given" for code in codes))


def span(arrivals: Any) -> int:
    """From the first to the last arrival, ns; what never arrived does not count."""
    known = arrivals[arrivals >= 0]
    return int(known.max() - known.min()) if len(known) else 0


def gpus_differ(columns: Sequence[Column]) -> bool:
    """Some use more GPUs than others: what they do per GPU is part of the comparison. The
    number of GPUs behind an endpoint is unknown.
    """
    known = all(isinstance(column.first.resolved, ResolvedEngineRun) for column in columns)
    return known and len({column.gpus for column in columns}) > 1


def by_label(views: Sequence[RunView]) -> list[Column]:
    """Columns in order of first appearance."""
    columns: dict[str, Column] = {}
    for view in views:
        columns.setdefault(view.label, Column(view.label, [])).views.append(view)
    return list(columns.values())
