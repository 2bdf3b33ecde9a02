"""Qwen3.5 and Qwen3.6 with experts, text only."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Layout
from nexusbench.models.families.qwen3_next import OF_DELTA_NETS, Qwen3NextFamily


class Qwen35MoeTextFamily(Qwen3NextFamily):
    """Qwen3.5 and 3.6 with experts: the layers of Qwen3-Next, experts in all of them."""

    architecture: ClassVar[str] = "Qwen3_5MoeForCausalLM"
    source: ClassVar[str] = "transformers, models/qwen3_5_moe"
    fused: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = OF_DELTA_NETS
    defaults: ClassVar[Layout] = {
        **Qwen3NextFamily.defaults, "vocab_size": 248320, "num_hidden_layers": 40,
        "num_experts": 256, "num_experts_per_tok": 8,
    }  # fmt: skip
