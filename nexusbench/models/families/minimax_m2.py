"""MiniMax-M2."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from nexusbench.core.mixers import FullAttention
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.module_names import ModuleNames, module_names


class MinimaxM2Family(ModelFamily):
    """MiniMax-M2 to M2.7: full attention and experts in every layer."""

    architecture: ClassVar[str] = "MiniMaxM2ForCausalLM"
    source: ClassVar[str] = "https://huggingface.co/MiniMaxAI/MiniMax-M2; transformers, minimax_m2"
    expert_size: ClassVar[str] = "intermediate_size"
    num_experts: ClassVar[str] = "num_local_experts"
    names: ClassVar[ModuleNames] = module_names(sparse=("block_sparse_moe", "mlp"))
    reads: ClassVar[tuple[str, ...]] = ("attn_type_list",)
    defaults: ClassVar[Layout] = {
        "vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 1536,
        "num_hidden_layers": 62, "num_attention_heads": 48, "num_key_value_heads": 8,
        "head_dim": 128, "num_experts_per_tok": 8, "num_local_experts": 256,
        "max_position_embeddings": 196608,
    }  # fmt: skip
    sample: ClassVar[Layout] = {**LAYOUT, "num_local_experts": 8, "num_experts_per_tok": 2}

    def windows(self, config: ConfigDocument, count: int) -> list[int]:
        """None: every layer must see everything."""
        config.listed("attn_type_list", count, (1,))
        return super().windows(config, count)

    def attention(self, config: ConfigDocument) -> FullAttention:
        """Queries and keys are normalised over all their heads."""
        wide = config.flag("use_qk_norm", True)
        return msgspec.structs.replace(super().attention(config), wide_norm=wide)

    def vectors(self, config: ConfigDocument, mixer: FullAttention) -> int:
        """Two norms, one over all query heads and one over all key heads, the router's bias."""
        normed = (mixer.num_heads + mixer.num_kv_heads) * mixer.head_dim
        return 2 * config.count("hidden_size") + normed
