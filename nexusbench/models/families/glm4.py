"""GLM-4-0414."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.mixers import FullAttention
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.reading import attention_vectors


class Glm4Family(ModelFamily):
    """GLM-4-0414 and GLM-Z1: biases on queries, keys and values, four norms a layer."""

    architecture: ClassVar[str] = "Glm4ForCausalLM"
    source: ClassVar[str] = "transformers, models/glm4"
    norms: ClassVar[int] = 4
    defaults: ClassVar[Layout] = {
        "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696,
        "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 2,
        "head_dim": 128, "max_position_embeddings": 131072, "attention_bias": True,
    }  # fmt: skip
    sample: ClassVar[Layout] = {**LAYOUT, "head_dim": 32}

    def vectors(self, config: ConfigDocument, mixer: FullAttention) -> int:
        """Norms and biases."""
        hidden, biased = config.count("hidden_size"), config.flag("attention_bias")
        return self.norms * hidden + attention_vectors(mixer, hidden, qkv_bias=biased)
