"""MiniMax-M3, text only."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import LAYOUT, Layout
from nexusbench.models.families.minimax_m3_vl import MinimaxM3VlFamily


class MinimaxM3Family(MinimaxM3VlFamily):
    """MiniMax-M3 as published for text: the same keys, not in an object of their own."""

    architecture: ClassVar[str] = "MiniMaxM3ForCausalLM"
    inner: ClassVar[str] = ""
    sample: ClassVar[Layout] = {
        **LAYOUT, "num_local_experts": 8, "num_experts_per_tok": 2, "index_n_heads": 2,
        "shared_intermediate_size": 192, "dense_intermediate_size": 768,
    }  # fmt: skip
