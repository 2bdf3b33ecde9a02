"""Verdicts: one metric of one series against its rule, by equality or by statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from nexusbench.gates.rules import Rule
from nexusbench.gates.series import Run, RunSeries, Samples
from nexusbench.gates.statistics import permutation_p, shift, smallest_p

Verdict = Literal["pass", "warn", "inconclusive", "missing", "incompatible-env", "fail"]
# From the least to what decides a whole check.
RANKING: tuple[Verdict, ...] = (
    "pass", "warn", "inconclusive", "missing", "incompatible-env", "fail",
)  # fmt: skip
# Relative difference up to which two deterministic values are equal: the baseline's rounding, and
# sums whose order depends on the machine's vector units.
TOLERANCE = 1e-6
# Worse within the rule is reported if it is significant at this level, after Holm.
WARN_ALPHA = 0.05


class GateFinding(msgspec.Struct, kw_only=True):
    """One metric of one series, judged.

    ``change`` is (current - baseline) / abs(baseline), None from 0; ``worse`` is in the unit of the
    metric and positive where it worsened. ``p`` is for worsening, ``p_adjusted`` after Holm,
    ``p_better`` for an improvement. ``stored`` is False where the baseline itself has nothing to
    compare with.
    """

    series: str
    metric: str
    verdict: Verdict
    reason: str
    rule: str = ""
    tier: Literal["exact", "statistical", ""] = ""
    unit: str = ""
    better: str = ""
    baseline: float | None = None
    current: float | None = None
    change: float | None = None
    worse: float | None = None
    runs_baseline: int = 0
    runs_current: int = 0
    values: list[float] = []
    p: float | None = None
    p_better: float | None = None
    p_adjusted: float | None = None
    beyond: bool = False
    improved: bool = False
    confirmed: bool | None = None
    stored: bool = True


def judge_exact(name: str, rule: Rule, old: RunSeries, new: RunSeries) -> GateFinding:
    """A deterministic metric: the runs of equal seed are compared, no statistics.

    Worse beyond the rule is a fail, a smaller worsening a warning, and every change is reported.
    """
    before, after = old.metrics[rule.metric], new.metrics[rule.metric]
    finding = _finding(name, rule, before, "exact")
    left, right = _by_seed(old.runs, before), _by_seed(new.runs, after)
    if torn := _torn(new, right):
        finding.verdict, finding.reason = "inconclusive", torn
        return finding
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        finding.verdict = "missing"
        finding.reason = f"no run with a seed of the baseline ({_some(sorted(left))})"
        return finding
    was, now = ([side[seed][0] for seed in seeds] for side in (left, right))
    finding.runs_baseline = finding.runs_current = len(seeds)
    finding.values = now
    _measure(finding, rule, sum(was) / len(seeds), sum(now) / len(seeds))
    same = all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) for a, b in zip(was, now, strict=True))
    if same:
        finding.reason = "unchanged"
        finding.change, finding.worse, finding.beyond = (0.0 if was else None), 0.0, False
        return _of_fewer_seeds(finding, len(seeds), len(left))
    assert finding.worse is not None
    if finding.beyond:
        finding.verdict, finding.reason = "fail", f"worse by {_amount(finding)}, beyond the rule"
    elif finding.worse > 0:
        finding.verdict, finding.reason = "warn", f"worse by {_amount(finding)}, within the rule"
    elif finding.worse < 0:
        finding.improved, finding.reason = True, f"improved by {_amount(finding)}"
    else:
        finding.verdict, finding.reason = "warn", "changed in single runs, the same on average"
    return _of_fewer_seeds(finding, len(seeds), len(left))


def _of_fewer_seeds(finding: GateFinding, run: int, kept: int) -> GateFinding:
    if run < kept:
        finding.reason += f"; only {run} of the baseline's {kept} seeds were run"
    return finding


def _by_seed(runs: Sequence[Run], samples: Samples) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for run, value in zip(runs, samples.values, strict=True):
        if value is not None:
            found.setdefault(run.seed, []).append(value)
    return found


def _torn(series: RunSeries, values: dict[int, list[float]]) -> str:
    """Two runs of one seed that differ although they must not (I6); empty if there are none."""
    for seed, found in values.items():
        logs = {run.events for run in series.runs if run.seed == seed}
        if len(logs) > 1 or len(set(found)) > 1:
            return f"two runs of seed {seed} differ, so it is not deterministic (invariant I6)"
    return ""


def _some(seeds: Sequence[int]) -> str:
    shown = ", ".join(map(str, seeds[:5]))
    return shown + (", ..." if len(seeds) > 5 else "")


def judge_measured(name: str, rule: Rule, old: RunSeries, new: RunSeries) -> GateFinding:
    """A measured metric: size of the change and p-value; :func:`conclude` gives the verdict."""
    before, after = old.metrics[rule.metric], new.metrics[rule.metric]
    finding = _finding(name, rule, before, "statistical")
    was, now = before.known, after.known
    finding.runs_baseline, finding.runs_current, finding.values = len(was), len(now), now
    base = sum(was) / len(was)
    # The Hodges-Lehmann shift instead of the difference of means: one slow run moves it little.
    _measure(finding, rule, base, base + shift(was, now))
    finding.current = sum(now) / len(now)
    sign = 1.0 if before.better == "lower" else -1.0
    finding.p = permutation_p([sign * v for v in was], [sign * v for v in now])
    finding.p_better = permutation_p([-sign * v for v in was], [-sign * v for v in now])
    return finding


def can_fire(finding: GateFinding, alpha: float, tests: int, stages: int) -> bool:
    """Whether so many runs (twice those of now, if they are to be run again) could ever be
    significant among ``tests`` metrics.
    """
    return smallest_p(finding.runs_baseline, stages * finding.runs_current) * tests <= alpha


def conclude(finding: GateFinding, alpha: float, tests: int, stages: int) -> None:
    """The verdict of a measured metric whose ``p_adjusted`` is known.

    Fails if the rule is exceeded and the worsening is significant at ``alpha`` after Holm over
    ``tests`` metrics; significant within the rule is a warning. Beyond the rule but not
    significant, and too few runs to ever be significant, are inconclusive.
    """
    assert finding.p_adjusted is not None
    assert finding.p_better is not None
    assert finding.worse is not None
    chance = f"p = {finding.p_adjusted:.2g}"
    if not can_fire(finding, alpha, tests, stages):
        finding.verdict = "inconclusive"
        finding.reason = (
            f"{finding.runs_current} against {finding.runs_baseline} runs cannot tell a change "
            f"from chance over {tests} metrics"
        )
    elif finding.beyond and finding.p_adjusted <= alpha:
        finding.verdict = "fail"
        finding.reason = f"worse by {_amount(finding)}, beyond the rule ({chance})"
    elif finding.beyond:
        finding.verdict, finding.reason = "inconclusive", _unsure(finding)
    elif finding.worse > 0 and finding.p_adjusted <= max(alpha, WARN_ALPHA):
        finding.verdict = "warn"
        finding.reason = f"worse by {_amount(finding)}, within the rule ({chance})"
    elif finding.worse < 0 and finding.p_better <= alpha:
        finding.improved, finding.reason = True, f"improved by {_amount(finding)}"
    else:
        finding.reason = "no change that runs do not have by chance"


def settle(pooled: GateFinding, fresh: GateFinding, alpha: float) -> None:
    """The verdict after a rerun: ``pooled`` is of all runs, first and fresh, its ``p_adjusted``
    known; ``fresh`` is of the fresh ones.

    The first runs were beyond the rule, or there would be no rerun; a fail needs the fresh ones
    beyond it too, and all together significant.
    """
    assert pooled.p_adjusted is not None
    assert pooled.worse is not None
    chance = f"p = {pooled.p_adjusted:.2g}"
    pooled.confirmed = fresh.beyond and pooled.beyond and pooled.p_adjusted <= alpha
    if pooled.confirmed:
        pooled.verdict = "fail"
        pooled.reason = (
            f"worse by {_amount(pooled)}, beyond the rule ({chance}), confirmed by a rerun"
        )
    elif fresh.p is None:
        pooled.verdict = "inconclusive"
        pooled.reason = f"worse by {_amount(pooled)}, but the rerun: {fresh.reason}"
    elif fresh.beyond and pooled.beyond:
        pooled.verdict, pooled.reason = "inconclusive", f"{_unsure(pooled)}, after a rerun too"
    elif pooled.worse > 0 and pooled.p_adjusted <= max(alpha, WARN_ALPHA):
        pooled.verdict = "warn"
        pooled.reason = (
            f"worse by {_amount(pooled)} ({chance}), but not beyond the rule in a rerun: "
            "not confirmed"
        )
    else:
        pooled.verdict = "pass"
        pooled.reason = "beyond the rule at first, not in a rerun: chance"


def _unsure(finding: GateFinding) -> str:
    return (
        f"worse by {_amount(finding)}, beyond the rule, but runs differ as much by chance "
        f"(p = {finding.p_adjusted:.2g}; those of now spread over {_spread(finding)})"
    )


def number(value: float | None) -> str:
    """A value to five significant digits or its whole part; a dash where there is none."""
    if value is None:
        return "-"
    if value and not 1e-3 <= abs(value) < 1e9:
        return f"{value:.4g}"
    digits = max(0, 5 - len(str(int(abs(value)))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _spread(finding: GateFinding) -> str:
    """The range of the values in percent of their mean."""
    mean = sum(finding.values) / len(finding.values)
    size = max(finding.values) - min(finding.values)
    return f"{100 * size / abs(mean):.0f} %" if mean else f"{size:.4g} {finding.unit}"


def _finding(
    name: str, rule: Rule, samples: Samples, tier: Literal["exact", "statistical"]
) -> GateFinding:
    return GateFinding(
        series=name, metric=rule.metric, verdict="pass", reason="", rule=rule.text, tier=tier,
        unit=samples.unit, better=samples.better,
    )  # fmt: skip


def _measure(finding: GateFinding, rule: Rule, was: float, now: float) -> None:
    """Sizes of the change, and whether it is a worsening beyond both bounds of the rule."""
    finding.baseline, finding.current = was, now
    finding.change = (now - was) / abs(was) if was else None
    worse = now - was if finding.better == "lower" else was - now
    finding.worse = worse
    # A relative bound says nothing about a baseline of 0: any worsening exceeds it.
    beyond = worse > rule.relative * abs(was) + TOLERANCE * abs(was)
    finding.beyond = beyond and worse > rule.floor(finding.unit)


def _amount(finding: GateFinding) -> str:
    """The size of the change: percent and units."""
    assert finding.worse is not None
    size = f"{number(abs(finding.worse))} {finding.unit}"
    if finding.change is None:
        return f"{size} (from 0)"
    percent = 100 * abs(finding.change)
    return f"{percent:.1f} % ({size})" if percent >= 0.1 else f"{percent:.2g} % ({size})"
