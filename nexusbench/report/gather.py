"""Stored runs put in order for a page: seeds pooled, loads apart, every run's series read once."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nexusbench.comparison.alike import find_warnings, label_apart
from nexusbench.comparison.load import is_overloaded
from nexusbench.comparison.view import Column, Judgement, RunView, view_of_reader
from nexusbench.core.config import fields_of
from nexusbench.core.documents import JsonObject
from nexusbench.core.units import NS_PER_S
from nexusbench.metrics.run_events import RunEvents
from nexusbench.report.series import DrawnSeries, busiest_moment, series_of
from nexusbench.results.manifest import Manifest
from nexusbench.results.reader import RunReader

# What of a config says, beside the trace, which requests arrive when. How long they may be and
# which of them are measured stay with what serves them.
_LOAD = [name for name in fields_of("load") if name not in ("too_long", "max_tokens", "warmup_s")]
# Of the load, what makes a title: its name in a config, and how it is written.
_TITLES = (
    ("request_rate", "{:g} req/s"),
    ("speed", "speed {:g}"),
    ("concurrency", "{:,} users"),
)
# So many runs are drawn in full; of more, each is drawn with fewer points.
_IN_FULL = 12


class Stored(msgspec.Struct):
    """One run as read: its view, its manifest, and what is drawn of it."""

    view: RunView
    manifest: Manifest
    series: DrawnSeries
    moment: int  # where its excerpt of launches begins, ns


class PageColumn(msgspec.Struct):
    """One column of a page: the runs of one policy under one load, one per seed."""

    column: Column
    runs: list[Stored]
    policy: int  # what serves, whatever the load
    rate: float | None  # offered requests per second, or users of a closed loop
    tone: int = 0  # decides its colour: the policy, where a setting has each only once

    @property
    def device(self) -> str:
        """Its name, which says what its shares are made of."""
        return self.column.first.resolved.device

    @property
    def series(self) -> DrawnSeries:
        """What is drawn: the first seed's."""
        return self.runs[0].series


class LoadSection(msgspec.Struct):
    """The columns that may be compared with each other: one load."""

    title: str
    entries: list[PageColumn]
    warnings: list[str]

    @property
    def columns(self) -> list[Column]:
        """As the table reads them."""
        return [entry.column for entry in self.entries]


def read_runs(readers: Sequence[RunReader], judgement: Judgement) -> list[Stored]:
    """All runs, one after the other. Raises InputError naming what is damaged."""
    stored: list[Stored] = []
    moments: dict[str, int] = {}
    detail = min(1.0, _IN_FULL / len(readers))
    for reader in readers:
        view = view_of_reader(reader, judgement)
        events = RunEvents.from_reader(reader, slo=judgement.slo)
        # The same excerpt under one load, so that schedulers can be compared in it.
        moment = moments.setdefault(_load_key(view), busiest_moment(events))
        stored.append(Stored(view, reader.manifest, series_of(events, moment, detail), moment))
    return stored


def gather(stored: Sequence[Stored]) -> list[LoadSection]:
    """Settings in the order given; one only, unless several schedulers served several loads."""
    entries = _pool_seeds(stored)
    loads: dict[str, list[PageColumn]] = {}
    for entry in entries:
        loads.setdefault(_load_key(entry.column.first), []).append(entry)
    met = [{entry.policy for entry in group} for group in loads.values()]
    apart = len(met) > 1 and all(len(policies) > 1 for policies in met)
    groups = list(loads.values()) if apart else [entries]
    once = all(len({entry.policy for entry in group}) == len(group) for group in groups)
    titles = _titles([group[0].column.first for group in groups])
    ordered = sorted(
        zip(titles, groups, strict=True), key=lambda pair: (pair[1][0].rate or 0.0, pair[0])
    )
    return [_setting(title, group, once) for title, group in ordered]


def overloaded_settings(settings: Sequence[LoadSection]) -> list[str]:
    """A sentence that names the loads at which requests arrive faster than they leave; nothing
    where there are none.
    """
    named = [
        f"{setting.title} ({', '.join(c.label for c in setting.columns if is_overloaded(c))})"
        for setting in settings
        if any(map(is_overloaded, setting.columns))
    ]
    if not named:
        return []
    return [
        f"Requests arrive faster than they leave at {'; '.join(named)}: latency there measures the "
        "backlog more than the way of serving."
    ]


def _setting(title: str, entries: list[PageColumn], once: bool) -> LoadSection:
    alone = all(len(entry.runs) == 1 for entry in entries)
    label_apart([entry.column.first for entry in entries], seeds=alone)
    for position, entry in enumerate(entries):
        entry.tone = entry.policy if once else position
        entry.column.label = entry.column.first.label
        for run in entry.runs:
            run.view.label = entry.column.label
    return LoadSection(title, entries, find_warnings([e.column.first for e in entries]))


def _pool_seeds(stored: Sequence[Stored]) -> list[PageColumn]:
    """Runs that differ in nothing but the seed become one entry."""
    found: dict[str, list[PageColumn]] = {}
    policies: dict[str, int] = {}
    entries: list[PageColumn] = []
    for run in stored:
        policy = _policy_key(run.view)
        key = f"{policy} {_load_key(run.view)}"
        seed = run.view.config.seed
        for entry in found.setdefault(key, []):
            if all(other.view.config.seed != seed for other in entry.runs):
                entry.column.views.append(run.view)
                entry.runs.append(run)
                break
        else:
            number = policies.setdefault(policy, len(policies))
            column = Column(run.view.label, [run.view])
            entries.append(PageColumn(column, [run], number, offered_rate(run.view)))
            found[key].append(entries[-1])
    return entries


def offered_rate(view: RunView) -> float | None:
    """Requests per second that the trace offered; the users of a closed loop; None for one
    request.
    """
    users = view.config.concurrency
    if users:
        return float(users)
    offered = view.summary.value("offered") or 0
    return (offered - 1) * NS_PER_S / view.span_ns if view.span_ns and offered > 1 else None


def _load_key(view: RunView) -> str:
    trace = view.resolved.trace
    load = [getattr(view.config, name) for name in _LOAD]
    return msgspec.json.encode([trace.sha256, trace.name, load]).decode()


def _policy_key(view: RunView) -> str:
    asked: JsonObject = msgspec.to_builtins(view.config)
    kept = {key: value for key, value in asked.items() if key not in (*_LOAD, "trace", "seed")}
    return msgspec.json.encode(kept, order="sorted").decode()


def _titles(views: Sequence[RunView]) -> list[str]:
    """Short names of loads: what differs between them."""
    several = len({view.resolved.trace.name for view in views}) > 1
    titles: list[str] = []
    for view in views:
        words = [view.resolved.trace.name] if several else []
        for name, form in _TITLES:
            values = {getattr(other.config, name) for other in views}
            value = getattr(view.config, name)
            if len(values) > 1:
                words.append("as recorded" if value is None else form.format(value))
        title = ", ".join(words) or "all runs"
        titles.append(title if title not in titles else f"{title} #{titles.count(title) + 1}")
    return titles
