"""Gemma 3, text only."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Layout
from nexusbench.models.families.gemma2 import Gemma2Family


class Gemma3TextFamily(Gemma2Family):
    """Gemma 3: five layers with a window for each that sees everything; normalised heads."""

    architecture: ClassVar[str] = "Gemma3ForCausalLM"
    source: ClassVar[str] = "arXiv 2503.19786; transformers, models/gemma3"
    qk_norm: ClassVar[bool] = True
    period: ClassVar[int] = 6
    defaults: ClassVar[Layout] = {
        **Gemma2Family.defaults, "vocab_size": 262208, "max_position_embeddings": 131072,
    }  # fmt: skip
    sample: ClassVar[Layout] = {**Gemma2Family.sample, "num_hidden_layers": 6}
