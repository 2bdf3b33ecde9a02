"""gpt-oss."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.layers import ExpertsMlp
from nexusbench.core.mixers import FullAttention
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.reading import FULL, SLIDING, attention_vectors, layer_kinds


class GptOssFamily(ModelFamily):
    """gpt-oss: every second layer sees a window, attention has sinks, experts have biases."""

    architecture: ClassVar[str] = "GptOssForCausalLM"
    source: ClassVar[str] = "arXiv 2508.10925; transformers, models/gpt_oss"
    expert_size: ClassVar[str] = "intermediate_size"
    num_experts: ClassVar[str] = "num_local_experts"
    defaults: ClassVar[Layout] = {
        "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
        "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "sliding_window": 128, "num_local_experts": 128, "num_experts_per_tok": 4,
        "max_position_embeddings": 131072, "attention_bias": True,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **LAYOUT, "head_dim": 32, "sliding_window": 128, "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }  # fmt: skip

    def windows(self, config: ConfigDocument, count: int) -> list[int]:
        """The window of each layer, 0 where it sees everything."""
        usual = [FULL if index % 2 else SLIDING for index in range(count)]
        window = config.count("sliding_window")
        return [window * (kind == SLIDING) for kind in layer_kinds(config, count, usual)]

    def experts(self, config: ConfigDocument) -> ExpertsMlp:
        """The experts; number per token under either of two keys."""
        if config.data.get("experts_per_token") is not None:
            config = config.with_defaults({"num_experts_per_tok": config.data["experts_per_token"]})
        return super().experts(config)

    def vectors(self, config: ConfigDocument, mixer: FullAttention) -> int:
        """Norms, biases of attention, experts and router, sinks."""
        hidden, mlp = config.count("hidden_size"), self.experts(config)
        biased = config.flag("attention_bias")
        made = 2 * hidden + mixer.num_heads + mlp.num_experts
        made += attention_vectors(mixer, hidden, qkv_bias=biased, output_bias=biased)
        return made + mlp.num_experts * (2 * mlp.intermediate_size + hidden)
