"""Phi-3 and Phi-4."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily


class Phi3Family(ModelFamily):
    """Phi-3, Phi-3.5, Phi-4 and their mini models; a sliding window in the config is in force."""

    architecture: ClassVar[str] = "Phi3ForCausalLM"
    source: ClassVar[str] = "arXiv 2404.14219, 2412.08905; transformers, models/phi3"
    windowed: ClassVar[bool] = True
    multi_head: ClassVar[bool] = True
    defaults: ClassVar[Layout] = {
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096,
    }  # fmt: skip
    sample: ClassVar[Layout] = {**LAYOUT, "sliding_window": 512}
