"""Step-3.5-Flash."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from nexusbench.core.layers import DenseMlp
from nexusbench.core.mixers import FullAttention
from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.module_names import ModuleNames, module_names
from nexusbench.models.reading import (
    FULL,
    SLIDING,
    attention_vectors,
    dense_first,
    in_window,
    routed,
)
from nexusbench.models.stacking import LayerPlan

# Names of Step's own code for keys that others have, too.
_OTHER_NAMES = {
    "num_attention_groups": "num_key_value_heads", "moe_num_experts": "n_routed_experts",
    "num_experts": "n_routed_experts", "num_local_experts": "n_routed_experts",
    "moe_top_k": "num_experts_per_tok", "share_expert_dims": "share_expert_dim",
    "max_seq_len": "max_position_embeddings",
}  # fmt: skip


class Step3p5Family(ModelFamily):
    """Step-3.5-Flash: three layers with a window for each that sees everything, perhaps with more
    heads; gated outputs, a value a head; dense layers first, then routed experts and a shared one.
    """

    architecture: ClassVar[str] = "Step3p5ForCausalLM"
    source: ClassVar[str] = "huggingface.co/stepfun-ai/Step-3.5-Flash; transformers, step3p7"
    expert_size: ClassVar[str] = "moe_intermediate_size"
    qk_norm: ClassVar[bool] = True
    names: ClassVar[ModuleNames] = module_names(sparse=("moe", "mlp"))
    reads: ClassVar[tuple[str, ...]] = (
        "first_k_dense_replace", "n_shared_experts", "n_routed_experts", "moe_layers_enum",
        "attention_other_setting",
    )  # fmt: skip
    defaults: ClassVar[Layout] = {
        "vocab_size": 128815, "hidden_size": 4096, "intermediate_size": 11264,
        "num_hidden_layers": 45, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 128, "max_position_embeddings": 128000, "num_experts_per_tok": 8,
        "n_routed_experts": 288, "moe_intermediate_size": 1280, "share_expert_dim": 1280,
        "first_k_dense_replace": 3,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **LAYOUT, "head_dim": 32, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 192, "share_expert_dim": 192, "first_k_dense_replace": 1,
    }  # fmt: skip

    def decoder_of(self, config: ConfigDocument) -> ConfigDocument:
        """As usual, under the usual names of keys."""
        if self.inner and self.inner in config.data:
            config = config.part(self.inner, ("quantization_config", "tie_word_embeddings"))
        renamed = {
            new: config.data[old] for old, new in _OTHER_NAMES.items()
            if config.data.get(old) is not None and config.data.get(new) is None
        }  # fmt: skip
        removed = {"num_experts": None, "num_local_experts": None}
        return config.replaced({**renamed, **removed}).with_defaults(self.defaults)

    def layers(self, config: ConfigDocument, count: int) -> list[LayerPlan]:
        """Each layer: window or everything, dense or experts."""
        hidden, full = config.count("hidden_size"), self._gated(self.attention(config))
        kinds = config.listed("layer_types", count, (FULL, SLIDING), longer=True)
        kinds = kinds if kinds is not None else [FULL] * count
        sliding = full
        if SLIDING in kinds:
            sliding = self._sliding(config, full)
        experts = routed(
            config, count=("n_routed_experts",), size=self.expert_size,
            shared_size=config.size("share_expert_dim"),
        )  # fmt: skip
        dense = DenseMlp(intermediate_size=config.count("intermediate_size"))
        plans = []
        for kind, of_experts in zip(kinds, self.sparse(config, count), strict=True):
            mixer = sliding if kind == SLIDING else full
            vectors = 2 * hidden + attention_vectors(mixer, hidden, qk_norm=True)
            mlp = experts if of_experts else dense
            plans.append(LayerPlan(mixer=mixer, mlp=mlp, vectors=vectors))
        return plans

    def _gated(self, mixer: FullAttention) -> FullAttention:
        return msgspec.structs.replace(mixer, gate=mixer.num_heads)

    def _sliding(self, config: ConfigDocument, full: FullAttention) -> FullAttention:
        """The attention of layers with a window, which may have other heads."""
        given = config.data.get("attention_other_setting") or {}
        if not isinstance(given, dict):
            hint = "Give an object"
            raise config.error("attention_other_setting", f"is {shown(given)}", hint)
        heads = config.data.get("num_sliding_attention_heads")
        if heads is None:
            heads = given.get("num_attention_heads", full.num_heads)
        other = self.attention(config.replaced({"num_attention_heads": heads}))
        return in_window(config, self._gated(other), config.count("sliding_window"))

    def sparse(self, config: ConfigDocument, count: int) -> list[bool]:
        """Whether each layer has experts."""
        kinds = config.listed("mlp_layer_types", count, ("dense", "sparse"), longer=True)
        if kinds is not None:
            return [kind == "sparse" for kind in kinds]
        listed = config.data.get("moe_layers_enum")
        if listed is None:
            first = dense_first(config, count)
            return [index >= first for index in range(count)]
        texts = listed.split(",") if isinstance(listed, str) else listed
        if not isinstance(texts, list) or not all(
            str(one).strip().isdecimal() and len(str(one)) < 8 for one in texts
        ):
            hint = "Give numbers of layers, from 0"
            raise config.error("moe_layers_enum", f"is {shown(listed)}", hint)
        numbers = {int(one) for one in texts}
        return [index in numbers for index in range(count)]
