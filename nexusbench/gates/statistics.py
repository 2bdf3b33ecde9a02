"""The statistics of the gate: permutation tests over runs, Holm's correction, shifts, bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
# Up to this many splits all are tried (10 runs against 5 have 3,003); beyond, as many are drawn.
MOST_SPLITS = 20_000
# Sums that differ by rounding alone are equal splits.
_ROUNDING = 1e-12


def permutation_p(baseline: Sequence[float], current: Sequence[float]) -> float:
    """One-sided p-value that ``current`` is larger: the share of all splits of the pooled runs into
    groups of these sizes whose mean difference is at least the one seen (Fisher 1935; Pitman 1937).

    The split that was seen counts, so p >= 1 / C(n + m, m). With more than MOST_SPLITS splits,
    that many are drawn by a fixed seed and p = (hits + 1) / (drawn + 1) (Phipson & Smyth 2010).
    Needs at least one value on each side.
    """
    pooled = np.asarray([*baseline, *current], dtype=np.float64)
    size = len(current)
    # For groups of fixed sizes the sum of one side decides the difference of the means.
    seen = float(pooled[len(baseline) :].sum())
    slack = _ROUNDING * float(np.abs(pooled).sum())
    members = _splits(len(pooled), size)
    if members is not None:
        return float((pooled[members].sum(axis=1) >= seen - slack).mean())
    rng = np.random.default_rng(0)
    order = rng.permuted(np.broadcast_to(pooled, (MOST_SPLITS, len(pooled))), axis=1)
    hits = int((order[:, :size].sum(axis=1) >= seen - slack).sum())
    return (hits + 1) / (MOST_SPLITS + 1)


@lru_cache(maxsize=64)
def _splits(total: int, size: int) -> npt.NDArray[np.int64] | None:
    """Row = the indices of one group; None where there are too many."""
    if math.comb(total, size) > MOST_SPLITS:
        return None
    return np.asarray(list(combinations(range(total), size)), dtype=np.int64)


def smallest_p(baseline: int, current: int) -> float:
    """The least p-value that so many runs can give: 1/252 for 5 against 5."""
    return 1 / min(math.comb(baseline + current, current), MOST_SPLITS + 1)


def runs_to_fire(alpha: float, tests: int, stages: int = 1) -> int:
    """The least n for which n runs against n can fire for one of ``tests`` metrics; with two
    stages a rerun doubles the second n.
    """
    n = 1
    while smallest_p(n, stages * n) > alpha / max(1, tests) and n < 20:
        n += 1
    return n


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for looking at all of them, in the order given (Holm 1979).

    The k-th smallest of m is multiplied by m - k + 1, never below one before it, at most 1:
    rejecting at alpha those that are <= alpha keeps the chance of any false alarm below alpha.
    """
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def shift(baseline: Sequence[float], current: Sequence[float]) -> float:
    """By how much ``current`` is larger: the median of all pairwise differences (Hodges & Lehmann
    1963). One run in four may be an outlier without moving it far.
    """
    pairs = np.subtract.outer(np.asarray(current, float), np.asarray(baseline, float))
    return float(np.median(pairs))


def fewer_p(was: tuple[int, int], now: tuple[int, int]) -> float:
    """One-sided p-value that a smaller share of ``now`` succeeded than of ``was``, each given as
    successes and trials: Fisher's exact test (1922).
    """
    from scipy.stats import hypergeom

    trials = was[1] + now[1]
    return float(hypergeom.cdf(now[0], trials, was[0] + now[0], now[1]))


def clopper_pearson_upper(hits: int, trials: int, confidence: float = 0.95) -> float:
    """Upper bound of a share of which ``hits`` in ``trials`` were seen, exact (Clopper & Pearson
    1934), one-sided.
    """
    from scipy.stats import beta

    if hits >= trials:
        return 1.0
    return float(beta.ppf(confidence, hits + 1, trials - hits))


def clopper_pearson_lower(hits: int, trials: int, confidence: float = 0.95) -> float:
    """Lower bound, as :func:`clopper_pearson_upper`."""
    return 1.0 - clopper_pearson_upper(trials - hits, trials, confidence)
