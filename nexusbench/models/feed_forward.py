"""Experts as a checkpoint has them: one by one or in one tensor, and what stands beside."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from nexusbench.kernels.experts import GatedProduct, RoutedExperts, Router
from nexusbench.kernels.linear import LinearLayer
from nexusbench.models.designs import DenseDesign, ExpertsDesign
from nexusbench.models.weights import WeightReader


class ExpertsPart:
    """Routed experts and a shared one, whose part a gate of its own may scale."""

    __slots__ = ("_shared", "_shared_gate", "routed")

    def __init__(
        self,
        routed: RoutedExperts,
        shared: GatedProduct | None = None,
        shared_gate: LinearLayer | None = None,
    ) -> None:
        self.routed, self._shared, self._shared_gate = routed, shared, shared_gate

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, hidden] in fp32."""
        out = self.routed(x)
        if self._shared is None:
            return out
        shared = self._shared(x).float()
        if self._shared_gate is not None:
            shared = shared * self._shared_gate(x).float().sigmoid()
        return out.add_(shared)


def read_experts(read: WeightReader, layer: str, design: ExpertsDesign, hidden: int) -> ExpertsPart:
    """The experts of ``layer`` (``model.layers.N``). Errors as of the reader."""
    at = f"{layer}.{design.module}"
    routing, name = design.routing, f"{at}.{design.router}"
    weight = read.matrix(f"{name}.weight", design.num_experts, hidden, torch.float32)
    bias = correction = None
    if design.bias:
        bias = read.vector(f"{name}.bias", design.num_experts, torch.float32)
    if routing.corrected:
        field = f"{name}.e_score_correction_bias"
        correction = read.vector(field, design.num_experts, torch.float32)
    each = _stacked if design.stacked else _apart
    experts = list(each(read, f"{at}.experts", design, hidden))
    routed = RoutedExperts(Router(weight, routing, bias, correction), experts)
    if not design.shared_size:
        return ExpertsPart(routed)
    dense = DenseDesign(size=design.shared_size, gate=design.gate)
    of = f"{at}.{design.shared}"
    gate_up, _ = read.gate_up(of, dense)
    down = read.matrix(f"{of}.down_proj.weight", hidden, dense.size)
    shared, gate = GatedProduct(gate_up, down, design.gate), None
    if design.shared_gate:
        gate = LinearLayer(read.matrix(f"{of}_gate.weight", 1, hidden))
    return ExpertsPart(routed, shared, gate)


def _apart(
    read: WeightReader, at: str, design: ExpertsDesign, hidden: int
) -> Iterator[GatedProduct]:
    """Experts whose matrices are tensors of their own."""
    gate, up, down = design.matrices
    for index in range(design.num_experts):
        of = f"{at}.{index}"
        parts = [(f"{of}.{gate}", design.size), (f"{of}.{up}", design.size)]
        gate_up = read.stacked(parts, "weight", (hidden,))
        yield GatedProduct(
            gate_up, read.matrix(f"{of}.{down}.weight", hidden, design.size), design.gate
        )


def _stacked(
    read: WeightReader, at: str, design: ExpertsDesign, hidden: int
) -> Iterator[GatedProduct]:
    """Experts that are one tensor: [experts, inputs, outputs], gate and up in turns, and biases."""
    count, size = design.num_experts, design.size
    gate_up = read.tensor(f"{at}.gate_up_proj", (count, hidden, 2 * size))
    gate_up_bias = read.tensor(f"{at}.gate_up_proj_bias", (count, 2 * size))
    down = read.tensor(f"{at}.down_proj", (count, size, hidden))
    down_bias = read.tensor(f"{at}.down_proj_bias", (count, hidden))

    def own(rows: torch.Tensor) -> torch.Tensor:
        return rows.to(device=read.device, dtype=read.dtype).contiguous()

    for index in range(count):
        rows, bias = gate_up[index].t(), gate_up_bias[index]
        yield GatedProduct(
            own(torch.cat([rows[0::2], rows[1::2]])), own(down[index].t()), design.gate,
            own(torch.cat([bias[0::2], bias[1::2]])), own(down_bias[index]),
        )  # fmt: skip
