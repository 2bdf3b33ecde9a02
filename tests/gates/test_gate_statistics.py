"""The gate's statistics against brute force, scipy, hand calculation and tables."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nexusbench.gates import statistics
from nexusbench.gates.check import ALPHA
from nexusbench.gates.rules import DEFAULT_RULES
from nexusbench.gates.statistics import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    holm,
    permutation_p,
    runs_to_fire,
    shift,
    smallest_p,
)

# Whole numbers, so that sums are exact and ties are ties in both programs.
runs = st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=5)


def brute_force(baseline: list[float], current: list[float]) -> float:
    pooled = baseline + current
    splits = list(combinations(range(len(pooled)), len(current)))
    hits = sum(sum(pooled[i] for i in chosen) >= sum(current) for chosen in splits)
    return hits / len(splits)


@given(runs, runs)
def test_permutation_p_is_brute_force(baseline: list[float], current: list[float]) -> None:
    assert permutation_p(baseline, current) == pytest.approx(brute_force(baseline, current))


@pytest.mark.parametrize("seed", range(6))
def test_permutation_p_is_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    baseline, current = rng.normal(10, 1, 5), rng.normal(10.5, 1, 4 + seed % 3)
    found = stats.permutation_test(
        (current, baseline),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        vectorized=True, n_resamples=np.inf, alternative="greater",
    )  # fmt: skip
    assert permutation_p(baseline.tolist(), current.tolist()) == pytest.approx(found.pvalue)


def test_five_against_five_have_252_splits() -> None:
    assert permutation_p([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == 1 / 252
    assert permutation_p([6, 7, 8, 9, 10], [1, 2, 3, 4, 5]) == 1
    assert smallest_p(5, 5) == 1 / 252
    assert permutation_p([3.0] * 5, [3.0] * 5) == 1


def test_rounding_makes_no_ties_into_differences() -> None:
    # 0.1 + 0.2 + 0.3 depends on the order of the sum; every split of equal values is a tie.
    assert permutation_p([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]) > 0.5
    assert permutation_p([1e9 + 0.1] * 4, [1e9 + 0.1] * 4) == 1


def test_many_splits_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = np.random.default_rng(1).normal(0, 1, 9).tolist()
    current = np.random.default_rng(2).normal(0.4, 1, 6).tolist()
    exact = permutation_p(baseline, current)
    monkeypatch.setattr(statistics, "MOST_SPLITS", 4000)
    statistics._splits.cache_clear()
    drawn = permutation_p(baseline, current)
    statistics._splits.cache_clear()
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000))
    assert drawn != exact
    far = permutation_p([0.0] * 20, [1.0] * 20)
    assert far == smallest_p(20, 20) == 1 / (statistics.MOST_SPLITS + 1)


def test_p_values_are_valid() -> None:
    """P(p <= a) <= a if nothing changed; near it where the splits allow."""
    rng = np.random.default_rng(3)
    found = [permutation_p(*np.split(rng.exponential(1, 10), 2)) for _ in range(3000)]
    for level in (0.01, 0.05, 0.2):
        hits = sum(p <= level for p in found)
        assert clopper_pearson_lower(hits, len(found), 0.999) <= level


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; the last is held up by the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
    assert holm([0.02]) == [0.02]


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_only_raises(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(p <= a <= 1 for p, a in zip(values, adjusted, strict=True))
    assert max(adjusted) <= min(1, max(1, len(values)) * max(values))
    order = sorted(range(len(values)), key=values.__getitem__)
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_defaults_can_fire_with_five_runs() -> None:
    """With a rerun, or with ten runs in the baseline; alone, five runs do for two metrics."""
    assert smallest_p(5, 10) * len(DEFAULT_RULES) <= ALPHA
    assert smallest_p(10, 5) * len(DEFAULT_RULES) <= ALPHA
    assert smallest_p(5, 5) * 2 <= ALPHA < smallest_p(5, 5) * 3
    assert runs_to_fire(ALPHA, 2) == 5
    assert runs_to_fire(ALPHA, len(DEFAULT_RULES), 2) <= 5
    assert runs_to_fire(0.05, 1) == 3
    assert smallest_p(3, 3) == 0.05


def test_shift_stands_an_outlier() -> None:
    assert shift([1, 2, 3], [2, 3, 4]) == 1
    assert shift([10] * 5, [11, 11, 11, 11, 500]) == 1
    assert shift([10, 10, 10, 10, 500], [11] * 5) == 1


def test_clopper_pearson() -> None:
    # Of nothing seen in n: 1 - 0.05^(1/n); the rule of three.
    assert clopper_pearson_upper(0, 1000) == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert clopper_pearson_upper(5, 5) == 1
    assert clopper_pearson_lower(0, 5) == 0
    exact = stats.binomtest(12, 1000).proportion_ci(0.90, method="exact")
    assert clopper_pearson_lower(12, 1000) == pytest.approx(exact.low)
    assert clopper_pearson_upper(12, 1000) == pytest.approx(exact.high)
