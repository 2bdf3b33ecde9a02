"""GLM-5."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.families.base import Layout
from nexusbench.models.families.deepseek_v32 import DeepseekV32Family

_INDEXERS = {"F": "full", "S": "shared"}


class GlmMoeDsaFamily(DeepseekV32Family):
    """GLM-5 to 5.2: sparse attention as DeepSeek-V3.2's, of which later ones share indexers."""

    architecture: ClassVar[str] = "GlmMoeDsaForCausalLM"
    source: ClassVar[str] = "https://huggingface.co/zai-org/GLM-5; transformers, models/glm_moe_dsa"
    defaults: ClassVar[Layout] = {
        "vocab_size": 154880, "hidden_size": 6144, "intermediate_size": 12288,
        "moe_intermediate_size": 2048, "num_hidden_layers": 78, "num_attention_heads": 64,
        "n_shared_experts": 1, "n_routed_experts": 256, "kv_lora_rank": 512, "q_lora_rank": 2048,
        "qk_rope_head_dim": 64, "v_head_dim": 256, "qk_nope_head_dim": 192,
        "num_experts_per_tok": 8, "first_k_dense_replace": 3, "max_position_embeddings": 202752,
        "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 32,
    }  # fmt: skip

    def reusing(self, config: ConfigDocument, count: int) -> list[bool]:
        """By ``indexer_types``, by a pattern of letters, or by a period."""
        kinds = config.listed("indexer_types", count, ("full", "shared"), longer=True)
        pattern = config.data.get("index_topk_pattern")
        if kinds is None and pattern is not None:
            known = isinstance(pattern, str) and set(pattern) <= set(_INDEXERS)
            if not known or len(str(pattern)) < count:
                hint = f"Give a letter F or S for each of the {count} layers"
                raise config.error("index_topk_pattern", f"is {shown(pattern)}", hint)
            kinds = [_INDEXERS[letter] for letter in str(pattern)[:count]]
        if kinds is not None:
            if kinds[0] != "full":
                raise config.error("indexer_types", "begins with shared", "The first must be full")
            return [kind == "shared" for kind in kinds]
        period = config.count("index_topk_freq", 1)
        first = config.size("index_skip_topk_offset", 2)
        return [max(index - first + 1, 0) % period != 0 for index in range(count)]
