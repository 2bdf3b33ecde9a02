"""Gemma 4, text only."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from nexusbench.core.layers import DenseMlp, ExpertsMlp
from nexusbench.core.mixers import FullAttention, Projection
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import Biases, Layout
from nexusbench.models.families.gemma2 import Gemma2Family
from nexusbench.models.module_names import ModuleNames, module_names
from nexusbench.models.reading import check_kv_heads, in_window, refuse, routed
from nexusbench.models.stacking import LayerPlan, Outside

_PER_LAYER = "hidden_size_per_layer_input"


class Gemma4TextFamily(Gemma2Family):
    """Gemma 4: layers that see everything have larger heads, and keys that may be values; the last
    layers may share keys and values; experts may stand beside the dense part.
    """

    architecture: ClassVar[str] = "Gemma4ForCausalLM"
    source: ClassVar[str] = "transformers, models/gemma4"
    biases: ClassVar[Biases | None] = None
    period: ClassVar[int] = 6
    expert_size: ClassVar[str] = "moe_intermediate_size"
    names: ClassVar[ModuleNames] = {
        **module_names(sparse=("mlp", "moe")),
        "expert_gate_up": (
            ("experts.0.gate_proj", "experts.gate_up_proj", "moe.experts.0.gate_proj"),
            ("experts.0.up_proj", "experts.gate_up_proj", "moe.experts.0.up_proj"),
        ),
        "expert_down": (("experts.0.down_proj", "moe.experts.0.down_proj"),),
        "router": (("router.proj",),),
    }
    reads: ClassVar[tuple[str, ...]] = (
        "num_kv_shared_layers", "attention_k_eq_v", "enable_moe_block", _PER_LAYER
    )  # fmt: skip
    defaults: ClassVar[Layout] = {
        "vocab_size": 262144, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 30, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "sliding_window": 512, "max_position_embeddings": 131072,
        "tie_word_embeddings": True, "global_head_dim": 512, _PER_LAYER: 256,
        "vocab_size_per_layer_input": 262144,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **Gemma2Family.sample, "num_hidden_layers": 6, "global_head_dim": 64, _PER_LAYER: 0,
    }  # fmt: skip

    def layers(self, config: ConfigDocument, count: int) -> list[LayerPlan]:
        """Each layer, its window and what it shares."""
        windows = self.windows(config, count)
        windows[-1] = 0  # as transformers forces it
        shared = config.size("num_kv_shared_layers")
        if shared >= count:
            problem = f"{shared} leaves none of the {count} layers with keys of its own"
            raise config.error("num_kv_shared_layers", problem, "Correct one of them")
        return [
            self._layer(config, window, index >= count - shared)
            for index, window in enumerate(windows)
        ]

    def _layer(self, config: ConfigDocument, window: int, shares: bool) -> LayerPlan:
        mixer = msgspec.structs.replace(self.attention(config), shares_kv=shares)
        if window == 0:
            mixer = self._global(config, mixer)
        hidden, each = config.count("hidden_size"), config.size(_PER_LAYER)
        wide = config.count("intermediate_size")
        if shares and config.flag("use_double_wide_mlp"):
            wide *= 2
        vectors = 4 * hidden + (1 if shares else 2) * mixer.head_dim
        mlp: DenseMlp | ExpertsMlp = DenseMlp(intermediate_size=wide)
        if config.flag("enable_moe_block"):
            counts, chosen = ("num_experts",), "top_k_experts"
            mlp = routed(config, count=counts, chosen=chosen, size=self.expert_size)
            mlp = msgspec.structs.replace(mlp, dense_size=wide)
            vectors += 4 * hidden + mlp.num_experts
        others: tuple[Projection, ...] = ()
        if each:
            vectors += hidden
            others = (
                Projection("per_layer_input_gate", hidden, each, 1, "dense"),
                Projection("per_layer_projection", each, hidden, 1, "dense"),
            )
        mixer = in_window(config, mixer, window)
        return LayerPlan(mixer=mixer, mlp=mlp, vectors=vectors, others=others)

    def _global(self, config: ConfigDocument, mixer: FullAttention) -> FullAttention:
        """The attention of a layer that sees everything."""
        refuse(config, "attention_bias", (False,), "Only attention without biases is modelled")
        kv_heads, same = mixer.num_kv_heads, config.flag("attention_k_eq_v")
        if same:
            kv_heads = config.count("num_global_key_value_heads", kv_heads)
            check_kv_heads(config, "num_global_key_value_heads", mixer.num_heads, kv_heads)
        return msgspec.structs.replace(
            mixer, num_kv_heads=kv_heads, head_dim=config.count("global_head_dim"),
            keys_are_values=same,
        )  # fmt: skip

    def outside(self, config: ConfigDocument) -> Outside:
        """As usual, and the embeddings of each layer."""
        usual, each = super().outside(config), config.size(_PER_LAYER)
        if not each:
            return usual
        layers, hidden = config.count("num_hidden_layers"), config.count("hidden_size")
        return msgspec.structs.replace(
            usual, vectors=usual.vectors + each + hidden * layers * each,
            embedding_values=config.count("vocab_size_per_layer_input") * layers * each,
        )  # fmt: skip
