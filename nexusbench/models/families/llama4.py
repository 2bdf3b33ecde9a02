"""Llama 4."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Layout
from nexusbench.models.families.llama4_text import Llama4TextFamily


class Llama4Family(Llama4TextFamily):
    """The decoder of Llama 4 Scout and Maverick."""

    architecture: ClassVar[str] = "Llama4ForConditionalGeneration"
    inner: ClassVar[str] = "text_config"
    sample: ClassVar[Layout] = {"text_config": dict(Llama4TextFamily.sample)}
