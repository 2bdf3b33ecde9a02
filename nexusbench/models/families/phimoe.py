"""Phi-3.5-MoE."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.mixers import FullAttention
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily


class PhimoeFamily(ModelFamily):
    """Phi-3.5-MoE: experts in every layer, layer norms with biases."""

    architecture: ClassVar[str] = "PhimoeForCausalLM"
    also: ClassVar[tuple[str, ...]] = ("PhiMoEForCausalLM",)
    source: ClassVar[str] = "arXiv 2404.14219; transformers, models/phimoe"
    windowed: ClassVar[bool] = True
    expert_size: ClassVar[str] = "intermediate_size"
    num_experts: ClassVar[str] = "num_local_experts"
    defaults: ClassVar[Layout] = {
        "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 6400,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 131072, "num_experts_per_tok": 2, "num_local_experts": 16,
    }  # fmt: skip
    sample: ClassVar[Layout] = {**LAYOUT, "num_local_experts": 8, "num_experts_per_tok": 2}

    def vectors(self, config: ConfigDocument, mixer: FullAttention) -> int:
        """As usual, and the norms' biases."""
        return super().vectors(config, mixer) + 2 * config.count("hidden_size")
