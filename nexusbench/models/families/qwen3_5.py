"""Qwen3.5 and Qwen3.6."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Layout
from nexusbench.models.families.qwen3_5_text import Qwen35TextFamily


class Qwen35Family(Qwen35TextFamily):
    """The decoder of the dense models of Qwen3.5 and 3.6, with images."""

    architecture: ClassVar[str] = "Qwen3_5ForConditionalGeneration"
    inner: ClassVar[str] = "text_config"
    sample: ClassVar[Layout] = {"text_config": dict(Qwen35TextFamily.sample)}
