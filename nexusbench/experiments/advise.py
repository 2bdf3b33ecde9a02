"""Which way of serving suits this traffic: successive halving over candidates, then a race over
fresh draws of the arrivals, paired.

Jamieson and Talwalkar (AISTATS 2016): give all candidates a little, keep the better third, give
those three times as much, and so on. Little here is the first requests of the trace. The last few
race (Maron and Moore, NIPS 1993): what is surely behind the leader stops, others get more draws,
until one is left or the draws are used up. Those that are left then are a tie, and said to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import Interrupted, NexusbenchError, UsageError
from nexusbench.experiments.candidates import Candidate
from nexusbench.experiments.judging import attained, judge, strain
from nexusbench.experiments.leads import SIGNIFICANCE, DrawScore, Margin, Rated, lead, twins
from nexusbench.experiments.pool import Lost, run_all
from nexusbench.experiments.probe import PROBE_SUFFIX, find_probe, run_probe
from nexusbench.experiments.store import Store
from nexusbench.metrics.slo import Bound, Slo

KEPT = 3  # one in so many goes on
# Few draws decide the rounds before: with 8 finalists the best of near equals fell out there.
FINALISTS = 20
# Points of score that decide nothing: what may lead by less needs no more draws.
INDIFFERENT = 0.1
_LEAST_REQUESTS = 40
# Draws of the early rounds; the final has draws of its own, since these chose what is in it.
_EARLY_SEED = 1_000_000

Told = Callable[[str, int], object]  # (what was run, on how many requests)


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """``config`` is all but the way to serve; ``requests`` the length of its trace; ``effort`` the
    requests to simulate before the final, in all. The final starts with ``seeds`` and goes on to
    ``most_draws`` with those that cannot be told apart from the leader (0: no further).
    """

    config: RunConfig
    slo: Slo
    candidates: tuple[Candidate, ...]
    requests: int
    seeds: tuple[int, ...]
    most_draws: int = 0
    effort: int = 60_000
    cache: Path | None = None
    fresh: bool = False


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """``final`` is in order, the winner first; ``tied`` of those behind it could not be told apart
    from it; ``early`` are those that were dropped, best first.
    """

    final: tuple[Rated, ...]
    tied: int
    alike: bool  # none of those is more than INDIFFERENT points away: more draws decide nothing
    early: tuple[Rated, ...]
    margin: Margin | None  # over final[1]; None: there was one candidate
    failed: tuple[str, ...]
    rounds: tuple[tuple[int, int, int], ...]  # candidates, requests, draws
    simulated: bool


class AdviceRun(msgspec.Struct, frozen=True):
    """One candidate on one draw."""

    config: RunConfig
    slo: Slo
    cache: Path | None
    fresh: bool


class AdviceOutcome(msgspec.Struct, frozen=True):
    """Its score, or why there is none."""

    score: DrawScore | None
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
    """Halve the candidates until few are left, and let those race over fresh draws.

    ``told`` hears of each run and its length. Raises NexusbenchError, with the first one's reason,
    if every candidate fails.
    """
    field = _Field(question, jobs, told)
    left = list(question.candidates)
    early: list[Rated] = []
    planned = plan_rounds(len(left), question)
    for number, (_, requests, draws) in enumerate(planned[:-1]):
        first = _EARLY_SEED + 100 * number
        rated = field.run(left, requests, range(first, first + draws), number)
        kept = _best(rated, planned[number + 1][0])
        early += [one for one in rated if one not in kept]
        left = [one.candidate for one in kept]
    early.sort(key=lambda one: (-one.round, -one.points))
    close, behind = _race(field, left, len(planned) - 1)
    final = (*close, *behind)
    return Advice(
        final=final,
        tied=len(close) - 1,
        alike=all(_settled(question, close[0], one) for one in close[1:]),
        early=tuple(early),
        margin=_margin(question, final[0], final[1]) if len(final) > 1 else None,
        failed=tuple(field.failed),
        rounds=tuple(field.rounds),
        simulated=field.simulated,
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


def _race(
    field: _Field, candidates: Sequence[Candidate], number: int
) -> tuple[list[Rated], list[Rated]]:
    """The leader and what could not be told apart from it, then those behind; each in order."""
    question = field.question
    close = field.run(candidates, question.requests, question.seeds, number)
    behind: list[Rated] = []
    for seeds in more_draws(question):
        close, fallen = _split(question, close)
        behind += fallen
        if all(_settled(question, close[0], one) for one in close[1:]):
            break
        again = field.run([one.candidate for one in close], question.requests, seeds, number)
        found = {one.candidate: one.scores for one in again}
        close = [
            msgspec.structs.replace(one, scores=one.scores + found[one.candidate])
            for one in close
            if one.candidate in found
        ]
        close.sort(key=lambda one: -one.points)
    close, fallen = _split(question, close)
    behind.sort(key=lambda one: -one.points)
    return close, [*fallen, *behind]


def more_draws(question: Question) -> list[range]:
    """Seeds that the race adds, as many at a time as it starts with."""
    first, step = question.seeds[0], len(question.seeds)
    last = first + max(step, question.most_draws)
    return [range(low, min(low + step, last)) for low in range(first + step, last, step)]


def _split(question: Question, rated: list[Rated]) -> tuple[list[Rated], list[Rated]]:
    """Those that are not surely behind the first, and those that are; ``rated`` is in order."""
    close, behind = list(rated[:1]), list(rated[:0])
    for one in rated[1:]:
        (behind if _margin(question, rated[0], one).sure else close).append(one)
    return close, behind


def _settled(question: Question, leader: Rated, one: Rated) -> bool:
    """Whether more draws would change nothing that matters."""
    high = _margin(question, leader, one).high
    return twins(leader, one) or (high is not None and high < INDIFFERENT)


def _margin(question: Question, one: Rated, other: Rated) -> Margin:
    # Looking often finds something by chance: the looks share the level (Bonferroni).
    level = SIGNIFICANCE / (1 + len(more_draws(question)))
    return lead(one, other, question.requests, level)


class _Field:
    """Runs candidates, and remembers what became of them."""

    def __init__(self, question: Question, jobs: int, told: Told) -> None:
        self.question, self._jobs, self._told = question, jobs, told
        self.failed: list[str] = []
        self.rounds: list[tuple[int, int, int]] = []
        self.simulated = True

    def run(
        self, candidates: Sequence[Candidate], requests: int, seeds: Sequence[int], number: int
    ) -> list[Rated]:
        """The candidates in order, without those that failed. Raises NexusbenchError if all did."""
        self.rounds.append((len(candidates), requests, len(seeds)))
        runs = self._runs(candidates, requests, seeds)
        scores: dict[int, DrawScore] = {}
        faults: dict[int, str] = {}
        results: Iterator[tuple[int, AdviceOutcome | Lost]] = run_all(score_run, runs, self._jobs)
        for index, outcome in results:
            position = index // len(seeds)
            self._told(str(candidates[position]), requests)
            if isinstance(outcome, Lost) or outcome.score is None:
                reason = outcome.reason if isinstance(outcome, Lost) else outcome.error
                faults[position] = f"{candidates[position]}: {reason}"
            else:
                scores[index] = outcome.score
                self.simulated = self.simulated and outcome.simulated
        self.failed += [faults[position] for position in sorted(faults)]
        rated = [
            Rated(candidate, tuple(scores[p * len(seeds) + i] for i in range(len(seeds))), number)
            for p, candidate in enumerate(candidates)
            if p not in faults
        ]
        if not rated:
            raise NexusbenchError(f"no candidate could be run. {self.failed[0]}")
        return sorted(rated, key=lambda one: -one.points)

    def _runs(
        self, candidates: Sequence[Candidate], requests: int, seeds: Sequence[int]
    ) -> list[AdviceRun]:
        question = self.question
        limit = question.config.limit if requests == question.requests else requests
        return [
            AdviceRun(
                msgspec.structs.replace(candidate.apply(question.config), limit=limit, seed=seed),
                question.slo,
                question.cache,
                question.fresh,
            )
            for candidate in candidates
            for seed in seeds
        ]


def score_run(run: AdviceRun) -> AdviceOutcome:
    """Runs in a worker: one candidate on one draw."""
    store = None if run.cache is None else Store(run.cache, PROBE_SUFFIX, fresh=run.fresh)
    try:
        probe = find_probe(run.config, store)
        if probe is None or not probe.complete:
            probe = run_probe(run.config, store)
    except (Interrupted, KeyboardInterrupt):
        raise
    except NexusbenchError as error:
        return AdviceOutcome(None, str(error))
    except Exception as error:
        # A candidate may be a plug-in, which may raise anything.
        return AdviceOutcome(None, f"unexpected {type(error).__name__}: {error}")
    single = scored_slo(run.slo)
    kept = judge(probe, run.slo).outcome == "kept"
    score = DrawScore(
        attained(probe, single), strain(probe, single.per_request()), kept, probe.load
    )
    return AdviceOutcome(score, "", probe.simulated)
