"""Which way of serving suits this traffic: successive halving over candidates, then a final over
fresh draws of the arrivals, paired.

Jamieson and Talwalkar (AISTATS 2016): give all candidates a little, keep the better third, give
those three times as much, and so on. Little here is the first requests of the trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from nexusbench.config import RunConfig
from nexusbench.core.errors import Interrupted, NexusbenchError, UsageError
from nexusbench.experiments.candidates import Candidate
from nexusbench.experiments.judging import attained, judge, strain
from nexusbench.experiments.pool import Lost, run_all
from nexusbench.experiments.probe import PROBE_SUFFIX, find_probe, run_probe
from nexusbench.experiments.store import Store
from nexusbench.metrics.slo import Bound, Slo
from nexusbench.metrics.summary import interval

KEPT = 3  # one in so many goes on
FINALISTS = 8
_LEAST_REQUESTS = 40
# Draws of the early rounds; the final has draws of its own, since these chose who is in it.
_EARLY_SEED = 1_000_000
# One-sided, as the two-sided 95 % interval excludes 0.
_SURE = 0.025

Told = Callable[[str, int], object]  # (what was run, on how many requests)


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """``config`` is all but the way to serve; ``requests`` the length of its trace; ``effort`` the
    requests to simulate before the final, in all.
    """

    config: RunConfig
    slo: Slo
    candidates: tuple[Candidate, ...]
    requests: int
    seeds: tuple[int, ...]
    effort: int = 18_000
    cache: Path | None = None
    fresh: bool = False


class Score(msgspec.Struct, frozen=True):
    """``attained``: percent of requests that keep every bound; ``strain``: how much of its bounds
    the mean request uses; ``kept``: whether the SLO as given is kept.
    """

    attained: float
    strain: float
    kept: bool


class Rated(msgspec.Struct, frozen=True):
    """A candidate and its scores, one per draw of its last round; ``round`` counts from 0."""

    candidate: Candidate
    scores: tuple[Score, ...]
    round: int

    @property
    def attained(self) -> float:
        """Mean over draws, percent."""
        return math.fsum(score.attained for score in self.scores) / len(self.scores)

    @property
    def strain(self) -> float:
        """Mean over draws."""
        return math.fsum(score.strain for score in self.scores) / len(self.scores)

    @property
    def order(self) -> tuple[float, float]:
        """Better first: who keeps more; of equals, who uses less of the bounds."""
        return -self.attained, self.strain


class Margin(msgspec.Struct, frozen=True):
    """The winner's lead, paired by draw: ``by`` says in what (``attained``, percentage points, or
    ``strain``, if all keep the same); ``chance`` is the one-sided p of a paired t test, None for
    one draw.
    """

    by: str
    mean: float
    low: float | None
    high: float | None
    chance: float | None
    draws_won: int
    draws: int

    @property
    def sure(self) -> bool:
        """Whether chance alone would seldom give such a lead."""
        return self.chance is not None and self.chance < _SURE


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """``final`` is in order, the winner first; ``early`` those that were dropped, best first."""

    final: tuple[Rated, ...]
    early: tuple[Rated, ...]
    margin: Margin | None  # None: there was one candidate
    failed: tuple[str, ...]
    rounds: tuple[tuple[int, int, int], ...]  # candidates, requests, draws
    simulated: bool


class _Run(msgspec.Struct, frozen=True):
    config: RunConfig
    slo: Slo
    cache: Path | None
    fresh: bool


class _Outcome(msgspec.Struct, frozen=True):
    score: Score | None
    error: str = ""
    simulated: bool = True


def scored_slo(slo: Slo) -> Slo:
    """``slo`` as bounds on each request, which candidates are scored by. Raises UsageError if it
    has none of that form.
    """
    single = slo.per_request()
    if not single:
        raise UsageError(
            f"advise counts the requests that keep the SLO, and '{slo}' bounds the queue only. "
            "Add a bound on ttft, tbt, tpot or e2e"
        )
    return Slo(tuple(Bound(key, "", limit) for key, limit in single.items()), slo.share)


def advise(question: Question, jobs: int, told: Told = lambda text, requests: None) -> Advice:
    """Halve the candidates until few are left, and compare those over all seeds.

    ``told`` hears of each run and its length. Raises NexusbenchError, with the first one's reason,
    if every candidate fails.
    """
    left = list(question.candidates)
    early: list[Rated] = []
    failed: list[str] = []
    rounds: list[tuple[int, int, int]] = []
    planned = plan_rounds(len(left), question)
    rated: list[Rated] = []
    simulated = True
    for number, (_, requests, draws) in enumerate(planned):
        last = number == len(planned) - 1
        first = question.seeds[0] if last else _EARLY_SEED + 100 * number
        seeds = question.seeds if last else tuple(range(first, first + draws))
        rounds.append((len(left), requests, len(seeds)))
        rated, faults, real = _round(question, left, requests, seeds, number, jobs, told)
        simulated = simulated and not real
        failed += faults
        if not rated:
            raise NexusbenchError(f"no candidate could be run. {failed[0]}")
        if not last:
            kept = _best(rated, planned[number + 1][0])
            early += [one for one in rated if one not in kept]
            left = [one.candidate for one in kept]
    early.sort(key=lambda one: (-one.round, one.order))
    margin = _margin(rated[0], rated[1]) if len(rated) > 1 else None
    return Advice(
        final=tuple(rated),
        early=tuple(early),
        margin=margin,
        failed=tuple(failed),
        rounds=tuple(rounds),
        simulated=simulated,
    )


def plan_rounds(count: int, question: Question) -> list[tuple[int, int, int]]:
    """(candidates, requests, draws) of each round; the last is the final. Effort is shared evenly
    among the rounds before it, and never goes beyond what the final spends on a candidate.
    """
    sizes = []
    while count > FINALISTS:
        sizes.append(count)
        count = max(FINALISTS, math.ceil(count / KEPT))
    rounds = []
    for size in sizes:
        share = question.effort // len(sizes) // size
        requests = min(question.requests, max(_LEAST_REQUESTS, share))
        draws = max(1, min(len(question.seeds), share // question.requests))
        rounds.append((size, requests, draws))
    return [*rounds, (count, question.requests, len(question.seeds))]


def _best(rated: Sequence[Rated], count: int) -> list[Rated]:
    """The best ``count`` (``rated`` is in order), and the best of every scheduler that has none
    among them: the final is to say what the others would have cost.
    """
    kept = list(rated[:count])
    for one in rated[count:]:
        name = one.candidate.scheduler.partition(":")[0]
        if all(other.candidate.scheduler.partition(":")[0] != name for other in kept):
            kept.append(one)
    return kept


def _round(
    question: Question,
    candidates: Sequence[Candidate],
    requests: int,
    seeds: Sequence[int],
    number: int,
    jobs: int,
    told: Told,
) -> tuple[list[Rated], list[str], bool]:
    """The candidates in order, what failed, and whether a real device was used."""
    limit = question.config.limit if requests == question.requests else requests
    runs = [
        _Run(
            msgspec.structs.replace(candidate.apply(question.config), limit=limit, seed=seed),
            question.slo,
            question.cache,
            question.fresh,
        )
        for candidate in candidates
        for seed in seeds
    ]
    scores: dict[int, Score] = {}
    faults: dict[int, str] = {}
    real = False
    results: Iterator[tuple[int, _Outcome | Lost]] = run_all(_score, runs, jobs)
    for index, outcome in results:
        position = index // len(seeds)
        told(str(candidates[position]), requests)
        if isinstance(outcome, Lost) or outcome.score is None:
            reason = outcome.reason if isinstance(outcome, Lost) else outcome.error
            faults[position] = f"{candidates[position]}: {reason}"
        else:
            scores[index] = outcome.score
            real = real or not outcome.simulated
    rated = [
        Rated(candidate, tuple(scores[p * len(seeds) + i] for i in range(len(seeds))), number)
        for p, candidate in enumerate(candidates)
        if p not in faults
    ]
    rated.sort(key=lambda one: one.order)
    return rated, [faults[p] for p in sorted(faults)], real


def _score(run: _Run) -> _Outcome:
    """Runs in a worker: one candidate on one draw."""
    store = None if run.cache is None else Store(run.cache, PROBE_SUFFIX, fresh=run.fresh)
    try:
        probe = find_probe(run.config, store)
        if probe is None or not probe.complete:
            probe = run_probe(run.config, store)
    except (Interrupted, KeyboardInterrupt):
        raise
    except NexusbenchError as error:
        return _Outcome(None, str(error))
    except Exception as error:
        # A candidate may be somebody's plug-in, which may raise anything.
        return _Outcome(None, f"unexpected {type(error).__name__}: {error}")
    single = scored_slo(run.slo)
    kept = judge(probe, run.slo).outcome == "kept"
    score = Score(attained(probe, single), strain(probe, single.per_request()), kept)
    return _Outcome(score, "", probe.simulated)


def _margin(winner: Rated, other: Rated) -> Margin:
    by = "attained" if winner.attained != other.attained else "strain"
    pairs = list(zip(winner.scores, other.scores, strict=True))
    if by == "attained":
        leads = [one.attained - two.attained for one, two in pairs]
    else:
        leads = [two.strain - one.strain for one, two in pairs]
    mean = interval(leads)
    return Margin(
        by=by,
        mean=mean["mean"],
        low=mean["low"],
        high=mean["high"],
        chance=_chance(leads),
        draws_won=sum(lead > 0 for lead in leads),
        draws=len(leads),
    )


def _chance(leads: Sequence[float]) -> float | None:
    """One-sided p of a paired t test: how likely such leads are if there is none."""
    from scipy.special import stdtr

    count = len(leads)
    if count < 2:
        return None
    mean = math.fsum(leads) / count
    spread = math.sqrt(math.fsum((lead - mean) ** 2 for lead in leads) / (count - 1))
    if spread == 0.0:
        return 0.0 if mean > 0 else 1.0
    return float(stdtr(count - 1, -mean / spread * math.sqrt(count)))
