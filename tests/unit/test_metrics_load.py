"""Do requests arrive faster than they leave? On queues whose load is known."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from nexusbench.comparison.load import load_of, load_of_run, load_sentence
from nexusbench.core.events import OUTCOMES, EventLog, RunFacts
from nexusbench.metrics.load import FEWEST, Overload, _until
from nexusbench.metrics.run_events import RunEvents
from nexusbench.metrics.summary import summarise
from tests.examples import slow

FACTS = RunFacts(
    simulated=False, num_sms=0, kv_blocks=0, block_size=16, partitions=(),
    observed="client",
)  # fmt: skip
TOKENS, GAP, FIRST = 50, 20e6, 20e6  # a second of service
SERVICE = FIRST + (TOKENS - 1) * GAP


def poisson(rate: float, count: int, seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng(seed).exponential(1e9 / rate, count)
    return np.cumsum(draws) - draws[0]


def queue(
    arrivals: np.ndarray,
    servers: int = 4,
    sizes: np.ndarray | None = None,
    until: float = np.inf,
    order: str = "oldest",
    turned_away: int = 0,
) -> RunEvents:
    """Servers that take a request at a time, the oldest, newest or smallest first; every
    ``turned_away``-th is rejected, and the log ends at ``until``.
    """
    sizes = np.ones(len(arrivals)) if sizes is None else sizes
    starts = np.full(len(arrivals), np.inf)
    free, waiting, place = [0.0] * servers, list[int](), 0
    offered = [i for i in range(len(arrivals)) if not turned_away or i % turned_away]
    while place < len(offered) or waiting:
        now = heapq.heappop(free)
        if not waiting and place < len(offered):
            now = max(now, arrivals[offered[place]])
        while place < len(offered) and arrivals[offered[place]] <= now:
            waiting.append(offered[place])
            place += 1
        place_of = {"oldest": 0, "newest": -1}
        if order == "smallest":
            place_of[order] = min(range(len(waiting)), key=lambda n: sizes[waiting[n]])
        index = waiting.pop(place_of[order])
        starts[index] = now
        heapq.heappush(free, now + SERVICE * sizes[index])
    log, rows = EventLog(), []
    for index, arrival in enumerate(arrivals):
        tokens = int(TOKENS * sizes[index])
        if arrival > until:
            continue
        log.tables["arrived"].row(index, int(arrival), 100, tokens)
        if turned_away and index % turned_away == 0:
            code = log.code("queue full")
            log.tables["ended"].row(index, int(arrival), OUTCOMES.index("rejected"), code)
            continue
        times = starts[index] + FIRST * sizes[index] + GAP * np.arange(tokens)
        rows += [(time, index) for time in times if time <= until]
        if times[-1] <= until:
            log.tables["ended"].row(index, int(times[-1]), 0, log.code("length"))
    for step, (time, index) in enumerate(sorted(rows)):
        log.tables["step_done"].row(step, int(time), -1, 1)
        log.tables["token"].row(index)
    count = len(arrivals)
    columns = {
        "request": range(count), "id": [str(n) for n in range(count)], "tenant": [""] * count,
        "arrival": arrivals.astype(int), "prompt_tokens": [100] * count,
        "output_tokens": (TOKENS * sizes).astype(int), "max_tokens": [999] * count,
    }  # fmt: skip
    return RunEvents.from_log(log, columns, FACTS)


def overloaded(run: RunEvents) -> float | None:
    return Overload().value(run)


@pytest.mark.parametrize("load", [*slow(0.2, 0.5), 0.7])
@pytest.mark.parametrize("count", [60, 300])
def test_what_can_be_served_is_no_overload(load: float, count: int) -> None:
    assert [overloaded(queue(poisson(4 * load, count, seed))) for seed in range(3)] == [0] * 3


@pytest.mark.parametrize("load", [2.0, *slow(5.0, 50.0), 1e6])
@pytest.mark.parametrize("count", [100, *slow(300)])
def test_what_cannot_be_served_is(load: float, count: int) -> None:
    """At a million times the load all arrive within a millisecond: no trend, but long stays."""
    assert [overloaded(queue(poisson(4 * load, count, seed))) for seed in range(3)] == [1] * 3


def test_the_order_of_service_makes_no_difference() -> None:
    assert overloaded(queue(poisson(8, 300), order="newest")) == 1
    assert overloaded(queue(poisson(2, 300), order="newest")) == 0


def test_all_at_one_moment() -> None:
    assert overloaded(queue(np.zeros(100))) == 1
    assert overloaded(queue(np.zeros(100), servers=100)) == 0
    load = load_of_run(queue(np.zeros(100)))
    assert load.offered_rate is None
    assert "all offered at one moment, 100 of 100 not ended" in load_sentence(load)


@pytest.mark.parametrize("begin", [0.0, 50.0, 98.0])
def test_a_burst_is_none(begin: float) -> None:
    """Sixty requests within a second, in a hundred seconds at half of what can be served."""
    burst = 1e9 * (begin + np.linspace(0, 1, 60))
    assert overloaded(queue(np.sort(np.concatenate((poisson(2, 200), burst))))) == 0


def test_bursts_that_grow_and_are_worked_off_are_none() -> None:
    """Each quarter has more late requests than the one before, and at the end there are none."""
    sizes = {35: 20, 55: 32, 76: 55}
    bursts = [begin + np.linspace(0, 1, count) for begin, count in sizes.items()]
    arrivals = 1e9 * np.sort(np.concatenate((np.linspace(0, 100, 60), *bursts)))
    assert overloaded(queue(arrivals)) == 0


def test_long_answers_in_a_short_trace_are_none() -> None:
    """All are on their way at once, and nothing waits: the drain is no backlog."""
    assert overloaded(queue(poisson(20, 60), servers=100)) == 0
    sizes = np.random.default_rng(1).uniform(0.2, 6, 100)
    assert overloaded(queue(poisson(4, 100), servers=100, sizes=sizes)) == 0


def test_requests_that_wait_for_shorter_ones_are_told_by_their_tokens() -> None:
    """One in twenty is long, and comes after all others: few are left behind, with much work."""
    arrivals = poisson(8, 600)
    sizes = np.where(np.arange(600) % 20 == 0, 12.0, 0.3)
    starving = queue(arrivals, servers=4, sizes=sizes, order="smallest")
    assert overloaded(starving) == 1
    load = load_of_run(starving)
    assert load.left_behind is not None
    assert load.left_behind < 0.06 * load.offered
    assert overloaded(queue(arrivals, servers=12, sizes=sizes, order="smallest")) == 0


def test_a_log_that_was_cut_short_is_judged_by_what_it_holds() -> None:
    assert overloaded(queue(poisson(8, 300), until=25e9)) == 1
    assert overloaded(queue(poisson(2, 300), until=75e9)) == 0


def test_few_requests_say_nothing() -> None:
    run = queue(poisson(50, FEWEST - 1))
    assert overloaded(run) is None
    assert "fewer than 20" in load_of(summarise(run)).reason
    assert load_sentence(load_of(summarise(run))) == ""


def test_who_is_turned_away_is_no_backlog_and_no_arrival_that_left() -> None:
    """Half are rejected: the others can be served."""
    assert overloaded(queue(poisson(6, 300), turned_away=2)) == 0
    assert overloaded(queue(poisson(16, 300), turned_away=2)) == 1


def test_the_facts_are_those_of_the_arrivals_not_of_the_drain() -> None:
    run = queue(np.arange(100) * 1e8)  # ten a second where four can be served
    load = load_of(summarise(run))
    assert load.overloaded
    assert load.offered_rate == pytest.approx(10)
    # Four servers for 9.9 s, a second each.
    assert load.finished_rate == pytest.approx(36 / 9.9)
    assert (load.left_behind, load.offered, load.finished) == (64, 100, 100)
    assert load_sentence(load).startswith(
        "Requests arrive faster than they leave (offered 10 req/s, finished 3.64 req/s while they "
        "arrived, 64 of 100 not ended at the last arrival). Latency then measures the backlog"
    )
    assert load_of_run(run) == load


def test_a_backlog_that_only_stays_is_none() -> None:
    """Forty at once, and then as many as leave: late are they all the time, and not more."""
    arrivals = np.concatenate((np.zeros(40), 1e9 * np.arange(1, 31, 1 / 4.1)))
    assert overloaded(queue(arrivals)) == 0


def test_what_has_arrived_counts_from_the_first_moment_on() -> None:
    moments, weight = np.array([20.0, 10.0]), np.array([3, 5])
    assert _until(moments, weight, np.array([0.0, 10.0, 15.0, 20.0])).tolist() == [0, 5, 5, 8]
