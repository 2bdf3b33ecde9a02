"""Gemma 4."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Layout
from nexusbench.models.families.gemma4_text import Gemma4TextFamily


class Gemma4Family(Gemma4TextFamily):
    """The decoder of Gemma 4 with images and sound."""

    architecture: ClassVar[str] = "Gemma4ForConditionalGeneration"
    inner: ClassVar[str] = "text_config"
    sample: ClassVar[Layout] = {"text_config": dict(Gemma4TextFamily.sample)}
