"""MiniMax-01 and M1."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.layers import ExpertsMlp
from nexusbench.core.mixers import Projection, StateMixer
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.module_names import ModuleNames, module_names
from nexusbench.models.reading import FULL, LINEAR, layer_kinds, routed
from nexusbench.models.stacking import LayerPlan


class MinimaxFamily(ModelFamily):
    """MiniMax-Text-01 and M1: lightning attention in most layers, full attention in the others;
    experts in all.
    """

    architecture: ClassVar[str] = "MiniMaxForCausalLM"
    also: ClassVar[tuple[str, ...]] = ("MiniMaxText01ForCausalLM", "MiniMaxM1ForCausalLM")
    source: ClassVar[str] = "arXiv 2501.08313, 2506.13585; transformers, models/minimax"
    expert_size: ClassVar[str] = "intermediate_size"
    num_experts: ClassVar[str] = "num_local_experts"
    names: ClassVar[ModuleNames] = {
        **module_names(sparse=("block_sparse_moe", "mlp")),
        "state_qkv": (("self_attn.qkv_proj",),), "state_out": (("self_attn.out_proj",),),
        "state_gate": (("self_attn.output_gate",),),
    }  # fmt: skip
    reads: ClassVar[tuple[str, ...]] = ("attn_type_list",)
    defaults: ClassVar[Layout] = {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 131072, "num_experts_per_tok": 2, "num_local_experts": 8,
    }  # fmt: skip
    sample: ClassVar[Layout] = {**LAYOUT, "num_local_experts": 8, "num_experts_per_tok": 2}

    def layers(self, config: ConfigDocument, count: int) -> list[LayerPlan]:
        """Each layer: lightning or full attention."""
        usual = [FULL if (index + 1) % 2 else LINEAR for index in range(count)]
        listed = config.listed("attn_type_list", count, (0, 1))
        if listed is not None:
            usual = [FULL if one else LINEAR for one in listed]
        hidden, mixer, mlp = (
            config.count("hidden_size"), self.attention(config), self.experts(config)
        )  # fmt: skip
        wide = mixer.num_heads * mixer.head_dim
        state = StateMixer(
            kind="lightning attention", heads=mixer.num_heads, key_dim=mixer.head_dim,
            value_dim=mixer.head_dim,
            matrices=(
                Projection("state_qkv", hidden, 3 * wide), Projection("state_out", wide, hidden),
                Projection("state_gate", hidden, wide),
            ),
        )  # fmt: skip
        return [
            LayerPlan(
                mixer=state if kind == LINEAR else mixer, mlp=mlp,
                vectors=2 * hidden + wide * (kind == LINEAR),
            )
            for kind in layer_kinds(config, count, usual, (FULL, LINEAR))
        ]  # fmt: skip

    def experts(self, config: ConfigDocument) -> ExpertsMlp:
        """Routed experts, and a shared one where the config has it."""
        counts = ("num_local_experts", "num_experts")
        shared = config.data.get("shared_intermediate_size") or 0
        listed = shared if isinstance(shared, list) else [shared]
        if any(listed):
            hint = "Only models without a shared expert are described"
            raise config.error("shared_intermediate_size", "is above 0", hint)
        return routed(config, count=counts, size=self.expert_size)
