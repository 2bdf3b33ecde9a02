"""Feed-forward parts: gated products, and experts, each over the tokens that it is picked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from nexusbench.kernels.gates import Gate
from nexusbench.kernels.linear import LinearLayer
from nexusbench.kernels.routing import Routing


class GatedProduct:
    """[T, hidden] -> [T, hidden]: gate and up projection as one, the gate, the down projection.

    ``gate_up`` [2 x size, hidden] has the rows of the gate, then those of the up projection.
    """

    __slots__ = ("_gate", "down", "gate_up")

    def __init__(
        self,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        gate: Gate,
        gate_up_bias: torch.Tensor | None = None,
        down_bias: torch.Tensor | None = None,
    ) -> None:
        self._gate = gate
        self.gate_up = LinearLayer(gate_up, gate_up_bias, gated=gate.kind == "silu")
        self.down = LinearLayer(down, down_bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Rows do not depend on one another."""
        inner = self.gate_up(x)
        return self.down(inner if self.gate_up.gated else gated(inner, self._gate))


def gated(gate_up: torch.Tensor, gate: Gate) -> torch.Tensor:
    """[T, 2 x size] -> [T, size]."""
    first, up = gate_up.chunk(2, dim=1)
    if gate.kind == "clamped":
        first, up = first.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
        return first * torch.sigmoid(gate.alpha * first) * (up + 1)
    if gate.kind == "silu":
        return functional.silu(first) * up
    how = "tanh" if gate.kind == "gelu_tanh" else "none"
    return functional.gelu(first, approximate=how) * up


class Router:
    """Picks experts for tokens, in fp32; what it picks for one does not depend on the others.

    ``weight`` [experts, hidden], ``bias`` and ``correction`` [experts].
    """

    def __init__(
        self,
        weight: torch.Tensor,
        routing: Routing,
        bias: torch.Tensor | None = None,
        correction: torch.Tensor | None = None,
    ) -> None:
        self.routing = routing
        self._product = LinearLayer(weight.float(), None if bias is None else bias.float())
        self._correction = None if correction is None else correction.float()

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, hidden] -> experts [T, chosen] and their weights [T, chosen] in fp32."""
        how = self.routing
        scores = self._product(x.float())
        if how.scores == "chosen":
            best, experts = scores.topk(how.chosen, dim=1)
            return experts, best.softmax(dim=1)
        scores = scores.sigmoid() if how.scores == "sigmoid" else scores.softmax(dim=1)
        eligible = scores if self._correction is None else scores + self._correction
        if how.groups:
            eligible = self._of_best_groups(eligible)
        experts = eligible.topk(how.chosen, dim=1).indices
        weights = scores.gather(1, experts)
        if how.normalised:
            weights = weights / (weights.sum(dim=1, keepdim=True) + 1e-20)
        return experts, weights if how.scale == 1.0 else weights * how.scale

    def _of_best_groups(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores, and -inf for experts of other groups."""
        how = self.routing
        grouped = scores.view(len(scores), how.groups, -1)
        if how.group_score == "two":
            of_group = grouped.topk(2, dim=2).values.sum(dim=2)
        else:
            of_group = grouped.amax(dim=2)
        best = of_group.topk(how.best_groups, dim=1).indices
        left_out = torch.ones_like(of_group, dtype=torch.bool).scatter_(1, best, False)
        return grouped.masked_fill(left_out.unsqueeze(2), float("-inf")).view_as(scores)


class RoutedExperts:
    """[T, hidden] -> [T, hidden] in fp32: the weighed sum of the experts that each token goes to.

    A token's experts are added in their order, so that its sum is the same in every batch.
    """

    def __init__(self, router: Router, experts: Sequence[GatedProduct]) -> None:
        self.router, self.experts = router, tuple(experts)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Each expert computes its tokens at once."""
        experts, weights = self.router(x)
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        picked, order = experts.flatten().sort(stable=True)
        tokens, weights = order // experts.shape[1], weights.flatten()[order].unsqueeze(1)
        counts = torch.bincount(picked, minlength=len(self.experts)).tolist()
        start = 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                of = tokens[start : start + count]
                part = expert(x.index_select(0, of)).float()
                out.index_add_(0, of, part.mul_(weights[start : start + count]))
                start += count
        return out
