"""Kimi K2.5 and its successors."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Biases, Layout
from nexusbench.models.families.deepseek_v3 import DeepseekV3Family


class KimiK25Family(DeepseekV3Family):
    """Kimi K2.5 to K2.7: the decoder of Kimi K2 beside a vision tower."""

    architecture: ClassVar[str] = "KimiK25ForConditionalGeneration"
    also: ClassVar[tuple[str, ...]] = ("Kimi_K25ForConditionalGeneration",)
    source: ClassVar[str] = "https://huggingface.co/moonshotai/Kimi-K2.5"
    biases: ClassVar[Biases | None] = None
    inner: ClassVar[str] = "text_config"
    sample: ClassVar[Layout] = {"text_config": dict(DeepseekV3Family.sample)}
