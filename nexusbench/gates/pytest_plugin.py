"""The pytest plugin: a fixture ``nexusbench_gate`` that judges runs or any numbers by a baseline.

Every pytest of an environment imports this module, so it imports nothing else before it is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nexusbench.gates.check import Report, Rerun
    from nexusbench.gates.rules import Measure
    from nexusbench.gates.series import RunSeries

SAVE_FLAG = "--nexusbench-gate-save"


class GateWarning(UserWarning):
    """A metric worsened, but not by enough to fail, or not again in a rerun."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the flag that writes baselines."""
    parser.getgroup("nexusbench").addoption(
        SAVE_FLAG, action="store_true",
        help="write what nexusbench_gate.check is given as the baseline, instead of judging it",
    )  # fmt: skip


@pytest.fixture
def nexusbench_gate(request: pytest.FixtureRequest) -> Gate:
    """Judges by a committed baseline; see :meth:`Gate.check`."""
    saving = bool(request.config.getoption(SAVE_FLAG))
    return Gate(request.path.parent, request.node.nodeid, saving=saving)


class Gate:
    """What the fixture gives: ``folder`` is the test's, ``name`` calls series of plain numbers."""

    def __init__(self, folder: Path, name: str, *, saving: bool = False) -> None:
        self.folder, self.name, self.saving = folder, name, saving

    def check(
        self,
        runs: Any,
        rules: Sequence[str] | None = None,
        *,
        baseline: str | Path,
        name: str | None = None,
        unit: str = "",
        better: str = "lower",
        exact: bool = False,
        rerun: Callable[[], Any] | None = None,
        alpha: float | None = None,
    ) -> Report:
        """Judge ``runs`` by the file ``baseline`` (relative to the test's folder).

        ``runs`` is a RunResult, the folder of a run, several of either, or a dictionary of names
        and numbers, one per run; then ``unit``, ``better`` ("lower" or "higher") and ``exact`` say
        what the numbers are. ``rules`` are as for ``nexusbench gate check``. ``rerun`` makes the
        same again: with it only what is beyond its rule twice can fail.

        The test fails on a regression and on a missing baseline, warns (GateWarning) on a warning,
        and is skipped where nothing can be told: inconclusive, or made on another machine.
        """
        from nexusbench.gates.baseline import load_baseline, merged, save_baseline
        from nexusbench.gates.check import check
        from nexusbench.gates.rules import DEFAULT_RULES, parse_rules, run_measures

        own = isinstance(runs, Mapping)
        if own and not rules:
            raise ValueError(f"rules are missing for {', '.join(map(str, runs))}")
        measures = _measures(runs, unit, better, exact) if own else run_measures()
        chosen = parse_rules(rules or DEFAULT_RULES, measures)
        wanted = [rule.metric for rule in chosen]

        def series_of(values: Any) -> dict[str, RunSeries]:
            if own:
                return {name or self.name: _own_series(values, measures)}
            return _run_series(values, measures, wanted)

        path = self.folder / baseline
        current = series_of(runs)
        if self.saving:
            old = load_baseline(path) if path.exists() else {}
            save_baseline(path, merged(old, current, keep_others=True)[0])
            pytest.skip(f"saved to {path.name}")
        if not path.exists():
            pytest.fail(f"there is no baseline {path}. Make it: pytest {SAVE_FLAG}", pytrace=False)
        again: Rerun | None = None
        if rerun is not None:
            again = lambda names: series_of(rerun())  # noqa: E731
        report = check(
            load_baseline(path), current, chosen, source=path.name, alpha=alpha, rerun=again
        )
        _act(report)
        return report


def _measures(values: Mapping[str, Any], unit: str, better: str, exact: bool) -> dict[str, Measure]:
    from nexusbench.gates.rules import Measure

    if better not in ("lower", "higher"):
        raise ValueError(f"better is 'lower' or 'higher', not {better!r}")
    return {
        name: Measure(unit, "higher" if better == "higher" else "lower", exact) for name in values
    }


def _own_series(values: Mapping[str, Any], measures: Mapping[str, Measure]) -> RunSeries:
    """Plain numbers as a series; a single number is one run."""
    import math

    from nexusbench.gates.series import Run, RunSeries, Samples
    from nexusbench.results.machine import machine_facts

    rows = {
        name: [float(v) for v in (found if isinstance(found, Sequence) else [found])]
        for name, found in values.items()
    }
    lengths = {len(row) for row in rows.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError("give as many numbers for every name, one per run, and at least one")
    if not all(math.isfinite(value) for row in rows.values() for value in row):
        raise ValueError("a number is not finite; leave out what has no value")
    (count,) = lengths
    metrics = {
        name: Samples(
            unit=measures[name].unit,
            better=measures[name].better,
            exact=measures[name].repeatable,
            values=list(row),
        )
        for name, row in rows.items()
    }
    return RunSeries(
        environment={},
        machine=dict(machine_facts()),
        runs=[Run(number) for number in range(count)],
        metrics=metrics,
    )


def _run_series(
    runs: Any, measures: Mapping[str, Measure], wanted: Sequence[str]
) -> dict[str, RunSeries]:
    from nexusbench.gates.series import make_series, point_of_reader, point_of_result
    from nexusbench.results.reader import RunReader

    several = runs if isinstance(runs, Sequence) and not isinstance(runs, str) else [runs]
    points = [
        point_of_reader(RunReader(one)) if isinstance(one, str | Path) else point_of_result(one)
        for one in several
    ]
    return make_series(points, measures, wanted)


def _act(report: Report) -> None:
    """Turn a report into an outcome of pytest: a failure, a skip, a warning."""
    from nexusbench.gates.outputs import change, sentence, worst_first

    told = [f for f in worst_first(report.findings) if f.verdict != "pass"]
    lines = [f"{f.verdict}: {f.metric} {change(f)} ({f.rule}): {f.reason}" for f in told]
    text = "\n".join([sentence(report), *lines, *report.notes])
    if report.verdict in ("fail", "missing"):
        text += f"\nif this is meant, make it the new baseline: pytest {SAVE_FLAG}"
        pytest.fail(text, pytrace=False)
    if report.verdict in ("inconclusive", "incompatible-env"):
        pytest.skip(text)
    if report.verdict == "warn":
        warnings.warn(text, GateWarning, stacklevel=3)
