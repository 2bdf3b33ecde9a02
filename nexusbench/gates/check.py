"""The check: series matched with the baseline, every rule judged, one verdict and exit code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from nexusbench.gates.environment import Facts, differences
from nexusbench.gates.rules import Rule
from nexusbench.gates.series import RunSeries
from nexusbench.gates.statistics import holm, runs_to_fire
from nexusbench.gates.turned_away import guard
from nexusbench.gates.verdicts import (
    RANKING,
    GateFinding,
    Verdict,
    can_fire,
    conclude,
    judge_exact,
    judge_measured,
    settle,
)

SCHEMA = 1
EXIT_PASS, EXIT_REGRESSION, EXIT_INCONCLUSIVE, EXIT_NO_BASELINE = 0, 3, 4, 5
# The chance of any false alarm in a check, with a rerun or without: the least that lets five runs
# against five fire for two metrics, 2/252, and low enough for 2 % to be shown (docs/ci.md).
ALPHA = 0.008
# A baseline series is taken for a foreign one's if at most so many things differ.
_MOST_DIFFERENT = 6

# Names of series -> the same series, run again.
Rerun = Callable[[Sequence[str]], Mapping[str, RunSeries]]


class Report(msgspec.Struct, kw_only=True):
    """What a check found: ``verdict`` is that of the whole, ``notes`` concern no single metric."""

    verdict: Verdict
    exit_code: int
    baseline: str
    alpha: float
    confirm: bool
    findings: list[GateFinding]
    notes: list[str] = []
    simulated: bool = True

    def count(self, verdict: Verdict) -> int:
        """Metrics of this verdict."""
        return sum(finding.verdict == verdict for finding in self.findings)


def check(
    baseline: Mapping[str, RunSeries],
    current: Mapping[str, RunSeries],
    rules: Sequence[Rule],
    *,
    source: str = "",
    alpha: float | None = None,
    rerun: Rerun | None = None,
) -> Report:
    """Judge ``current`` by ``baseline``, each rule for each series.

    A metric of a simulated run is deterministic and compared exactly. A measured one fails only if
    it is worse by more than the rule's share and its floor, and the one-sided permutation test says
    so after Holm over all measured metrics of the check. With ``rerun``, whatever is beyond its
    rule is run again: the fresh runs must be beyond it too, and the test is of all runs together.
    What passes over fewer requests than the baseline's is taken back (turned_away.py).
    Raises UsageError for a rule whose unit does not fit.
    """
    level = ALPHA if alpha is None else alpha
    findings: list[GateFinding] = []
    pairs: dict[str, RunSeries] = {}
    matches = match(baseline, current)
    for name, new in current.items():
        old_name, different = matches[name]
        old = baseline.get(old_name) if old_name is not None else None
        if old is not None and not different:
            pairs[name] = old
        findings += [_first(name, rule, old_name, old, different, new) for rule in rules]
    _correct(findings, level, stages=1 if rerun is None else 2)
    notes = _notes(baseline, current, matches)
    seen = dict(current)
    if rerun is not None:
        seen |= _confirm(findings, pairs, current, rules, level, rerun)
    guard(findings, pairs, seen, rules, level)
    verdict = overall(findings)
    if any("cannot tell a change from chance" in finding.reason for finding in findings):
        tests = sum(finding.p is not None for finding in findings)
        notes.append(
            f"{tests} measured metrics at alpha {level:g} need "
            f"{runs_to_fire(level, tests, 1 if rerun is None else 2)} runs on each side: make more "
            "runs, give fewer rules" + (", or add --confirm" if rerun is None else "")
        )
    return Report(
        verdict=verdict,
        exit_code=exit_code(findings),
        baseline=source,
        alpha=level,
        confirm=rerun is not None,
        findings=findings,
        notes=notes,
        simulated=any(series.environment.get("simulated") for series in current.values()),
    )


def no_baseline(source: str, problem: str) -> Report:
    """The report where there is no usable baseline: one entry that says why, exit code 5."""
    finding = GateFinding(
        series=source or "baseline", metric="baseline", verdict="missing", reason=problem,
        stored=False,
    )  # fmt: skip
    return Report(
        verdict="missing",
        exit_code=EXIT_NO_BASELINE,
        baseline=source,
        alpha=ALPHA,
        confirm=False,
        findings=[finding],
        simulated=False,
    )


def _first(
    name: str,
    rule: Rule,
    old_name: str | None,
    old: RunSeries | None,
    different: list[str],
    new: RunSeries,
) -> GateFinding:
    """What can be said of one metric before Holm and reruns."""
    unjudged = GateFinding(series=name, metric=rule.metric, verdict="missing", reason="",
                       rule=rule.text, stored=False)  # fmt: skip
    after = new.metrics.get(rule.metric)
    if after is not None:
        unjudged.unit, unjudged.better, unjudged.values = after.unit, after.better, after.known
        unjudged.current = sum(after.known) / len(after.known) if after.known else None
    if old is None:
        unjudged.reason = "the baseline has no such series"
        return unjudged
    before = old.metrics.get(rule.metric)
    if different:
        unjudged.verdict = "incompatible-env"
        unjudged.reason = "; ".join(different)
        if old_name != name:
            unjudged.reason = f"baseline of '{old_name}': {unjudged.reason}"
        return unjudged
    if before is None or not before.known:
        unjudged.reason = "the baseline has no such metric"
        return unjudged
    if after is None or not after.known:
        # The baseline is usable; the metric has no value any more, and that is its verdict.
        unjudged.reason, unjudged.stored = "the runs have no value for it", True
        unjudged.unit, unjudged.better = before.unit, before.better
        unjudged.baseline = sum(before.known) / len(before.known)
        return unjudged
    if (before.unit, before.better) != (after.unit, after.better):
        unjudged.verdict = "incompatible-env"
        unjudged.reason = (
            f"the baseline's is in {before.unit}, {before.better} is better; the runs' in "
            f"{after.unit}, {after.better} is better"
        )
        return unjudged
    if before.exact and after.exact:
        return judge_exact(name, rule, old, new)
    if foreign := differences(old.machine, new.machine):
        unjudged.verdict, unjudged.reason = "incompatible-env", "; ".join(foreign)
        return unjudged
    return judge_measured(name, rule, old, new)


def match(
    baseline: Mapping[str, RunSeries], current: Mapping[str, RunSeries]
) -> dict[str, tuple[str | None, list[str]]]:
    """For each current series its baseline series, if there is one, and what differs.

    Without one of its name it is the one of the same scheduler that has most in common and is no
    other's: so a baseline of another GPU is called foreign instead of missing.
    """
    free = [name for name in baseline if name not in current]
    found: dict[str, tuple[str | None, list[str]]] = {}
    for name, series in current.items():
        if name in baseline:
            found[name] = (name, differences(baseline[name].environment, series.environment))
            continue
        near = [
            (len(different), other, different)
            for other in free
            if _kin(baseline[other].environment, series.environment)
            and len(different := differences(baseline[other].environment, series.environment))
            <= _MOST_DIFFERENT
        ]
        # Nothing differs and yet the name does: it was given by hand, and means something else.
        near = [entry for entry in near if entry[0]]
        if near:
            _, other, different = min(near)
            found[name] = (other, different)
        else:
            found[name] = (None, [])
    return found


def _kin(one: Facts, other: Facts) -> bool:
    return all(one.get(key) == other.get(key) for key in ("scheduler", "trace"))


def _correct(findings: Sequence[GateFinding], alpha: float, stages: int) -> None:
    """Holm over all measured metrics, then their verdicts."""
    measured = [finding for finding in findings if finding.p is not None]
    adjusted = holm([finding.p for finding in measured if finding.p is not None])
    for finding, value in zip(measured, adjusted, strict=True):
        finding.p_adjusted = value
        conclude(finding, alpha, len(measured), stages)


def _confirm(
    findings: list[GateFinding],
    pairs: Mapping[str, RunSeries],
    current: Mapping[str, RunSeries],
    rules: Sequence[Rule],
    alpha: float,
    rerun: Rerun,
) -> dict[str, RunSeries]:
    """Run again whatever is beyond its rule, and put the verdict of all runs in its place; returns
    the series that were run again, first and fresh runs together.
    """
    tests = sum(finding.p is not None for finding in findings)
    places = [
        place
        for place, finding in enumerate(findings)
        if finding.p is not None and finding.beyond and can_fire(finding, alpha, tests, 2)
    ]
    if not places:
        return {}
    again = rerun(list(dict.fromkeys(findings[place].series for place in places)))
    by_metric = {rule.metric: rule for rule in rules}
    together = []
    for place in places:
        first = findings[place]
        name, rule, old = first.series, by_metric[first.metric], pairs[first.series]
        fresh = _first(name, rule, name, old, [], again[name])
        pooled = judge_measured(name, rule, old, _pooled(current[name], again[name], rule.metric))
        together.append((place, fresh, pooled))
    # Those that were not run again count as tests that found nothing.
    p_values = [pooled.p for _, _, pooled in together if pooled.p is not None]
    adjusted = holm([*p_values, *[1.0] * (tests - len(p_values))])
    for (place, fresh, pooled), value in zip(together, adjusted, strict=False):
        pooled.p_adjusted = value
        settle(pooled, fresh, alpha)
        findings[place] = pooled
    return {name: _together(current[name], fresh) for name, fresh in again.items()}


def _pooled(first: RunSeries, fresh: RunSeries, metric: str) -> RunSeries:
    """One metric's values of both; the runs themselves are not looked at."""
    samples = first.metrics[metric]
    added = fresh.metrics[metric].values if metric in fresh.metrics else []
    both = msgspec.structs.replace(samples, values=[*samples.values, *added])
    return msgspec.structs.replace(first, metrics={metric: both})


