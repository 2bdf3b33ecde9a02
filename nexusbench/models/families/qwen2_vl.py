"""Qwen2-VL."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.qwen2_5_vl import Qwen25VlFamily


class Qwen2VlFamily(Qwen25VlFamily):
    """The decoder of Qwen2-VL: Qwen2's."""

    architecture: ClassVar[str] = "Qwen2VLForConditionalGeneration"
    source: ClassVar[str] = "arXiv 2409.12191; transformers, models/qwen2_vl"
