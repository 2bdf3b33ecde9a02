"""The noise of one run: the jackknife over its blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nexusbench.comparison.level import is_level, noise
from nexusbench.comparison.view import Estimate
from nexusbench.metrics.noise import (
    BLOCKS,
    NOISY,
    NOISY_RATES,
    blocks_of,
    half_interval,
    left_out,
    rates_left_out,
)
from nexusbench.metrics.summary import summarise, t_quantile
from tests.unit.test_metrics import Log


def without(values: np.ndarray, count: int = BLOCKS) -> tuple[float, ...]:
    blocks = blocks_of(count, len(values))
    return tuple(float(values[blocks != block].mean()) for block in range(count))


def test_of_a_mean_it_is_the_error_of_the_block_means() -> None:
    values = np.random.default_rng(3).exponential(1.0, 400)
    means = values.reshape(BLOCKS, -1).mean(axis=1)
    expected = t_quantile(BLOCKS - 1) * means.std(ddof=1) / math.sqrt(BLOCKS)
    assert half_interval(without(values)) == pytest.approx(expected)


def test_what_both_share_is_no_noise_of_the_difference() -> None:
    trend = np.linspace(0, 100, 400)  # a growing queue
    one = without(trend)
    assert half_interval(one, without(trend + 5)) == pytest.approx(0, abs=1e-9)
    assert half_interval(one) > 10
    assert half_interval(one, one[:-1]) is None
    assert half_interval([1.0]) is None


def test_runs_of_other_blocks_are_as_if_unrelated() -> None:
    rng = np.random.default_rng(0)
    one, other = without(rng.normal(10, 1, 400)), without(rng.normal(10, 1, 400), 5)
    expected = math.hypot(half_interval(one) or 0, half_interval(other) or 0)
    assert noise(Estimate(10, None, one), Estimate(10, None, other)) == pytest.approx(expected)
    assert noise(Estimate(10), Estimate(11)) == 0


def test_chance_seldom_leads() -> None:
    """Two runs of the same law: no lead in about 19 of 20."""
    rng = np.random.default_rng(5)

    def level() -> bool:
        one, other = rng.exponential(1.0, (2, 300))
        return is_level(
            Estimate(one.mean(), None, without(one)), Estimate(other.mean(), None, without(other))
        )

    assert sum(level() for _ in range(300)) >= 0.9 * 300


def crowd(count: int = 40) -> Log:
    """A request each 10 ms; it waits 5 ms, the last quarter 45, and gets three tokens."""
    log = Log()
    for index in range(count):
        log.request(10 * index, prompt=100 + index)
    events = []
    for index in range(count):
        first = 10 * index + (45 if index >= 30 else 5)
        events += [(first, index), (first + 2, index), (first + 4, index)]
    for step, (time, index) in enumerate(sorted(events)):
        log.step(step, time - 1, time, tokens=(index,))
    for index in range(count):
        log.end(index, 10 * index + (49 if index >= 30 else 9))
    return log


def test_blocks_are_of_requests_by_arrival() -> None:
    run = crowd().run(slo={"ttft": 20.0})
    summary = summarise(run)
    found = summary.left_out
    ttft = np.where(np.arange(40) >= 30, 45.0, 5.0)
    assert found["ttft"]["mean"] == pytest.approx(list(without(ttft)))
    blocks = blocks_of(10, 40)
    assert found["ttft"]["p99"] == pytest.approx(
        [np.percentile(ttft[blocks != block], 99) for block in range(10)]
    )
    assert found["attainment"]["value"] == pytest.approx(list(without(100.0 * (ttft < 20))))
    # The last two of forty are longer than 95 % of the prompts: a block each.
    assert found["ttft_long_prompts"]["mean"] == [45.0, 45.0]
    assert len(found["tbt"]["p99"]) == len(found["e2e"]["p99"]) == 10
    # Blocks of the window for what is made: twelve tokens in each tenth, about.
    rates = np.array(found["output_throughput"]["value"])
    assert rates.mean() == pytest.approx(summary.metrics["output_throughput"].value, rel=0.05)


def test_of_fewer_requests_each_is_a_block() -> None:
    run = crowd(4).run()
    values = np.array([5.0, 5.0, 5.0, 5.0])
    assert left_out(run, "ttft", values)["mean"] == [5.0] * 4
    assert len(rates_left_out(run)["output_throughput"]["value"]) == 4
    alone = crowd(1).run()
    of_one = summarise(alone).left_out
    assert of_one.keys() == {*NOISY, *NOISY_RATES}
    assert all(series == [] for values in of_one.values() for series in values.values())


def test_blocks_of_gaps_are_in_order_of_time() -> None:
    gaps = np.arange(40.0)
    found = left_out(crowd().run(), "tbt", gaps)
    assert found["mean"] == pytest.approx(list(without(gaps)))


def test_tokens_of_a_request_are_spread_from_its_first_to_its_last() -> None:
    """Tokens at 10, 20, 30, 40 ms and at 20, 40 ms, in blocks of 20 ms: of the first request a
    third of its time is in the first block, of the second none.
    """
    log = Log()
    log.request(0, output=4)
    log.request(0, output=2)
    for step, (time, requests) in enumerate([(10, (0,)), (20, (0, 1)), (30, (0,)), (40, (0, 1))]):
        log.step(step, time - 10, time, tokens=requests)
    log.end(0, 40)
    log.end(1, 40)
    made = np.array([4 / 3, 6 - 4 / 3])
    found = rates_left_out(log.run())["output_throughput"]["value"]
    assert found == pytest.approx(((6 - made) / 0.02).tolist())
