"""Advice over the ranges of the contested constants: is another way to serve surely better?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from nexusbench.core.errors import NexusbenchError
from nexusbench.experiments.advise import (
    INDIFFERENT,
    Advice,
    AdviceOutcome,
    AdviceRun,
    Question,
    Told,
    score_run,
)
from nexusbench.experiments.leads import DrawScore, Rated, lead
from nexusbench.experiments.over_range import (
    DrawnReading,
    OverRange,
    RangeReading,
    at_end,
    over_range,
)
from nexusbench.experiments.pool import Lost, run_all
from nexusbench.experiments.ranges import (
    Place,
    device_at,
    ends,
    in_use,
    latin_hypercube,
    ranged_gpu,
)


def rivals(advice: Advice) -> tuple[Rated, ...]:
    """The runner-up, and the best finalist of every other scheduler."""
    found: dict[str, Rated] = {}
    for one in advice.final[1:]:
        found.setdefault(one.candidate.scheduler.partition(":")[0], one)
    kept = {*advice.final[1:2], *found.values()}
    return tuple(one for one in advice.final if one in kept)


def runs_over_ranges(question: Question, advice: Advice, count: int) -> int:
    """How many runs the ranges take, with so many draws of the constants."""
    places = len(ends(ranged_gpu(question.config.device)))
    return (1 + len(rivals(advice))) * (places * len(question.seeds) + count)


def advice_over_ranges(
    question: Question, advice: Advice, count: int, jobs: int, told: Told
) -> OverRange | None:
    """Whether the advised stays unbeaten: with each contested constant at its ends, over the first
    draws of the final, and in ``count`` draws of all of them, one for each draw of the arrivals.
    None where it had no rival.

    ``points`` are those ahead of the best rival there. It is lost where a rival is surely
    ahead, and by more than INDIFFERENT points. Raises UsageError for a device without ranges,
    NexusbenchError if a run fails there.
    """
    gpu = ranged_gpu(question.config.device)
    against = rivals(advice)
    if not against:
        return None
    field = (advice.final[0], *against)
    used, sides, seeds = in_use(gpu), ends(gpu), question.seeds
    draws = latin_hypercube(gpu, count, seeds[0])
    asked = [(place, seed) for place in sides for seed in seeds]
    asked += [(place, seeds[0] + number) for number, place in enumerate(draws)]
    scores = _scores(question, field, asked, jobs, told)
    before = [msgspec.structs.replace(one, scores=one.scores[: len(seeds)]) for one in field]
    at_ends = []
    for number, place in enumerate(sides):
        first = number * len(seeds)
        there = _rated(field, scores, range(first, first + len(seeds)))
        at_ends.append(at_end(place, used, _reading(question, there)))
    drawn = None
    if draws:
        there = _rated(field, scores, range(len(asked) - len(draws), len(asked)))
        drawn = DrawnReading(_reading(question, there), tuple(_ahead(there)))
    base = RangeReading(_reading(question, before).points, held=True)
    return over_range(base, at_ends, drawn, (-INDIFFERENT, math.inf))


def _scores(
    question: Question, field: Sequence[Rated], asked: Sequence[tuple[Place, int]], jobs: int,
    told: Told,
) -> dict[tuple[int, int], DrawScore]:  # fmt: skip
    """The score by position in ``field`` and in ``asked``."""
    folder = (question.cache or Path("results/probes")) / "made"
    keys = [(one, place) for one in range(len(field)) for place in range(len(asked))]
    runs = []
    for one, number in keys:
        place, seed = asked[number]
        config = field[one].candidate.apply(question.config)
        config = msgspec.structs.replace(
            config, device=device_at(config, place, folder), seed=seed
        )  # fmt: skip
        runs.append(AdviceRun(config, question.slo, question.cache, question.fresh))
    scores: dict[tuple[int, int], DrawScore] = {}
    results: Iterator[tuple[int, AdviceOutcome | Lost]] = run_all(score_run, runs, jobs)
    for index, outcome in results:
        one, number = keys[index]
        candidate, place = field[one].candidate, asked[number][0]
        if isinstance(outcome, Lost) or outcome.score is None:
            reason = outcome.reason if isinstance(outcome, Lost) else outcome.error
            raise NexusbenchError(f"{candidate} at {place.name}: {reason}")
        scores[one, number] = outcome.score
        told(f"{candidate} at {place.name}", question.requests)
    return scores


def _rated(
    field: Sequence[Rated], scores: dict[tuple[int, int], DrawScore], numbers: range
) -> list[Rated]:
    return [
        msgspec.structs.replace(one, scores=tuple(scores[position, n] for n in numbers))
        for position, one in enumerate(field)
    ]


def _best(there: Sequence[Rated]) -> Rated:
    """Of the rivals."""
    return max(there[1:], key=lambda one: one.points)


def _ahead(there: Sequence[Rated]) -> list[float]:
    """Points of the advised less those of the best rival, draw by draw."""
    best = _best(there)
    return [
        mine.points - theirs.points
        for mine, theirs in zip(there[0].scores, best.scores, strict=True)
    ]


def _reading(question: Question, there: Sequence[Rated]) -> RangeReading:
    leads = [lead(one, there[0], question.requests) for one in there[1:]]
    beaten = any(margin.sure and margin.mean > INDIFFERENT for margin in leads)
    return RangeReading(there[0].points - _best(there).points, held=not beaten)
