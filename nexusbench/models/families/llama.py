"""Llama and what is published in its layout."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Biases, ModelFamily


class LlamaFamily(ModelFamily):
    """Llama 1 to 3, and models published in their layout."""

    architecture: ClassVar[str] = "LlamaForCausalLM"
    source: ClassVar[str] = "arXiv 2302.13971, 2407.21783; transformers, models/llama"
    multi_head: ClassVar[bool] = True  # the first configs leave num_key_value_heads out
    biases: ClassVar[Biases | None] = Biases(qkv=None, output=None, mlp=None)
