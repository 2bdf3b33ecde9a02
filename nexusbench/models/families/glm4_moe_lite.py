"""GLM-4.7-Flash."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Biases, Layout
from nexusbench.models.families.deepseek_v3 import DeepseekV3Family


class Glm4MoeLiteFamily(DeepseekV3Family):
    """GLM-4.7-Flash: latent attention, one dense layer, then experts."""

    architecture: ClassVar[str] = "Glm4MoeLiteForCausalLM"
    source: ClassVar[str] = "transformers, models/glm4_moe_lite"
    biases: ClassVar[Biases | None] = None
    defaults: ClassVar[Layout] = {
        "vocab_size": 154880, "hidden_size": 2048, "intermediate_size": 10240,
        "moe_intermediate_size": 1536, "num_hidden_layers": 47, "num_attention_heads": 20,
        "n_shared_experts": 1, "n_routed_experts": 64, "kv_lora_rank": 512, "q_lora_rank": 768,
        "qk_rope_head_dim": 64, "v_head_dim": 256, "qk_nope_head_dim": 192,
        "num_experts_per_tok": 4, "first_k_dense_replace": 1, "max_position_embeddings": 202752,
    }  # fmt: skip
