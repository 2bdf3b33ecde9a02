"""Qwen3, dense."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Biases, ModelFamily


class Qwen3Family(ModelFamily):
    """Qwen3's dense models: each query and key head is normalised."""

    architecture: ClassVar[str] = "Qwen3ForCausalLM"
    source: ClassVar[str] = "arXiv 2505.09388; transformers, models/qwen3"
    biases: ClassVar[Biases | None] = Biases(qkv=None, output=None)
    qk_norm: ClassVar[bool] = True
