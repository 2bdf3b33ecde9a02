"""Qwen3.5 and Qwen3.6 with experts."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Layout
from nexusbench.models.families.qwen3_5_moe_text import Qwen35MoeTextFamily


class Qwen35MoeFamily(Qwen35MoeTextFamily):
    """The decoder of the mixtures of experts of Qwen3.5 and 3.6, with images."""

    architecture: ClassVar[str] = "Qwen3_5MoeForConditionalGeneration"
    inner: ClassVar[str] = "text_config"
    sample: ClassVar[Layout] = {"text_config": dict(Qwen35MoeTextFamily.sample)}
