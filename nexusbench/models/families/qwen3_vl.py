"""Qwen3-VL, dense."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily


class Qwen3VlFamily(ModelFamily):
    """The decoder of Qwen3-VL: Qwen3's."""

    architecture: ClassVar[str] = "Qwen3VLForConditionalGeneration"
    source: ClassVar[str] = "arXiv 2511.21631; transformers, models/qwen3_vl"
    inner: ClassVar[str] = "text_config"
    qk_norm: ClassVar[bool] = True
    defaults: ClassVar[Layout] = {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "head_dim": 128, "max_position_embeddings": 128000,
    }  # fmt: skip
    sample: ClassVar[Layout] = {"text_config": dict(LAYOUT)}
