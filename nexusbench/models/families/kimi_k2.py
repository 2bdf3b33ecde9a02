"""Kimi K2."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Biases
from nexusbench.models.families.deepseek_v3 import DeepseekV3Family


class KimiK2Family(DeepseekV3Family):
    """Kimi K2: the layers of DeepSeek-V3 with more experts and fewer heads."""

    source: ClassVar[str] = "arXiv 2507.20534; https://huggingface.co/moonshotai/Kimi-K2-Instruct"
    biases: ClassVar[Biases | None] = None
    also: ClassVar[tuple[str, ...]] = ("KimiK2ForCausalLM",)
