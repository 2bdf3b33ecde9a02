"""Series: the runs of one configuration, every gated value of each, and where they were made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from nexusbench.core.config import EndpointConfig, RunConfig
from nexusbench.core.errors import InputError
from nexusbench.gates.environment import environment_of, name_of
from nexusbench.gates.rules import (
    GAPS,
    GUARDS,
    HOST_METRIC,
    NAMES_OF_SAMPLES,
    SAMPLES,
    Better,
    Measure,
)
from nexusbench.metrics.summary import STATISTICS, ScalarEntry, Summary
from nexusbench.results.manifest import MANIFEST_FILE
from nexusbench.results.resolved import Resolved, ResolvedEngineRun

if TYPE_CHECKING:
    from nexusbench.results.reader import RunReader
    from nexusbench.serving.runner import RunResult

Facts = dict[str, str | int | float | bool | None]


class Samples(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One metric over the runs of a series: a value per run, None where it has none.

    ``exact``: the same inputs give the same value on every machine, so no statistics are needed.
    """

    unit: str
    better: Better
    exact: bool
    values: list[float | None]

    @property
    def known(self) -> list[float]:
        """The values that there are."""
        return [value for value in self.values if value is not None]


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run of a series: its seed, and the SHA-256 of its event log where that means something
    (simulated).
    """

    seed: int
    events: str | None = None


class RunSeries(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Runs that differ in their seeds at most.

    ``environment`` decides every number, ``machine`` those that are measured (empty where none
    are); ``metrics`` hold one value per entry of ``runs``, in its order.
    """

    environment: Facts
    machine: Facts
    runs: list[Run]
    metrics: dict[str, Samples]


class RunPoint(msgspec.Struct, frozen=True):
    """One run as it enters a series; ``config`` makes it again."""

    name: str
    config: RunConfig | EndpointConfig
    environment: Facts
    machine: Facts
    simulated: bool
    run: Run
    values: dict[str, float | None]


def point_of_result(result: RunResult) -> RunPoint:
    """The point of a run that has just ended."""
    return _point(result.config, result.resolved, result.summary, result.event_digest)


def point_of_reader(reader: RunReader) -> RunPoint:
    """The point of a stored run. Raises InputError naming what it lacks: a run that did not end is
    no evidence.
    """
    from nexusbench.metrics.run_events import RunEvents
    from nexusbench.metrics.summary import summarise, usable_summary

    manifest = reader.manifest
    if not reader.complete:
        raise InputError(
            f"the run is {reader.status}: its numbers are of the part that was kept",
            file=reader.path / MANIFEST_FILE,
            field="status",
            hint="Run it again",
        )
    summary = usable_summary(reader.summary())
    if summary is None:
        summary = summarise(RunEvents.from_reader(reader))
    return _point(manifest.config, manifest.resolved, summary, manifest.event_digest)


def _point(
    config: RunConfig | EndpointConfig, resolved: Resolved, summary: Summary, digest: str
) -> RunPoint:
    environment = environment_of(config, resolved, summary.simulated)
    values: dict[str, float | None] = {}
    for tag, entry in summary.metrics.items():
        if isinstance(entry, ScalarEntry):
            values[tag] = entry.value
        else:
            values |= {f"{tag}.{name}": entry.get(name) for name in (*STATISTICS, "n")}
    if isinstance(resolved, ResolvedEngineRun) and resolved.decision_us is not UNSET:
        values |= {f"{HOST_METRIC}.{name}": value for name, value in resolved.decision_us.items()}
    run = Run(config.seed, digest if summary.simulated else None)
    machine: Facts = dict(resolved.machine)
    return RunPoint(
        name_of(environment), config, environment, machine, summary.simulated, run, values
    )


def make_series(
    points: Sequence[RunPoint], measures: Mapping[str, Measure], wanted: Iterable[str]
) -> dict[str, RunSeries]:
    """Points grouped into series by name, with the values of the ``wanted`` metrics and of what
    guards them.

    Runs of one name that were made of different things are told apart: the later ones get a number.
    """
    wanted = list(wanted)
    counts = [f"{tag}{NAMES_OF_SAMPLES}" for tag in (name.partition(".")[0] for name in wanted)]
    counts.append(GAPS)
    wanted = list(dict.fromkeys([*wanted, *GUARDS, *counts]))
    measures = {**GUARDS, **dict.fromkeys(counts, SAMPLES), **measures}
    groups: dict[str, list[RunPoint]] = {}
    for point in points:
        name, count = point.name, 1
        while name in groups and groups[name][0].environment != point.environment:
            count += 1
            name = f"{point.name} #{count}"
        groups.setdefault(name, []).append(point)
    return {name: _series(group, measures, wanted) for name, group in groups.items()}


def _series(
    points: Sequence[RunPoint], measures: Mapping[str, Measure], wanted: Sequence[str]
) -> RunSeries:
    ordered = sorted(points, key=lambda point: point.run.seed)
    first = ordered[0]
    machine: Facts = dict(first.machine)
    for point in ordered:
        # Runs of several machines are runs of none that can be compared with.
        different = [key for key in machine if point.machine.get(key) != machine[key]]
        machine |= dict.fromkeys(different, "several")
    metrics = {
        name: Samples(
            unit=measures[name].unit,
            better=measures[name].better,
            exact=first.simulated and measures[name].repeatable,
            values=[point.values.get(name) for point in ordered],
        )
        for name in wanted
        if any(point.values.get(name) is not None for point in ordered)
    }
    measured = any(not samples.exact for samples in metrics.values())
    return RunSeries(
        environment=first.environment,
        machine=machine if measured else {},
        runs=[point.run for point in ordered],
        metrics=metrics,
    )
