"""Qwen3.5 and Qwen3.6, text only."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import LAYOUT, Layout
from nexusbench.models.families.qwen3_next import OF_DELTA_NETS, Qwen3NextFamily


class Qwen35TextFamily(Qwen3NextFamily):
    """Qwen3.5 and 3.6, dense: the mixture of layers of Qwen3-Next."""

    architecture: ClassVar[str] = "Qwen3_5ForCausalLM"
    source: ClassVar[str] = "transformers, models/qwen3_5"
    expert_size: ClassVar[str] = ""
    fused: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = OF_DELTA_NETS
    defaults: ClassVar[Layout] = {
        "vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288,
        "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4,
        "head_dim": 256, "max_position_embeddings": 32768, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **LAYOUT, "head_dim": 32, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
        "linear_num_key_heads": 4, "linear_num_value_heads": 8,
    }  # fmt: skip
