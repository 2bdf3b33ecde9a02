"""GLM-4.5 to 4.7."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.layers import ExpertsMlp
from nexusbench.core.mixers import FullAttention
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.reading import attention_vectors, dense_first, routed


class Glm4MoeFamily(ModelFamily):
    """GLM-4.5 to 4.7: grouped-query attention, dense layers first, then experts."""

    architecture: ClassVar[str] = "Glm4MoeForCausalLM"
    source: ClassVar[str] = "arXiv 2508.06471; transformers, models/glm4_moe"
    expert_size: ClassVar[str] = "moe_intermediate_size"
    reads: ClassVar[tuple[str, ...]] = (
        "first_k_dense_replace", "n_routed_experts", "n_shared_experts"
    )  # fmt: skip
    defaults: ClassVar[Layout] = {
        "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "num_hidden_layers": 46, "num_attention_heads": 96,
        "num_key_value_heads": 8, "num_experts_per_tok": 8, "n_shared_experts": 1,
        "n_routed_experts": 128, "first_k_dense_replace": 1, "max_position_embeddings": 131072,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **LAYOUT, "head_dim": 32, "n_routed_experts": 8, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "moe_intermediate_size": 192, "first_k_dense_replace": 1,
    }  # fmt: skip

    def sparse(self, config: ConfigDocument, count: int) -> list[bool]:
        """All but the first ones."""
        first = dense_first(config, count)
        return [index >= first for index in range(count)]

    def experts(self, config: ConfigDocument) -> ExpertsMlp:
        """Routed experts, and shared ones as one of their widths together."""
        shared = config.size("n_shared_experts") * config.count(self.expert_size)
        counts = ("n_routed_experts",)
        return routed(config, count=counts, size=self.expert_size, shared_size=shared)

    def vectors(self, config: ConfigDocument, mixer: FullAttention) -> int:
        """Norms, biases of queries, keys and values."""
        hidden, biased = config.count("hidden_size"), config.flag("attention_bias")
        normed = config.flag("use_qk_norm")
        return 2 * hidden + attention_vectors(mixer, hidden, qkv_bias=biased, qk_norm=normed)
