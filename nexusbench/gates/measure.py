"""The series of a gate: of stored runs, or of runs that are made for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from nexusbench.comparison.load import Load, load_by, load_sentence, rate_text
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InputError
from nexusbench.gates.check import Rerun
from nexusbench.gates.rules import Measure
from nexusbench.gates.series import (
    RunPoint,
    RunSeries,
    make_series,
    point_of_reader,
    point_of_result,
)
from nexusbench.results.manifest import MANIFEST_FILE
from nexusbench.results.reader import RunReader
from nexusbench.serving.runner import AnyProgress, run
from nexusbench.workloads.source import stored_sha256

# A run's title -> what follows its progress.
Follow = Callable[[str], AbstractContextManager[AnyProgress | None]]


_MOST_NAMED = 3  # series, in a note


def follow_nothing(title: str) -> AbstractContextManager[AnyProgress | None]:
    """A Follow that shows nothing."""
    return nullcontext()


def read_points(runs: Sequence[str], results: Path) -> list[RunPoint]:
    """Stored runs. Raises InputError naming what cannot be used."""
    return [point_of_reader(RunReader(name, results)) for name in runs]


def make_points(
    configs: Sequence[RunConfig], results: Path | None = None, follow: Follow = follow_nothing
) -> list[RunPoint]:
    """Run every config, one after the other; ``results`` keeps the runs."""
    points = []
    for number, config in enumerate(configs, 1):
        trace = Path(config.trace).name.partition(".")[0]
        title = f"{trace}, {config.scheduler}, seed {config.seed} ({number} of {len(configs)})"
        with follow(title) as progress:
            points.append(point_of_result(run(config, results=results, progress=progress)))
    return points


def load_notes(points: Sequence[RunPoint]) -> list[str]:
    """Of the series in which requests arrive faster than they leave, that their latencies measure a
    backlog: one note, however many there are.
    """
    told: dict[str, Load] = {}
    for point in points:
        load = load_by(point.values.get)
        if load.overloaded:
            told.setdefault(point.name, load)
    if not told:
        return []
    if len(told) == 1:
        ((name, load),) = told.items()
        sentence = load_sentence(load)
        return [f"{name}: {sentence[0].lower()}{sentence[1:]}"]
    total = len({point.name for point in points})
    named = [
        f"{name} (offered {rate_text(load.offered_rate)} req/s, finished "
        f"{rate_text(load.finished_rate)})"
        for name, load in list(told.items())[:_MOST_NAMED]
    ]
    more = f"; and {len(told) - _MOST_NAMED} more" if len(told) > _MOST_NAMED else ""
    return [
        f"requests arrive faster than they leave in {len(told)} of {total} series, whose latencies "
        f"measure the backlog more than the way of serving: {'; '.join(named)}{more}"
    ]


def rerunner(
    points: Sequence[RunPoint],
    measures: Mapping[str, Measure],
    wanted: Sequence[str],
    results: Path | None,
    follow: Follow,
) -> Rerun:
    """A Rerun that runs the configs of ``points`` again, only those of the series asked for."""

    def again(names: Sequence[str]) -> Mapping[str, RunSeries]:
        grouped = make_series(points, measures, wanted)
        made: dict[str, RunSeries] = {}
        for name in names:
            members = [p for p in points if p.environment == grouped[name].environment]
            fresh = make_points([_config(point) for point in members], results, follow)
            (series,) = make_series(fresh, measures, wanted).values()
            made[name] = series
        return made

    return again


def _config(point: RunPoint) -> RunConfig:
    """The config of a point, its trace still the same. Raises InputError if it cannot be run
    again.
    """
    made = point.config
    if not isinstance(made, RunConfig):
        raise InputError(
            "it is of a server", file=MANIFEST_FILE, field="config",
            hint="A replay against a server cannot be repeated to confirm a change",
        )  # fmt: skip
    found, recorded = stored_sha256(made.trace), str(point.environment["trace_sha256"])
    if not found.startswith(recorded):
        raise InputError(
            "is not the trace of the run any more, so the run cannot be confirmed", file=made.trace
        )
    return made
