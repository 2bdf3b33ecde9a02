"""Gemma 2."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.mixers import FullAttention
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.reading import FULL, SLIDING, attention_vectors, layer_kinds


class Gemma2Family(ModelFamily):
    """Gemma 2: every second layer sees a window; GeGLU, four norms a layer, soft-capped scores."""

    architecture: ClassVar[str] = "Gemma2ForCausalLM"
    source: ClassVar[str] = "arXiv 2408.00118; transformers, models/gemma2"
    activations: ClassVar[tuple[str, ...]] = ("gelu_pytorch_tanh", "gelu", "gelu_new")
    norms: ClassVar[int] = 4
    period: ClassVar[int] = 2  # one layer in so many sees everything
    defaults: ClassVar[Layout] = {
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "sliding_window": 4096, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **{key: value for key, value in LAYOUT.items() if key != "hidden_act"},
        "hidden_activation": "gelu_pytorch_tanh", "head_dim": 32, "sliding_window": 512,
    }  # fmt: skip

    def windows(self, config: ConfigDocument, count: int) -> list[int]:
        """The window of each layer, 0 where it sees everything."""
        period = config.count("sliding_window_pattern", self.period)
        usual = [SLIDING if (index + 1) % period else FULL for index in range(count)]
        window = config.count("sliding_window")
        if config.data.get("use_bidirectional_attention") in (True, "all"):
            window = window // 2 + 1
        return [window * (kind == SLIDING) for kind in layer_kinds(config, count, usual)]

    def vectors(self, config: ConfigDocument, mixer: FullAttention) -> int:
        """Norms, and biases of attention."""
        hidden, biased = config.count("hidden_size"), config.flag("attention_bias")
        return self.norms * hidden + attention_vectors(
            mixer, hidden, qkv_bias=biased, output_bias=biased, qk_norm=self.qk_norm
        )
