"""Mistral 4."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Biases, Layout
from nexusbench.models.families.deepseek_v3 import DeepseekV3Family


class Mistral4Family(DeepseekV3Family):
    """Mistral 4: latent attention and experts in every layer."""

    architecture: ClassVar[str] = "Mistral4ForCausalLM"
    source: ClassVar[str] = "transformers, models/mistral4"
    biases: ClassVar[Biases | None] = None
    defaults: ClassVar[Layout] = {
        "vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 12288,
        "moe_intermediate_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 32,
        "n_shared_experts": 1, "n_routed_experts": 128, "kv_lora_rank": 256, "q_lora_rank": 1024,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 64,
        "num_experts_per_tok": 4, "first_k_dense_replace": 0, "max_position_embeddings": 1048576,
    }  # fmt: skip