def _together(first: RunSeries, fresh: RunSeries) -> RunSeries:
    """The runs of both, in the metrics that both have."""
    metrics = {
        name: msgspec.structs.replace(
            samples, values=[*samples.values, *fresh.metrics[name].values]
        )
        for name, samples in first.metrics.items()
        if name in fresh.metrics
    }
    return msgspec.structs.replace(first, runs=[*first.runs, *fresh.runs], metrics=metrics)


def _notes(
    baseline: Mapping[str, RunSeries],
    current: Mapping[str, RunSeries],
    matches: Mapping[str, tuple[str | None, list[str]]],
) -> list[str]:
    """What the baseline holds that was not run, and event logs that changed without the numbers."""
    used = {old for old, _ in matches.values()}
    notes = [f"in the baseline only, not run: {name}" for name in baseline if name not in used]
    changed = []
    for name, series in current.items():
        old, different = matches[name]
        if old is None or different:
            continue
        logs = {run.seed: run.events for run in baseline[old].runs if run.events}
        if any(logs.get(run.seed, run.events) != run.events for run in series.runs):
            changed.append(name)
    if changed:
        named = changed[0] if len(changed) == 1 else f"{len(changed)} of {len(current)} series"
        notes.append(f"another event log than the baseline's: {named}")
    return notes


def overall(findings: Sequence[GateFinding]) -> Verdict:
    """The worst verdict of all; nothing to judge is inconclusive."""
    if not findings:
        return "inconclusive"
    return max((finding.verdict for finding in findings), key=RANKING.index)


def exit_code(findings: Sequence[GateFinding]) -> int:
    """3 if anything fails, else 5 if some baseline is missing or foreign, else 4 if something
    could not be told, else 0.
    """
    verdicts = {finding.verdict for finding in findings}
    if "fail" in verdicts:
        return EXIT_REGRESSION
    if "incompatible-env" in verdicts or any(
        finding.verdict == "missing" and not finding.stored for finding in findings
    ):
        return EXIT_NO_BASELINE
    if not findings or verdicts & {"inconclusive", "missing"}:
        return EXIT_INCONCLUSIVE
    return EXIT_PASS
