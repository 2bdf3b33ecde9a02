"""MiniMax-M3."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.layers import DenseMlp
from nexusbench.core.mixers import SparseAttention
from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.module_names import ModuleNames, module_names
from nexusbench.models.reading import FULL, refuse, routed
from nexusbench.models.stacking import LayerPlan

_SPARSE = "minimax_m3_sparse"
# Keys of ``sparse_attention_config`` and the newer ones outside of it.
_INDEXER = {
    "index_n_heads": "sparse_num_index_heads", "index_head_dim": "sparse_index_dim",
    "index_block_size": "sparse_block_size", "index_topk_blocks": "sparse_topk_blocks",
}  # fmt: skip


class MinimaxM3VlFamily(ModelFamily):
    """MiniMax-M3: grouped-query attention, in most layers to the blocks that an indexer picks;
    dense layers first, then routed and shared experts.
    """

    architecture: ClassVar[str] = "MiniMaxM3SparseForConditionalGeneration"
    also: ClassVar[tuple[str, ...]] = ("MiniMaxM3SparseForCausalLM",)
    source: ClassVar[str] = "transformers, models/minimax_m3_vl"
    inner: ClassVar[str] = "text_config"
    expert_size: ClassVar[str] = "intermediate_size"
    activations: ClassVar[tuple[str, ...]] = ("silu", "swigluoai")
    names: ClassVar[ModuleNames] = module_names(sparse=("block_sparse_moe", "mlp"))
    reads: ClassVar[tuple[str, ...]] = (
        "moe_layer_freq", "n_shared_experts", "sparse_attention_config", "first_k_dense_replace",
        "index_head_dim",
    )  # fmt: skip
    defaults: ClassVar[Layout] = {
        "vocab_size": 200064, "hidden_size": 6144, "intermediate_size": 3072,
        "num_hidden_layers": 60, "num_attention_heads": 64, "num_key_value_heads": 4,
        "head_dim": 128, "max_position_embeddings": 524288, "num_experts_per_tok": 4,
        "num_local_experts": 128, "dense_intermediate_size": 12288,
        "shared_intermediate_size": 3072, "index_n_heads": 4, "index_head_dim": 128,
        "index_block_size": 128, "index_topk_blocks": 16,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        "text_config": {
            **LAYOUT, "num_local_experts": 8, "num_experts_per_tok": 2, "index_n_heads": 2,
            "shared_intermediate_size": 192, "dense_intermediate_size": 768,
        },
    }  # fmt: skip

    def layers(self, config: ConfigDocument, count: int) -> list[LayerPlan]:
        """Each layer: full or sparse attention, dense or experts."""
        refuse(config, "attention_output_gate", (False,), "Only attention without a gate")
        config, sparse = self.indexer(config, count)
        hidden, base = config.count("hidden_size"), self.attention(config)
        block, size = config.count("index_block_size"), config.count("index_head_dim")
        picking = SparseAttention(
            base=base, topk=config.count("index_topk_blocks") * block, block=block,
            index_heads=config.count("index_n_heads"), index_dim=size, index_inputs=hidden,
            index_weights=False, index_dtype="bfloat16",
        )  # fmt: skip
        dense = DenseMlp(intermediate_size=config.count("dense_intermediate_size"))
        shared = config.size("shared_intermediate_size") * config.size("n_shared_experts", 1)
        experts = routed(
            config, count=("num_local_experts", "num_experts"), size=self.expert_size,
            shared_size=shared,
        )  # fmt: skip
        return [
            LayerPlan(
                mixer=picking if picks else base, mlp=experts if of_experts else dense,
                vectors=2 * hidden + 2 * base.head_dim + 2 * size * picks,
            )
            for picks, of_experts in zip(sparse, self.sparse(config, count), strict=True)
        ]  # fmt: skip

    def indexer(self, config: ConfigDocument, count: int) -> tuple[ConfigDocument, list[bool]]:
        """The config with the indexer's keys outside of their object, and which layers have one."""
        given = config.data.get("sparse_attention_config") or {}
        if not isinstance(given, dict):
            hint = "Give an object"
            raise config.error("sparse_attention_config", f"is {shown(given)}", hint)
        moved = {key: given[old] for key, old in _INDEXER.items() if old in given}
        moved |= {"sparse_attention_freq": given.get("sparse_attention_freq")}
        config = config.replaced(moved)
        kinds = config.listed("layer_types", count, (FULL, _SPARSE), longer=True)
        if kinds is not None:
            return config, [kind == _SPARSE for kind in kinds]
        listed = config.listed("sparse_attention_freq", count, (0, 1), longer=True)
        return config, [one == 1 for one in listed or [0] * count]

    def sparse(self, config: ConfigDocument, count: int) -> list[bool]:
        """Whether each layer has experts."""
        kinds = config.listed("mlp_layer_types", count, ("dense", "sparse"), longer=True)
        if kinds is not None:
            return [kind == "sparse" for kind in kinds]
        listed = config.listed("moe_layer_freq", count, (0, 1), longer=True)
        return [one == 1 for one in listed or [1] * count]
