"""Qwen2 and Qwen2.5."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Biases, ModelFamily


class Qwen2Family(ModelFamily):
    """Qwen2 and Qwen2.5: biases on queries, keys and values."""

    architecture: ClassVar[str] = "Qwen2ForCausalLM"
    source: ClassVar[str] = "arXiv 2407.10671, 2412.15115; transformers, models/qwen2"
    biases: ClassVar[Biases | None] = Biases(qkv=True)
