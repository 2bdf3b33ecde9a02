"""Gemma 2."""

from __future__ import annotations

from typing import ClassVar

from msgspec import structs

from nexusbench.core.mixers import FullAttention, Mixer
from nexusbench.kernels.gates import Gate
from nexusbench.kernels.ropes import Rope
from nexusbench.models.design_reading import gate_of, grouped_design
from nexusbench.models.designs import Edges, GroupedDesign, LayerDesign
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import LAYOUT, Biases, Layout, ModelFamily
from nexusbench.models.reading import FULL, SLIDING, attention_vectors, layer_kinds, refuse
from nexusbench.models.stacking import LayerPlan


class Gemma2Family(ModelFamily):
    """Gemma 2: every second layer sees a window; GeGLU, four norms a layer, soft-capped scores."""

    architecture: ClassVar[str] = "Gemma2ForCausalLM"
    source: ClassVar[str] = "arXiv 2408.00118; transformers, models/gemma2"
    activations: ClassVar[tuple[str, ...]] = ("gelu_pytorch_tanh", "gelu", "gelu_new")
    biases: ClassVar[Biases | None] = Biases(qkv=None, output=None)
    norms: ClassVar[int] = 4
    period: ClassVar[int] = 2  # one layer in so many sees everything
    defaults: ClassVar[Layout] = {
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "sliding_window": 4096, "max_position_embeddings": 8192,
        "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **{key: value for key, value in LAYOUT.items() if key != "hidden_act"},
        "hidden_activation": "gelu_pytorch_tanh", "head_dim": 32, "sliding_window": 512,
    }  # fmt: skip

    def windows(self, config: ConfigDocument, count: int) -> list[int]:
        """The window of each layer, 0 where it sees everything."""
        window = config.count("sliding_window")
        if config.data.get("use_bidirectional_attention") in (True, "all"):
            window = window // 2 + 1
        return [window * (kind == SLIDING) for kind in self.kinds(config, count)]

    def kinds(self, config: ConfigDocument, count: int) -> list[str]:
        """The kind of each layer's attention."""
        period = config.count("sliding_window_pattern", self.period)
        usual = [SLIDING if (index + 1) % period else FULL for index in range(count)]
        return layer_kinds(config, count, usual)

    def vectors(self, config: ConfigDocument, mixer: FullAttention) -> int:
        """Norms, and biases of attention."""
        hidden, biased = config.count("hidden_size"), config.flag("attention_bias")
        return self.norms * hidden + attention_vectors(
            mixer, hidden, qkv_bias=biased, output_bias=biased, qk_norm=self.qk_norm
        )

    def design(self, config: ConfigDocument, index: int, plan: LayerPlan) -> LayerDesign:
        """Norms on both sides of attention and of the feed-forward part, where there are four."""
        hint = "Only attention to earlier tokens is computed"
        refuse(config, "use_bidirectional_attention", (False,), hint)
        made = super().design(config, index, plan)
        return structs.replace(made, sandwiched=self.norms == 4)

    def attention_design(
        self, config: ConfigDocument, index: int, mixer: Mixer | None
    ) -> GroupedDesign:
        """Scores are scaled by a number of the config, and may be held within a cap."""
        qkv, output, _ = self.biased(config)
        made = grouped_design(
            config, mixer, self.rope(config, index), qkv_bias=qkv, output_bias=output,
            qk_norm=self.qk_norm,
        )  # fmt: skip
        scalar = config.number("query_pre_attn_scalar", made.head_dim)
        cap = cap_of(config, "attn_logit_softcapping")
        return structs.replace(made, scale=scalar**-0.5, soft_cap=cap)

    def rope(self, config: ConfigDocument, index: int) -> Rope | None:
        """That of layer ``index``, where layers have different ones."""
        return None

    def gate(self, config: ConfigDocument) -> Gate:
        """GELU by tanh, unless the config says otherwise."""
        return gate_of(config, "hidden_activation", "gelu_pytorch_tanh")

    def edges(self, config: ConfigDocument) -> Edges:
        """Embeddings grow with the width, norms begin at 1, logits may be held within a cap."""
        return Edges(
            embedding_scale=config.count("hidden_size") ** 0.5,
            logit_cap=cap_of(config, "final_logit_softcapping"),
            unit_offset=True,
        )


def cap_of(config: ConfigDocument, field: str) -> float:
    """A soft cap; 0 for none."""
    return 0.0 if config.data.get(field) is None else config.number(field, 0.0)
