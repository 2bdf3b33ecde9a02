"""Mistral 7B and its dense successors."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Biases, Layout, ModelFamily


class MistralFamily(ModelFamily):
    """Mistral's dense models; a sliding window in the config is in force."""

    architecture: ClassVar[str] = "MistralForCausalLM"
    source: ClassVar[str] = "arXiv 2310.06825; transformers, models/mistral"
    windowed: ClassVar[bool] = True
    defaults: ClassVar[Layout] = {"sliding_window": 4096}
    biases: ClassVar[Biases | None] = Biases()
