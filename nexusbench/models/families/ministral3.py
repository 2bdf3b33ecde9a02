"""Ministral 3."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Biases, Layout
from nexusbench.models.families.mistral import MistralFamily


class Ministral3Family(MistralFamily):
    """Ministral 3: Mistral's layers, without windows where the config names none."""

    architecture: ClassVar[str] = "Ministral3ForCausalLM"
    source: ClassVar[str] = "transformers, models/ministral3"
    biases: ClassVar[Biases | None] = None
    defaults: ClassVar[Layout] = {}
