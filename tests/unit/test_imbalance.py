"""Whole experts on several GPUs: what the busiest one has, against draws."""

from __future__ import annotations

import numpy as np
import pytest

from nexusbench.physics.experts import HEIGHTS, uniform
from nexusbench.physics.imbalance import busiest


def drawn(tokens: int, experts: int, chosen: int, gpus: int) -> tuple[float, float]:
    """Mean over draws of the most touched experts, and of the most rows, of any GPU."""
    draw = np.random.default_rng(7)
    touched, rows = [], []
    for _ in range(400):
        picked = np.argsort(draw.random((tokens, experts)), axis=1)[:, :chosen]
        counts = np.bincount(picked.ravel(), minlength=experts).reshape(gpus, -1)
        touched.append((counts > 0).sum(axis=1).max())
        rows.append(counts.sum(axis=1).max())
    return float(np.mean(touched)), float(np.mean(rows))


@pytest.mark.parametrize(
    ("tokens", "experts", "chosen", "gpus"),
    [(1, 128, 8, 2), (2, 128, 8, 2), (32, 128, 8, 2), (8, 128, 8, 8), (32, 256, 8, 8),
     (64, 128, 4, 4), (128, 256, 8, 16)],
)  # fmt: skip
def test_the_busiest_gpu(tokens: int, experts: int, chosen: int, gpus: int) -> None:
    made, (touched, rows) = (
        busiest(tokens, experts, chosen, gpus),
        drawn(tokens, experts, chosen, gpus),
    )
    assert made.touched == pytest.approx(touched, rel=0.03)
    assert made.rows == pytest.approx(rows, rel=0.03)


def test_the_busiest_gpu_by_hand() -> None:
    """One token, one of four experts, two GPUs: half a row each, of variance 1/4, and as the other
    has what one has not, Var - Cov = 1/2; the same for touched experts.
    """
    made = busiest(1, 4, 1, 2)
    above = 0.5642 * 0.5**0.5
    assert (made.rows, made.touched) == (pytest.approx(0.5 + above), pytest.approx(0.5 + above))
    # Two of four experts: each GPU touches two experts with a chance of 1/6, one with 4/6.
    two = busiest(1, 4, 2, 2)
    apart = 2 * (1 / 2 - 1 / 6)
    assert two.touched == pytest.approx(1 + 0.5642 * apart**0.5)
    assert two.rows == pytest.approx(1 + 0.5642 * (1 * 2 / 3) ** 0.5)


def test_one_gpu_has_what_there_is() -> None:
    assert busiest(40, 128, 8, 1) == uniform(40, 128, 8)


def test_a_gpu_between_two_listed_numbers_of_gpus() -> None:
    rows = [busiest(1000, 384, 8, gpus).rows * gpus / 8000 for gpus in (4, 6, 8)]
    assert rows[0] < rows[1] < rows[2]


def test_tiles_follow_rows_and_touched_experts() -> None:
    few, many = busiest(4, 128, 8, 4), busiest(40_000, 128, 8, 4)
    assert few.tiles == pytest.approx([few.touched] * len(HEIGHTS))
    assert many.tiles[0] == pytest.approx(many.rows / 8 + 0.5 * 7 / 8 * 32, rel=1e-3)
    assert many.touched == many.held == 32
    assert many.rows < 1.02 * uniform(40_000, 128, 8, 4).rows


def test_no_more_than_there_are() -> None:
    alone = busiest(1, 8, 2, 8)  # one expert each: the busiest has one of them, and one row
    assert alone.touched <= 1.0
    assert alone.rows <= 2.0
    assert busiest(0, 128, 8, 4).rows == 0.0
    assert busiest(5, 8, 8, 4) == uniform(5, 8, 8, 4)  # every token uses all
