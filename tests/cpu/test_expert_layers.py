"""Routers and experts against what is written down expert by expert, and the gates."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from nexusbench.kernels.experts import GatedProduct, RoutedExperts, Router, gated  # noqa: E402
from nexusbench.kernels.gates import Gate  # noqa: E402
from nexusbench.kernels.routing import Routing  # noqa: E402

HIDDEN, EXPERTS = 16, 8
ROUTINGS = {
    "softmax": Routing(2),
    "normalised": Routing(3, normalised=True, scale=2.5),
    "of the chosen": Routing(3, scores="chosen"),
    "sigmoid": Routing(2, scores="sigmoid", normalised=True, corrected=True),
    "best groups": Routing(2, groups=4, best_groups=2),
    "two of a group": Routing(
        3, scores="sigmoid", groups=2, best_groups=1, group_score="two", corrected=True, scale=0.5
    ),
}


def by_hand(
    x: list[float],
    weight: list[list[float]],
    bias: list[float],
    correction: list[float],
    how: Routing,
) -> dict[int, float]:
    """The experts of one token and their weights, in plain Python."""
    products = [sum(a * b for a, b in zip(x, row, strict=True)) for row in weight]
    products = [one + more for one, more in zip(products, bias, strict=True)]
    if how.scores == "sigmoid":
        scores = [1 / (1 + math.exp(-one)) for one in products]
    else:
        scores = [math.exp(one) for one in products]
        scores = [one / sum(scores) for one in scores]
    wanted = [s + c if how.corrected else s for s, c in zip(scores, correction, strict=True)]
    eligible = set(range(len(scores)))
    if how.groups:
        size = len(scores) // how.groups
        groups = [range(first, first + size) for first in range(0, len(scores), size)]
        best = 1 if how.group_score == "largest" else 2

        def good(group: range) -> float:
            return sum(sorted((wanted[i] for i in group), reverse=True)[:best])

        groups = sorted(groups, key=good, reverse=True)[: how.best_groups]
        eligible = {i for group in groups for i in group}
    chosen = sorted(eligible, key=lambda i: wanted[i], reverse=True)[: how.chosen]
    found = {i: scores[i] for i in chosen}
    if how.normalised or how.scores == "chosen":
        found = {i: value / sum(found.values()) for i, value in found.items()}
    return {i: value * how.scale for i, value in found.items()}


@pytest.mark.parametrize("name", ROUTINGS)
def test_a_router_picks_and_weighs(name: str) -> None:
    torch.manual_seed(3)
    how = ROUTINGS[name]
    x, weight = torch.randn(30, HIDDEN), torch.randn(EXPERTS, HIDDEN)
    bias, correction = torch.randn(EXPERTS), torch.randn(EXPERTS) * 0.3
    router = Router(weight, how, bias, correction if how.corrected else None)
    experts, weights = router(x)
    for row in range(30):
        found = dict(zip(experts[row].tolist(), weights[row].tolist(), strict=True))
        right = by_hand(x[row].tolist(), weight.tolist(), bias.tolist(), correction.tolist(), how)
        assert found == pytest.approx(right, rel=1e-4), row


def experts_of(gate: Gate, count: int = EXPERTS) -> list[GatedProduct]:
    return [
        GatedProduct(
            torch.randn(48, HIDDEN) / 4, torch.randn(HIDDEN, 24) / 4, gate,
            torch.randn(48) / 4, torch.randn(HIDDEN) / 4,
        )
        for _ in range(count)
    ]  # fmt: skip


def test_experts_add_what_each_token_is_sent_to() -> None:
    torch.manual_seed(5)
    router = Router(torch.randn(EXPERTS, HIDDEN), Routing(3))
    experts = experts_of(Gate("clamped", alpha=1.7, limit=0.5))
    x = torch.randn(20, HIDDEN)
    found = RoutedExperts(router, experts)(x)
    picked, weights = router(x)
    for row in range(20):
        parts = [experts[i](x[row : row + 1])[0] for i in picked[row].tolist()]
        right = sum(part * w for part, w in zip(parts, weights[row], strict=True))
        assert torch.allclose(found[row], right, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_has_the_same_bits_alone_and_in_any_batch(dtype: torch.dtype) -> None:
    torch.manual_seed(6)
    router = Router(torch.randn(EXPERTS, 32), Routing(3))
    experts = [
        GatedProduct(torch.randn(64, 32).to(dtype), torch.randn(32, 32).to(dtype), Gate())
        for _ in range(EXPERTS)
    ]
    if experts[0].down.path != "native":
        pytest.skip("products by torch may depend on the number of rows")
    routed = RoutedExperts(router, experts)
    x = torch.randn(40, 32).to(dtype)
    together = routed(x)
    for row in range(40):
        assert torch.equal(routed(x[row : row + 1])[0], together[row])
    assert torch.equal(routed(x.flip(0)).flip(0), together)


def test_gates() -> None:
    both = torch.tensor([[0.3, -2.0, 4.0, 1.0, 3.0, -9.0]])
    gate, up = [0.3, -2.0, 4.0], [1.0, 3.0, -9.0]

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    right = {
        "silu": [a * sigmoid(a) * b for a, b in zip(gate, up, strict=True)],
        "gelu": [a * 0.5 * (1 + math.erf(a / 2**0.5)) * b for a, b in zip(gate, up, strict=True)],
        "gelu_tanh": [
            0.5 * a * (1 + math.tanh((2 / math.pi) ** 0.5 * (a + 0.044715 * a**3))) * b
            for a, b in zip(gate, up, strict=True)
        ],
        "clamped": [
            min(a, 2.5) * sigmoid(1.7 * min(a, 2.5)) * (max(-2.5, min(b, 2.5)) + 1)
            for a, b in zip(gate, up, strict=True)
        ],
    }
    for kind, values in right.items():
        made = Gate(kind, alpha=1.7, limit=2.5)  # type: ignore[arg-type]
        assert gated(both, made)[0].tolist() == pytest.approx(values, rel=1e-5)
