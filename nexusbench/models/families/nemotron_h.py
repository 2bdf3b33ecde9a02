"""Nemotron-H and Nemotron 3."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from nexusbench.core.layers import DenseMlp, ExpertsMlp
from nexusbench.core.mixers import Mixer
from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.module_names import ModuleNames, module_names
from nexusbench.models.reading import grouped_heads, refuse, routed
from nexusbench.models.stacking import LayerPlan
from nexusbench.models.states import mamba2, mamba2_vectors

_LETTERS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
_OLDER = {"mamba": "linear_attention", "attention": "full_attention"}


class NemotronHFamily(ModelFamily):
    """Nemotron-H, Nemotron Nano 2 and Nemotron 3: a layer is a Mamba2 block, attention, experts or
    a feed-forward part; squared ReLU without a gate; experts may work on a latent.
    """

    architecture: ClassVar[str] = "NemotronHForCausalLM"
    source: ClassVar[str] = "arXiv 2504.03624; transformers, models/nemotron_h"
    expert_size: ClassVar[str] = "moe_intermediate_size"
    activations: ClassVar[tuple[str, ...]] = ("relu2",)
    names: ClassVar[ModuleNames] = {
        **module_names(("mixer",), ("mixer",), ("mixer",)),
        "mamba_in": (("mixer.in_proj",),), "mamba_out": (("mixer.out_proj",),),
    }  # fmt: skip
    reads: ClassVar[tuple[str, ...]] = (
        "hybrid_override_pattern", "layers_block_type", "n_routed_experts", "n_shared_experts",
        "moe_latent_size", "mamba_num_heads", "ssm_state_size",
    )  # fmt: skip
    defaults: ClassVar[Layout] = {
        "vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 21504,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 4096, "ssm_state_size": 128, "mamba_num_heads": 128,
        "mamba_head_dim": 64, "n_groups": 8, "conv_kernel": 4, "use_conv_bias": True,
        "n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688, "num_experts_per_tok": 2,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **{key: value for key, value in LAYOUT.items()
           if key not in ("hidden_act", "num_hidden_layers")},
        "hybrid_override_pattern": "ME*-", "head_dim": 32, "ssm_state_size": 32,
        "mamba_num_heads": 8, "mamba_head_dim": 32, "n_groups": 2, "n_routed_experts": 4,
        "moe_intermediate_size": 192, "moe_shared_expert_intermediate_size": 192,
    }  # fmt: skip

    def decoder_of(self, config: ConfigDocument) -> ConfigDocument:
        """As usual, with as many layers as the pattern has."""
        made = super().decoder_of(config)
        kinds = self.kinds(made)
        given = made.count("num_hidden_layers", len(kinds))
        if given != len(kinds):
            problem = f"is {given}, but the pattern of layers has {len(kinds)}"
            raise made.error("num_hidden_layers", problem, "Correct one of them")
        refuse(made, "mlp_hidden_act", ("relu2",), "Only relu2 is modelled")
        refuse(made, "use_bias", (False,), "Only projections without biases are modelled")
        refuse(made, "mlp_bias", (False,), "Only projections without biases are modelled")
        return made.replaced({"num_hidden_layers": len(kinds)})

    def kinds(self, config: ConfigDocument) -> list[str]:
        """What each layer is."""
        pattern, kinds = config.data.get("hybrid_override_pattern"), None
        if pattern is not None and (not isinstance(pattern, str) or set(pattern) - {*_LETTERS}):
            hint = f"Supported letters: {' '.join(_LETTERS)}"
            raise config.error("hybrid_override_pattern", f"is {shown(pattern)}", hint)
        for key in ("layers_block_type", "layer_types"):
            listed = config.data.get(key)
            if kinds is None and isinstance(listed, list) and listed:
                known = (*_LETTERS.values(), *_OLDER)
                kinds = config.listed(key, len(listed), known)
        if pattern and kinds is None:
            kinds = [_LETTERS[letter] for letter in pattern]
        if not kinds:
            kinds = [_LETTERS[letter] for letter in "ME*-"]
        if len(kinds) > 4096:
            raise config.error("hybrid_override_pattern", "is too long", "At most 4096 layers")
        return [_OLDER.get(str(kind), str(kind)) for kind in kinds]

    def layers(self, config: ConfigDocument, count: int) -> list[LayerPlan]:
        """Each layer: one block and its norm."""
        kinds = self.kinds(config)
        plans = {kind: self._plan(config, kind) for kind in dict.fromkeys(kinds)}
        return [plans[kind] for kind in kinds]

    def _plan(self, config: ConfigDocument, kind: str) -> LayerPlan:
        mixer: Mixer | None = None
        mlp: DenseMlp | ExpertsMlp | None = None
        vectors = config.count("hidden_size")
        if kind == "full_attention":
            heads = grouped_heads(config, multi_head=True)
            mixer = self.attention(config)
            assert heads[0] == mixer.num_heads
        elif kind == "linear_attention":
            mixer, more = mamba2(config), mamba2_vectors(config)
            vectors += more
        elif kind == "mlp":
            mlp = DenseMlp(intermediate_size=config.count("intermediate_size"), gated=False)
        else:
            mlp = self.experts(config)
        return LayerPlan(mixer=mixer, mlp=mlp, vectors=vectors)

    def experts(self, config: ConfigDocument) -> ExpertsMlp:
        """Routed experts, perhaps on a latent, and the shared ones as one."""
        shared = config.size("moe_shared_expert_intermediate_size")
        made = routed(
            config, count=("n_routed_experts",), size=self.expert_size,
            shared_size=shared * (config.size("n_shared_experts") > 0),
        )  # fmt: skip
        return msgspec.structs.replace(made, gated=False, latent=config.size("moe_latent_size"))
