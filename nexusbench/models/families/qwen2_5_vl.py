"""Qwen2.5-VL."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily


class Qwen25VlFamily(ModelFamily):
    """The decoder of Qwen2.5-VL: Qwen2.5's; its keys may stand beside those of the tower."""

    architecture: ClassVar[str] = "Qwen2_5_VLForConditionalGeneration"
    source: ClassVar[str] = "arXiv 2502.13923; transformers, models/qwen2_5_vl"
    inner: ClassVar[str] = "text_config"
    flat: ClassVar[bool] = True
    biased_qkv: ClassVar[bool] = True
    defaults: ClassVar[Layout] = {
        "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "max_position_embeddings": 32768, "max_window_layers": 80,
    }  # fmt: skip
    sample: ClassVar[Layout] = {"text_config": dict(LAYOUT)}
