"""Requests that were turned away: a rule on what they would flatter holds only if as many of those
offered finished as in the baseline, unless a rule says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from nexusbench.gates.rules import GAPS, GUARDS, NAMES_OF_SAMPLES, Rule
from nexusbench.gates.series import Samples, Series
from nexusbench.gates.statistics import fewer_p
from nexusbench.gates.verdicts import TOLERANCE, Finding
from nexusbench.metrics.base import tags_counting_refused

OFFERED, FINISHED, WORK = GUARDS
# These count a request that was turned away as a miss, and one whose answer was cut short as kept.
_OF_ANSWERS = ("attainment", "goodput")
# A client sees deliveries, which hold more tokens at one time than at another.
_OF_DELIVERIES = 0.01
# What is measured may end its answers where it likes: by so much they may be shorter.
_SHORTER = 0.1
_ALLOW = "If that is meant, say how many may be missing with a rule, as in finished:5%"


class Allowance(msgspec.Struct, frozen=True):
    """How much less than in the baseline may finish: by a rule on it, else nothing."""

    relative: float = 0.0
    absolute: float = 0.0
    explicit: str = ""  # the metric of the rule that says so

    def exceeded(self, was: float, now: float) -> bool:
        """Whether too little is left, as a rule of these bounds would say."""
        worse = was - now
        if math.isinf(self.relative):
            return False
        return worse > self.relative * abs(was) + TOLERANCE * abs(was) and worse > self.absolute


class _Shortfall(msgspec.Struct, frozen=True):
    """What is missing: in words, how sure (exact, or more than chance), and the two values."""

    metric: str
    words: str
    sure: bool
    was: float | None
    now: float
    stored: bool = True


def guard(
    findings: list[Finding],
    pairs: Mapping[str, Series],
    current: Mapping[str, Series],
    rules: Sequence[Rule],
    alpha: float,
) -> None:
    """Take back what passes over requests that were turned away, and say so in a finding of its
    own for each series. A rule on ``attainment`` counts them as misses and switches this off; one
    on ``finished`` or ``finished_work`` says how many may be missing. Answers that were cut short
    flatter everything, attainment too.
    """
    allowance = _allowance(rules)
    # What counts them, or counts them as misses, needs no guard.
    counting = tags_counting_refused()
    counts_only = all(_tag(rule.metric) in counting for rule in rules)
    for name, old in pairs.items():
        new = current[name]
        if not new.environment:  # numbers of the user's own, not of a run
            continue
        missing = _requests(old, new, Allowance(), alpha)
        judged = [finding for finding in findings if finding.series == name]
        if missing is None and (cut := _cut_short(old, new, allowance)):
            for finding in judged:
                if _tag(finding.metric) in _OF_ANSWERS or _tag(finding.metric) not in counting:
                    _take_back(finding, cut)
        if counts_only:
            continue
        # As many may have finished, and shorter ones.
        short = _requests(old, new, allowance, alpha) if missing else _tokens(old, new, allowance)
        for finding in judged:
            if _tag(finding.metric) in counting:
                continue
            if short is not None:
                _take_back(finding, short.words)
            elif missing is not None and missing.stored:
                finding.reason += f"; {missing.words}, as the rules allow"
            elif fewer := _fewer_samples(finding.metric, old, new, allowance):
                _take_back(finding, fewer)
        if short is not None and all(short.metric != finding.metric for finding in judged):
            findings.append(_finding(name, short, new))


def _allowance(rules: Sequence[Rule]) -> Allowance:
    by_tag = {_tag(rule.metric): rule for rule in rules}
    if "attainment" in by_tag:
        return Allowance(math.inf, explicit="attainment")
    for tag in (FINISHED, WORK):
        if tag in by_tag:
            rule = by_tag[tag]
            return Allowance(rule.relative, rule.absolute, tag)
    return Allowance()


def _tag(metric: str) -> str:
    return metric.partition(".")[0]


def _requests(old: Series, new: Series, allowance: Allowance, alpha: float) -> _Shortfall | None:
    now = _pairs(new, new)
    if not now:
        return None
    was = _pairs(old, new)
    finished, offered = (sum(column) for column in zip(*now.values(), strict=True))
    here = f"{finished:,.0f} of {offered:,.0f} requests finished"
    if not was:
        if finished >= offered or allowance.explicit:
            return None
        words = f"{here}, and the baseline does not say how many of its own did: save it again"
        return _Shortfall(FINISHED, words, False, None, finished / len(now), stored=False)
    exact = new.metrics[FINISHED].exact
    # Runs of one seed are compared where each repeats exactly: one that loses what another gains
    # is no comfort.
    seeds = sorted(was.keys() & now.keys()) if exact else []
    sides = [([was[s]], [now[s]]) for s in seeds] if exact else [
        (list(was.values()), list(now.values()))
    ]  # fmt: skip
    for before, after in sides:
        ended, asked = (sum(column) for column in zip(*before, strict=True))
        kept, sent = (sum(column) for column in zip(*after, strict=True))
        # The share of what was offered, and the count: one trace offers the same to all.
        share = asked and sent and allowance.exceeded(ended / asked * sent, kept)
        if not share and not allowance.exceeded(ended / len(before), kept / len(after)):
            continue
        sure = exact or fewer_p((int(ended), int(asked)), (int(kept), int(sent))) <= alpha
        words = (
            f"{kept:,.0f} of {sent:,.0f} requests finished, in the baseline {ended:,.0f} of "
            f"{asked:,.0f}"
        )
        return _Shortfall(FINISHED, words, sure, ended / len(before), kept / len(after))
    return None


def _pairs(series: Series, new: Series) -> dict[int, tuple[float, float]]:
    """Key of a run -> finished and offered; the key is its seed where runs repeat exactly. A
    baseline that did not keep what was offered was offered what the runs now are: one trace.
    """
    ended = series.metrics.get(FINISHED)
    asked = series.metrics.get(OFFERED) or new.metrics.get(OFFERED)
    if ended is None or asked is None or not asked.known:
        return {}
    usual = sum(asked.known) / len(asked.known)
    own = asked.values if len(asked.values) == len(series.runs) else [usual] * len(series.runs)
    found: dict[int, tuple[float, float]] = {}
    for number, (run, count, sent) in enumerate(zip(series.runs, ended.values, own, strict=True)):
        if count is not None:
            key = run.seed if ended.exact else number
            found.setdefault(key, (count, usual if sent is None else sent))
    return found


def _tokens(old: Series, new: Series, allowance: Allowance) -> _Shortfall | None:
    """The long ones among them did not finish."""
    found = _less(old, new, WORK, allowance)
    if found is None:
        return None
    was, now, exact = found
    words = f"finished requests hold {now:.4g} % of the tokens offered, in the baseline {was:.4g} %"
    return _Shortfall(WORK, words, exact, was, now)


def _fewer_samples(metric: str, old: Series, new: Series, allowance: Allowance) -> str:
    """A percentile of fewer samples of the same trace; empty if it is of as many."""
    name = f"{_tag(metric)}{NAMES_OF_SAMPLES}"
    samples = new.metrics.get(name)
    if samples is not None and not samples.exact:
        least = max(allowance.relative, _OF_DELIVERIES)
        allowance = msgspec.structs.replace(allowance, relative=least)
    found = _less(old, new, name, allowance)
    if found is None:
        return ""
    return f"it is of {found[1]:,.0f} samples, the baseline's of {found[0]:,.0f}"


def _cut_short(old: Series, new: Series, allowance: Allowance) -> str:
    """As many answers, of fewer tokens; empty if they are as long."""
    samples = new.metrics.get(GAPS)
    least = 0.0 if samples is None or samples.exact else _SHORTER
    relative = 0.0 if math.isinf(allowance.relative) else allowance.relative
    found = _less(old, new, GAPS, Allowance(max(relative, least)))
    if found is None:
        return ""
    return (
        f"its answers are shorter, with {found[1]:,.0f} gaps between tokens where the baseline's "
        f"have {found[0]:,.0f}"
    )


def _less(
    old: Series, new: Series, metric: str, allowance: Allowance
) -> tuple[float, float, bool] | None:
    """Baseline and present value of a guard that fell by more than is allowed, and whether that is
    exact: seed by seed then, else of the means. None where it did not, or is not known.
    """
    before, after = old.metrics.get(metric), new.metrics.get(metric)
    if before is None or after is None or not before.known or not after.known:
        return None
    if not (before.exact and after.exact):
        was, now = (sum(side.known) / len(side.known) for side in (before, after))
        return (was, now, False) if allowance.exceeded(was, now) else None
    left, right = _by_seed(old, before), _by_seed(new, after)
    for seed in sorted(left.keys() & right.keys()):
        if allowance.exceeded(left[seed], right[seed]):
            return left[seed], right[seed], True
    return None


def _by_seed(series: Series, samples: Samples) -> dict[int, float]:
    found: dict[int, float] = {}
    for run, value in zip(series.runs, samples.values, strict=True):
        if value is not None:
            found.setdefault(run.seed, value)
    return found


def _take_back(finding: Finding, words: str) -> None:
    """A pass over fewer requests is none; a fail over fewer is one all the more."""
    if finding.verdict in ("pass", "warn"):
        finding.verdict, finding.improved = "inconclusive", False
        finding.reason = f"not of the same requests: {words} ({finding.reason})"
    elif finding.verdict == "fail":
        finding.reason += f"; {words}"


def _finding(name: str, short: _Shortfall, new: Series) -> Finding:
    samples = new.metrics[short.metric]
    worse = None if short.was is None else short.was - short.now
    return Finding(
        series=name, metric=short.metric, rule=f"{short.metric}:0% (implied)",
        verdict="missing" if not short.stored else "fail" if short.sure else "inconclusive",
        reason=f"{short.words}: the other rules imply that as many do. {_ALLOW}",
        tier="exact" if samples.exact else "statistical", unit=samples.unit, better="higher",
        baseline=short.was, current=short.now, worse=worse,
        change=None if worse is None or not short.was else -worse / short.was,
        runs_current=len(samples.known), values=samples.known, beyond=short.sure,
        stored=short.stored,
    )  # fmt: skip
