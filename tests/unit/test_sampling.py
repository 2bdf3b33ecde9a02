"""Tokens drawn from logits: greedy, and by (seed, request, position) alone."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from nexusbench.core.errors import UsageError  # noqa: E402
from nexusbench.models.sampling import TokenSampling, sample, uniform  # noqa: E402

LOGITS = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, 1.0]])
    assert sample(logits, TokenSampling(), [0, 1], [5, 5]) == [1, 0]
    assert sample(logits[:0], TokenSampling(), [], []) == []


def test_frequencies_follow_the_probabilities() -> None:
    count = 20000
    drawn = sample(LOGITS.expand(count, -1), TokenSampling(1.0), range(count), [7] * count)
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / count
    assert torch.allclose(shares, LOGITS.exp()[0], atol=0.015)


def test_low_temperature_sharpens() -> None:
    drawn = sample(LOGITS.expand(2000, -1), TokenSampling(0.25), range(2000), [0] * 2000)
    assert drawn.count(3) / 2000 == pytest.approx(0.4**4 / 0.0354, abs=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.05, {3}), (0.4, {3}), (0.41, {2, 3}), (0.95, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_smallest_sufficient_set(top_p: float, kept: set[int]) -> None:
    drawn = sample(LOGITS.expand(4000, -1), TokenSampling(1.0, top_p), range(4000), [0] * 4000)
    assert set(drawn) == kept


def test_a_flat_vocabulary_needs_more_than_the_head() -> None:
    logits = torch.zeros(500, 5000)
    drawn = sample(logits, TokenSampling(1.0, 0.9), range(500), [0] * 500)
    assert max(drawn) > 2000
    assert len(set(drawn)) > 400


def test_batch_mates_and_order_change_nothing() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 300)
    for sampling in (TokenSampling(0.8, seed=3), TokenSampling(0.8, 0.7, seed=3)):
        together = sample(logits, sampling, range(40), range(100, 140))
        for row in (0, 17, 39):
            assert sample(logits[row : row + 1], sampling, [row], [100 + row]) == [together[row]]
        backwards = sample(logits.flip(0), sampling, range(39, -1, -1), range(139, 99, -1))
        assert backwards == together[::-1]


def test_the_seed_the_request_and_the_position_each_matter() -> None:
    base = uniform(0, range(50), [9] * 50)
    assert len(set(base.tolist())) == 50
    assert not set(base) & set(uniform(1, range(50), [9] * 50))
    assert not set(base) & set(uniform(0, range(50), [10] * 50))
    assert (uniform(0, range(50), [9] * 50) == base).all()
    assert uniform(2**64 - 1, [2**31], [10**6])[0] < 1


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        TokenSampling(**options)
