"""DeepSeek-V4 under another name."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.deepseek_v4 import DeepseekV4Family


class DeepseekRefFamily(DeepseekV4Family):
    """DeepSeek-V4 as some FP8 conversions publish it: only ``model_type`` differs."""

    source: ClassVar[str] = "https://huggingface.co/sgl-project/DeepSeek-V4-Pro-FP8"
