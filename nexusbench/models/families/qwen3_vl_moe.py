"""Qwen3-VL with experts."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily


class Qwen3VlMoeFamily(ModelFamily):
    """The decoder of Qwen3-VL's mixtures of experts: Qwen3's."""

    architecture: ClassVar[str] = "Qwen3VLMoeForConditionalGeneration"
    source: ClassVar[str] = "arXiv 2511.21631; transformers, models/qwen3_vl_moe"
    inner: ClassVar[str] = "text_config"
    expert_size: ClassVar[str] = "moe_intermediate_size"
    reads: ClassVar[tuple[str, ...]] = ("decoder_sparse_step", "mlp_only_layers")
    qk_norm: ClassVar[bool] = True
    defaults: ClassVar[Layout] = {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16,
        "max_position_embeddings": 128000, "moe_intermediate_size": 1408,
        "num_experts_per_tok": 4, "num_experts": 60,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        "text_config": {
            **LAYOUT, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 192,
        },
    }  # fmt: skip
