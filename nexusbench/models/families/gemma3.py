"""Gemma 3."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Layout
from nexusbench.models.families.gemma3_text import Gemma3TextFamily


class Gemma3Family(Gemma3TextFamily):
    """The decoder of Gemma 3 with images."""

    architecture: ClassVar[str] = "Gemma3ForConditionalGeneration"
    prefix: ClassVar[str] = "language_model."
    inner: ClassVar[str] = "text_config"
    sample: ClassVar[Layout] = {"text_config": dict(Gemma3TextFamily.sample)}
