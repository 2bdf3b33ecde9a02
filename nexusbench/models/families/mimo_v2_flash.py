"""MiMo-V2-Flash."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.layers import DenseMlp
from nexusbench.core.mixers import FullAttention
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.reading import (
    FULL,
    SLIDING,
    attention_vectors,
    check_kv_heads,
    in_window,
    layer_kinds,
    refuse,
    routed,
)
from nexusbench.models.stacking import LayerPlan


class MimoV2FlashFamily(ModelFamily):
    """MiMo-V2-Flash: five layers with a small window, twice the KV heads and sinks for each that
    sees everything; value heads smaller than key heads; one dense layer, then routed experts.
    """

    architecture: ClassVar[str] = "MiMoV2FlashForCausalLM"
    source: ClassVar[str] = "arXiv 2601.02780; transformers, models/mimo_v2_flash"
    expert_size: ClassVar[str] = "moe_intermediate_size"
    reads: ClassVar[tuple[str, ...]] = (
        "hybrid_layer_pattern", "moe_layer_freq", "n_routed_experts", "attention_chunk_size"
    )  # fmt: skip
    defaults: ClassVar[Layout] = {
        "vocab_size": 152576, "hidden_size": 4096, "intermediate_size": 16384,
        "num_hidden_layers": 48, "num_attention_heads": 64, "num_key_value_heads": 4,
        "head_dim": 192, "v_head_dim": 128, "max_position_embeddings": 131072,
        "moe_intermediate_size": 2048, "num_experts_per_tok": 8, "n_routed_experts": 256,
        "sliding_window": 128,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **LAYOUT, "head_dim": 48, "v_head_dim": 32, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "moe_intermediate_size": 192, "sliding_window": 128,
    }  # fmt: skip

    def layers(self, config: ConfigDocument, count: int) -> list[LayerPlan]:
        """Each layer: window or everything, dense or experts."""
        refuse(config, "attention_bias", (False,), "Only attention without biases is modelled")
        hidden = config.count("hidden_size")
        full, sliding = self.mixer(config, ""), self.mixer(config, "swa_")
        window = config.count("sliding_window_size", config.count("sliding_window"))
        sliding = in_window(config, sliding, window)
        experts = routed(config, count=("n_routed_experts",), size=self.expert_size)
        dense = DenseMlp(intermediate_size=config.count("intermediate_size"))
        plans = []
        for kind, of_experts in zip(
            self.kinds(config, count), self.sparse(config, count), strict=True
        ):
            mixer = sliding if kind == SLIDING else full
            vectors = 2 * hidden + attention_vectors(mixer, hidden)
            vectors += mixer.num_heads * (kind == SLIDING)  # sinks
            mlp = experts if of_experts else dense
            plans.append(LayerPlan(mixer=mixer, mlp=mlp, vectors=vectors))
        return plans

    def mixer(self, config: ConfigDocument, prefix: str) -> FullAttention:
        """The attention of layers that see everything, or (``swa_``) a window."""
        heads, kv_heads = config.count("num_attention_heads"), config.count("num_key_value_heads")
        head_dim, value_dim = config.count("head_dim"), config.count("v_head_dim")
        if prefix:
            heads = config.count("swa_num_attention_heads", heads)
            kv_heads = config.count("swa_num_key_value_heads", 2 * kv_heads)
            head_dim = config.count("swa_head_dim", head_dim)
            value_dim = config.count("swa_v_head_dim", value_dim)
        check_kv_heads(config, f"{prefix}num_key_value_heads", heads, kv_heads)
        return FullAttention(
            num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim
        )

    def kinds(self, config: ConfigDocument, count: int) -> list[str]:
        """Window or everything, of each layer."""
        usual = [FULL if index == 0 or (index + 1) % 6 == 0 else SLIDING for index in range(count)]
        listed = config.listed("hybrid_layer_pattern", count, (0, 1), longer=True)
        if listed is not None:
            usual = [SLIDING if one else FULL for one in listed]
        return layer_kinds(config, count, usual)

    def sparse(self, config: ConfigDocument, count: int) -> list[bool]:
        """Whether each layer has experts."""
        kinds = config.listed("mlp_layer_types", count, ("dense", "sparse"), longer=True)
        if kinds is not None:
            return [kind == "sparse" for kind in kinds]
        listed = config.listed("moe_layer_freq", count, (0, 1), longer=True)
        return [one == 1 for one in listed or [0, *[1] * (count - 1)]]
