"""Gemma 3."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Biases, Layout
from nexusbench.models.families.gemma3_text import Gemma3TextFamily


class Gemma3Family(Gemma3TextFamily):
    """The decoder of Gemma 3 with images."""

    architecture: ClassVar[str] = "Gemma3ForConditionalGeneration"
    biases: ClassVar[Biases | None] = None
    inner: ClassVar[str] = "text_config"
    sample: ClassVar[Layout] = {"text_config": dict(Gemma3TextFamily.sample)}
