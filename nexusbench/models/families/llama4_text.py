"""Llama 4, text only."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.layers import DenseMlp, ExpertsMlp
from nexusbench.core.mixers import FullAttention
from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.module_names import ModuleNames, module_names
from nexusbench.models.reading import (
    CHUNKED,
    FULL,
    attention_vectors,
    in_window,
    layer_kinds,
    routed,
)
from nexusbench.models.stacking import LayerPlan


class Llama4TextFamily(ModelFamily):
    """Llama 4: three layers that see chunks for each that sees everything; one routed expert and a
    shared one, in some models only in every second layer.
    """

    architecture: ClassVar[str] = "Llama4ForCausalLM"
    source: ClassVar[str] = "transformers, models/llama4"
    expert_size: ClassVar[str] = "intermediate_size"
    names: ClassVar[ModuleNames] = module_names(
        mlp=("feed_forward", "mlp"), sparse=("feed_forward", "mlp")
    )
    reads: ClassVar[tuple[str, ...]] = (
        "attention_chunk_size", "no_rope_layer_interval", "interleave_moe_layer_step", "moe_layers"
    )  # fmt: skip
    defaults: ClassVar[Layout] = {
        "vocab_size": 202048, "hidden_size": 5120, "intermediate_size": 8192,
        "intermediate_size_mlp": 16384, "num_hidden_layers": 48, "num_attention_heads": 40,
        "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072,
        "num_experts_per_tok": 1, "num_local_experts": 16, "attention_chunk_size": 8192,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **LAYOUT, "num_local_experts": 8, "num_experts_per_tok": 1, "intermediate_size_mlp": 768,
        "attention_chunk_size": 512,
    }  # fmt: skip

    def layers(self, config: ConfigDocument, count: int) -> list[LayerPlan]:
        """Each layer: chunks or everything, dense or experts."""
        hidden, mixer = config.count("hidden_size"), self.attention(config)
        biased = config.flag("attention_bias")
        vectors = 2 * hidden + attention_vectors(mixer, hidden, qkv_bias=biased, output_bias=biased)
        mlps: dict[bool, DenseMlp | ExpertsMlp] = {
            False: DenseMlp(intermediate_size=config.count("intermediate_size_mlp")),
            True: routed(
                config, count=("num_local_experts",), size=self.expert_size,
                shared_size=config.count("intermediate_size"),
            ),
        }  # fmt: skip
        return [
            LayerPlan(mixer=one, mlp=mlps[of_experts], vectors=vectors)
            for one, of_experts in zip(
                self.mixers(config, mixer, count), self.sparse(config, count), strict=True
            )
        ]

    def mixers(
        self, config: ConfigDocument, mixer: FullAttention, count: int
    ) -> list[FullAttention]:
        """The attention of each layer."""
        period = config.count("no_rope_layer_interval", 4)
        usual = [CHUNKED if (index + 1) % period else FULL for index in range(count)]
        listed = config.listed("no_rope_layers", count, (0, 1))
        if listed is not None:
            usual = [CHUNKED if one else FULL for one in listed]
        chunk = config.size("attention_chunk_size")
        chunked = in_window(config, mixer, chunk, chunked=True)
        kinds = layer_kinds(config, count, usual, (CHUNKED, FULL))
        return [chunked if kind == CHUNKED else mixer for kind in kinds]

    def sparse(self, config: ConfigDocument, count: int) -> list[bool]:
        """Whether each layer has experts."""
        listed, step = config.data.get("moe_layers"), config.count("interleave_moe_layer_step", 1)
        if listed is None:
            return [index % step == step - 1 for index in range(count)]
        if not isinstance(listed, list) or not all(isinstance(one, int) for one in listed):
            problem = f"is {shown(listed)}, not a list of layers"
            raise config.error("moe_layers", problem, "Give numbers of layers, from 0")
        chosen = set(listed)
        return [index in chosen for index in range(count)]
