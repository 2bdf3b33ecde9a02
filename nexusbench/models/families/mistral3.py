"""Mistral Small 3.1 and later, with images."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily


class Mistral3Family(ModelFamily):
    """The decoder of Mistral Small 3.1, Devstral and Ministral 3: Mistral's."""

    architecture: ClassVar[str] = "Mistral3ForConditionalGeneration"
    source: ClassVar[str] = "transformers, models/mistral3"
    inner: ClassVar[str] = "text_config"
    windowed: ClassVar[bool] = True
    defaults: ClassVar[Layout] = {
        "vocab_size": 131072, "hidden_size": 5120, "intermediate_size": 32768,
        "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "max_position_embeddings": 131072,
    }  # fmt: skip
    sample: ClassVar[Layout] = {"text_config": {**LAYOUT, "sliding_window": 512}}
