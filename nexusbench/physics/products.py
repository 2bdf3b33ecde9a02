"""One linear layer of a launch: the product in its data type, and quantising what goes in."""

from __future__ import annotations

from nexusbench.core.specs import GpuSpec
from nexusbench.physics.gemm import Gemm, Quantise, ScaledGemm
from nexusbench.physics.operators import OperatorClass, scaled_sum
from nexusbench.physics.precisions import product_constants, product_kernel, quantise_constants

# Linear layers whose input no element-wise kernel makes that could quantise it in passing, as norms
# and activations do (vLLM's fusion passes): what attention writes.
UNFUSED = ("attn_out",)
FUSED_KINDS = ("fp8", "fp8_block", "nvfp4")  # those passes know no 8-bit integers


class Products:
    """Times of products of weights of one data type on one GPU.

    ``weight_bytes`` and ``activation_bytes`` are those of one value; the latter only of kernels
    that do not quantise activations.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        weights: str,
        weight_bytes: float,
        activations: str = "bfloat16",
        activation_bytes: float = 2.0,
    ) -> None:
        self.kernel = kernel = product_kernel(gpu, weights, activations)
        self._weight_bytes, self._activation_bytes = weight_bytes, activation_bytes
        self._wide = Gemm(gpu)
        self._scaled: ScaledGemm | None = None
        self._quantise: Quantise | None = None
        self._fused = kernel.kind in FUSED_KINDS
        if kernel.scales:
            constants, own = product_constants(gpu, kernel.kind), quantise_constants(gpu)
            self._scaled = ScaledGemm(gpu, constants, weight_bytes, kernel.activation_bytes)
            self._quantise = Quantise(gpu, own, kernel.scales)

    def time(
        self,
        name: str,
        rows: float,
        inputs: int,
        outputs: int,
        sms: int,
        bandwidth: float,
        streams: float,
    ) -> OperatorClass:
        """The linear layer ``name`` on ``sms`` SMs that draw ``bandwidth`` bytes per ns of weights,
        and ``streams`` in an element-wise kernel; in ns.
        """  # fmt: skip
        if self._scaled is None or self._quantise is None:
            return self._wide.time(
                rows, inputs, outputs, self._weight_bytes, self._activation_bytes, sms, bandwidth
            )
        made = self._scaled.time(rows, inputs, outputs, sms, bandwidth)
        if self._fused and name not in UNFUSED:
            return made
        return scaled_sum(self._quantise.time(rows, inputs, sms, streams), 1.0, made)
