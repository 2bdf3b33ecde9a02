"""Qwen3-Next."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from nexusbench.core.layers import DenseMlp, ExpertsMlp
from nexusbench.core.mixers import FullAttention, Projection, StateMixer
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.module_names import USUAL, ModuleNames
from nexusbench.models.reading import FULL, LINEAR, layer_kinds, routed
from nexusbench.models.stacking import LayerPlan
from nexusbench.models.states import state_dtype

# Keys of decoders with such layers.
OF_DELTA_NETS = ("full_attention_interval", "attn_output_gate", "linear_num_value_heads")


class Qwen3NextFamily(ModelFamily):
    """Qwen3-Next: three layers of gated delta nets for each of full attention, whose output is
    gated; routed experts and a shared one.
    """

    architecture: ClassVar[str] = "Qwen3NextForCausalLM"
    source: ClassVar[str] = "arXiv 2412.06464; transformers, models/qwen3_next"
    expert_size: ClassVar[str] = "moe_intermediate_size"
    fused: ClassVar[bool] = True  # the delta net's projections are two matrices, else four
    qk_norm: ClassVar[bool] = True
    names: ClassVar[ModuleNames] = {
        **USUAL,
        "state_qkvz": (("linear_attn.in_proj_qkvz",),),
        "state_ba": (("linear_attn.in_proj_ba",),),
        "state_qkv": (("linear_attn.in_proj_qkv", "linear_attn.in_proj_qkvz"),),
        "state_z": (("linear_attn.in_proj_z", "linear_attn.in_proj_qkvz"),),
        "state_b": (("linear_attn.in_proj_b", "linear_attn.in_proj_ba"),),
        "state_a": (("linear_attn.in_proj_a", "linear_attn.in_proj_ba"),),
        "state_out": (("linear_attn.out_proj",),),
    }
    reads: ClassVar[tuple[str, ...]] = (*OF_DELTA_NETS, "decoder_sparse_step", "mlp_only_layers")
    defaults: ClassVar[Layout] = {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2,
        "head_dim": 256, "max_position_embeddings": 32768, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "num_experts_per_tok": 10, "num_experts": 512,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **LAYOUT, "head_dim": 32, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
        "linear_num_key_heads": 4, "linear_num_value_heads": 8, "num_experts": 8,
        "num_experts_per_tok": 2, "moe_intermediate_size": 192,
        "shared_expert_intermediate_size": 192,
    }  # fmt: skip

    def layers(self, config: ConfigDocument, count: int) -> list[LayerPlan]:
        """Each layer: delta net or attention, dense or experts."""
        period = config.count("full_attention_interval", 4)
        usual = [LINEAR if (index + 1) % period else FULL for index in range(count)]
        kinds = layer_kinds(config, count, usual, (FULL, LINEAR))
        sparse, hidden = self.sparse(config, count), config.count("hidden_size")
        mixer, state = self.attention(config), self.state(config)
        experts = self.experts(config) if any(sparse) else None
        dense = None
        if not all(sparse):
            dense = DenseMlp(intermediate_size=config.count("intermediate_size"))
        plans = []
        for kind, of_experts in zip(kinds, sparse, strict=True):
            extra = hidden if of_experts and self.shared_gate else 0
            vectors = self.vectors(config, mixer) + extra
            if kind == LINEAR:
                vectors = 2 * hidden + extra + self.state_vectors(config)
            plans.append(
                LayerPlan(
                    mixer=state if kind == LINEAR else mixer,
                    mlp=experts if of_experts else dense, vectors=vectors,
                )
            )  # fmt: skip
        return plans

    shared_gate: ClassVar[bool] = True  # the shared expert has a gate of its own

    def attention(self, config: ConfigDocument) -> FullAttention:
        """As usual, and with a gate on the output."""
        made = super().attention(config)
        gated = config.flag("attn_output_gate", default=True)
        return msgspec.structs.replace(made, gate=made.num_heads * made.head_dim if gated else 0)

    def experts(self, config: ConfigDocument) -> ExpertsMlp:
        """Routed experts and a shared one."""
        return routed(
            config, count=("num_experts", "num_local_experts"), size=self.expert_size,
            shared_size=config.size("shared_expert_intermediate_size"),
        )  # fmt: skip

    def state(self, config: ConfigDocument) -> StateMixer:
        """The gated delta net (2412.06464)."""
        hidden, heads = config.count("hidden_size"), config.count("linear_num_value_heads")
        keys, values = self.state_sizes(config)
        if self.fused:
            matrices = [
                Projection("state_qkvz", hidden, 2 * keys + 2 * values),
                Projection("state_ba", hidden, 2 * heads),
            ]
        else:
            matrices = [
                Projection("state_qkv", hidden, 2 * keys + values),
                Projection("state_z", hidden, values),
                Projection("state_b", hidden, heads),
                Projection("state_a", hidden, heads),
            ]
        matrices.append(Projection("state_out", values, hidden))
        kernel = config.count("linear_conv_kernel_dim")
        return StateMixer(
            kind="gated delta net", heads=heads, matrices=tuple(matrices),
            key_dim=config.count("linear_key_head_dim"),
            value_dim=config.count("linear_value_head_dim"),
            conv_values=(2 * keys + values) * (kernel - 1),
            state_dtype=state_dtype(config, "mamba_ssm_dtype", "float32"),
            conv_dtype=state_dtype(config, "dtype", "bfloat16"),
        )  # fmt: skip

    def state_sizes(self, config: ConfigDocument) -> tuple[int, int]:
        """Values of all keys (and of all queries), of all values."""
        keys = config.count("linear_num_key_heads") * config.count("linear_key_head_dim")
        values = config.count("linear_num_value_heads") * config.count("linear_value_head_dim")
        return keys, values

    def state_vectors(self, config: ConfigDocument) -> int:
        """The convolution, two values a head, and a norm over a head."""
        keys, values = self.state_sizes(config)
        made = (2 * keys + values) * config.count("linear_conv_kernel_dim")
        made += 2 * config.count("linear_num_value_heads")
        return made + config.count("linear_value_head_dim")
