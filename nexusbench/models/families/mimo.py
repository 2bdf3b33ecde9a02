"""MiMo-7B."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Biases
from nexusbench.models.families.qwen2 import Qwen2Family


class MimoFamily(Qwen2Family):
    """MiMo-7B: Qwen2's layers; its multi-token prediction is left out."""

    architecture: ClassVar[str] = "MiMoForCausalLM"
    source: ClassVar[str] = "arXiv 2505.07608; https://huggingface.co/XiaomiMiMo/MiMo-7B-Base"
    biases: ClassVar[Biases | None] = None
    biased_qkv: ClassVar[bool] = True
