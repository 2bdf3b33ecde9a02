"""Kimi Linear."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.layers import DenseMlp, ExpertsMlp
from nexusbench.core.mixers import LatentAttention, Projection, StateMixer
from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.module_names import USUAL, ModuleNames
from nexusbench.models.reading import FULL, LINEAR, dense_first, latent, layer_kinds, refuse, routed
from nexusbench.models.stacking import LayerPlan
from nexusbench.models.states import state_dtype


class KimiLinearFamily(ModelFamily):
    """Kimi Linear: three layers of Kimi delta attention for each of latent attention; one dense
    layer, then routed and shared experts.
    """

    architecture: ClassVar[str] = "KimiLinearForCausalLM"
    source: ClassVar[str] = "arXiv 2510.26692; transformers, models/kimi_linear"
    expert_size: ClassVar[str] = "moe_intermediate_size"
    names: ClassVar[ModuleNames] = {
        **USUAL,
        "state_qkv": tuple((f"self_attn.{one}_proj",) for one in "qkv"),
        "state_f_a": (("self_attn.f_a_proj",),), "state_f_b": (("self_attn.f_b_proj",),),
        "state_b": (("self_attn.b_proj",),), "state_g": (("self_attn.g_proj",),),
        "state_g_a": (("self_attn.g_a_proj",),), "state_g_b": (("self_attn.g_b_proj",),),
        "state_out": (("self_attn.o_proj",),),
    }  # fmt: skip
    reads: ClassVar[tuple[str, ...]] = (
        "kv_lora_rank", "q_lora_rank", "linear_attn_config", "first_k_dense_replace",
        "moe_layer_freq", "num_shared_experts",
    )  # fmt: skip
    defaults: ClassVar[Layout] = {
        "vocab_size": 163840, "hidden_size": 2304, "intermediate_size": 9216,
        "moe_intermediate_size": 1024, "num_hidden_layers": 27, "num_attention_heads": 32,
        "num_shared_experts": 1, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "qk_nope_head_dim": 128, "num_experts_per_token": 8, "num_experts": 256,
        "first_k_dense_replace": 1, "linear_head_dim": 128, "linear_num_heads": 32,
        "linear_conv_kernel_dim": 4,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **LAYOUT, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32,
        "v_head_dim": 32, "num_experts": 8, "num_experts_per_token": 2,
        "moe_intermediate_size": 192, "linear_head_dim": 32, "linear_num_heads": 8,
    }  # fmt: skip

    def decoder_of(self, config: ConfigDocument) -> ConfigDocument:
        """As usual, with what lies in ``linear_attn_config`` beside the rest."""
        made = super().decoder_of(config)
        given = made.data.get("linear_attn_config") or {}
        if not isinstance(given, dict):
            raise made.error("linear_attn_config", f"is {shown(given)}", "Give an object")
        moved = {
            "linear_head_dim": given.get("head_dim"), "linear_num_heads": given.get("num_heads"),
            "linear_conv_kernel_dim": given.get("short_conv_kernel_size"),
            "full_attn_layers": given.get("full_attn_layers"),
            "kda_layers": given.get("kda_layers"),
            "full_rank_gate": given.get("use_full_rank_gate"),
        }  # fmt: skip
        found = {key: value for key, value in moved.items() if value is not None}
        longest = made.data.get("max_position_embeddings", made.data.get("model_max_length"))
        usual = {"max_position_embeddings": 1048576 if longest is None else longest}
        return made.replaced({**usual, **found})

    def layers(self, config: ConfigDocument, count: int) -> list[LayerPlan]:
        """Each layer: delta attention or latent attention, dense or experts."""
        hidden, state, first = (
            config.count("hidden_size"), self.state(config), dense_first(config, count)
        )  # fmt: skip
        refuse(config, "moe_layer_freq", (1,), "Only experts in every layer after the first ones")
        mixer, normed = self.full(config)
        dense = DenseMlp(intermediate_size=config.count("intermediate_size"))
        experts = self.experts(config)
        sparse = [index >= first for index in range(count)]
        kinds = config.listed("mlp_layer_types", count, ("dense", "sparse"))
        if kinds is not None:
            sparse = [kind == "sparse" for kind in kinds]
        plans = []
        for kind, of_experts in zip(self.kinds(config, count), sparse, strict=True):
            vectors = self.state_vectors(config) if kind == LINEAR else normed
            plans.append(
                LayerPlan(
                    mixer=state if kind == LINEAR else mixer,
                    mlp=experts if of_experts else dense,
                    vectors=vectors + 2 * hidden + (experts.latent if of_experts else 0),
                )
            )
        return plans

    def full(self, config: ConfigDocument) -> tuple[LatentAttention, int]:
        """The attention of layers that see everything, and its vectors."""
        return latent(config)

    def experts(self, config: ConfigDocument) -> ExpertsMlp:
        """Routed experts, and shared ones as one of their widths together."""
        shared = config.size("num_shared_experts") * config.count(self.expert_size)
        chosen = "num_experts_per_token"
        if config.data.get("num_experts_per_tok") is not None:
            chosen = "num_experts_per_tok"
        return routed(
            config, count=("num_experts",), chosen=chosen, size=self.expert_size, shared_size=shared
        )

    def kinds(self, config: ConfigDocument, count: int) -> list[str]:
        """Delta attention or latent attention, of each layer."""
        usual = [FULL if index and index % 4 == 0 else LINEAR for index in range(count)]
        full, delta = config.data.get("full_attn_layers"), config.data.get("kda_layers")
        if full is not None and delta is not None:
            full, delta = (one if isinstance(one, list) else [] for one in (full, delta))
            both = [one for one in (*full, *delta) if isinstance(one, int)]
            # They begin with 1.
            if len(both) != count or set(both) != set(range(1, count + 1)):
                problem = f"names {len(both)} different layers in its lists, not {count}"
                raise config.error("linear_attn_config", problem, "Give each layer once, from 1")
            chosen = {one for one in full if isinstance(one, int)}
            usual = [FULL if index + 1 in chosen else LINEAR for index in range(count)]
        return layer_kinds(config, count, usual, (FULL, LINEAR))

    def state(self, config: ConfigDocument) -> StateMixer:
        """Kimi delta attention (2510.26692)."""
        hidden, heads = config.count("hidden_size"), config.count("linear_num_heads")
        size = config.count("linear_head_dim")
        wide = heads * size
        gate: tuple[Projection, ...] = (Projection("state_g", hidden, wide),)
        if not config.flag("full_rank_gate"):
            gate = (
                Projection("state_g_a", hidden, size), Projection("state_g_b", size, wide)
            )  # fmt: skip
        return StateMixer(
            kind="Kimi delta attention", heads=heads, key_dim=size, value_dim=size,
            matrices=(
                Projection("state_qkv", hidden, 3 * wide),
                Projection("state_f_a", hidden, size), Projection("state_f_b", size, wide),
                Projection("state_b", hidden, heads), *gate,
                Projection("state_out", wide, hidden),
            ),
            conv_values=3 * wide * (config.count("linear_conv_kernel_dim") - 1),
            conv_dtype=state_dtype(config, "dtype", "bfloat16"),
        )  # fmt: skip

    def state_vectors(self, config: ConfigDocument) -> int:
        """The convolution, its biases of time, and a norm over a head."""
        heads, size = config.count("linear_num_heads"), config.count("linear_head_dim")
        wide = heads * size
        return 3 * wide * config.count("linear_conv_kernel_dim") + wide + heads + size
