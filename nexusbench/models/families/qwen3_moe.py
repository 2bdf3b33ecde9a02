"""Qwen3 with experts."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import LAYOUT, Biases, Layout, ModelFamily


class Qwen3MoeFamily(ModelFamily):
    """Qwen3's mixtures of experts: routed ones only."""

    architecture: ClassVar[str] = "Qwen3MoeForCausalLM"
    source: ClassVar[str] = "arXiv 2505.09388; transformers, models/qwen3_moe"
    expert_size: ClassVar[str] = "moe_intermediate_size"
    reads: ClassVar[tuple[str, ...]] = ("decoder_sparse_step", "mlp_only_layers")
    biases: ClassVar[Biases | None] = Biases(qkv=None, output=None)
    qk_norm: ClassVar[bool] = True
    sample: ClassVar[Layout] = {
        **LAYOUT, "num_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 192,
    }  # fmt: skip
