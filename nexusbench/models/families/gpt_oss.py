"""gpt-oss."""

from __future__ import annotations

from typing import ClassVar

from msgspec import structs

from nexusbench.core.layers import ExpertsMlp
from nexusbench.core.mixers import FullAttention, Mixer
from nexusbench.kernels.gates import Gate
from nexusbench.kernels.routing import Routing
from nexusbench.models.design_reading import grouped_design, refuse_other_routing
from nexusbench.models.designs import ExpertsDesign, GroupedDesign
from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.families.base import LAYOUT, Biases, Layout, ModelFamily
from nexusbench.models.reading import FULL, SLIDING, attention_vectors, layer_kinds

# What transformers takes where the config describes no rope.
_ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


class GptOssFamily(ModelFamily):
    """gpt-oss: every second layer sees a window, attention has sinks, experts have biases."""

    architecture: ClassVar[str] = "GptOssForCausalLM"
    source: ClassVar[str] = "arXiv 2508.10925; transformers, models/gpt_oss"
    expert_size: ClassVar[str] = "intermediate_size"
    biases: ClassVar[Biases | None] = Biases(qkv=None, output=None)
    num_experts: ClassVar[str] = "num_local_experts"
    defaults: ClassVar[Layout] = {
        "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
        "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "sliding_window": 128, "num_local_experts": 128, "num_experts_per_tok": 4,
        "max_position_embeddings": 131072, "attention_bias": True, "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
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
        """The experts; number per token under one key, which another may repeat."""
        made = super().experts(config)
        repeated, used = config.data.get("experts_per_token"), made.experts_per_token
        if repeated not in (None, used):
            problem = f"is {shown(repeated)}, but num_experts_per_tok {used}"
            raise config.error("experts_per_token", problem, "Correct one of them")
        return made

    def vectors(self, config: ConfigDocument, mixer: FullAttention) -> int:
        """Norms, biases of attention, experts and router, sinks."""
        hidden, mlp = config.count("hidden_size"), self.experts(config)
        biased = config.flag("attention_bias")
        made = 2 * hidden + mixer.num_heads + mlp.num_experts
        made += attention_vectors(mixer, hidden, qkv_bias=biased, output_bias=biased)
        return made + mlp.num_experts * (2 * mlp.intermediate_size + hidden)

    def attention_design(
        self, config: ConfigDocument, index: int, mixer: Mixer | None
    ) -> GroupedDesign:
        """Each head has a sink."""
        if not (config.data.get("rope_parameters") or config.data.get("rope_scaling")):
            config = config.replaced({"rope_parameters": _ROPE})
        qkv, output, _ = self.biased(config)
        made = grouped_design(config, mixer, qkv_bias=qkv, output_bias=output)
        return structs.replace(made, sinks=True)

    def experts_design(self, config: ConfigDocument, made: ExpertsDesign) -> ExpertsDesign:
        """All experts are in one tensor, and everything has a bias."""
        return structs.replace(made, router="router", stacked=True, bias=True)

    def gate(self, config: ConfigDocument) -> Gate:
        """A SwiGLU within limits."""
        alpha, limit = config.number("swiglu_alpha", 1.702), config.number("swiglu_limit", 7.0)
        return Gate("clamped", alpha=alpha, limit=limit)

    def routing(self, config: ConfigDocument) -> Routing:
        """The softmax of the chosen experts' scores."""
        refuse_other_routing(config, normalised=True)
        return Routing(0, scores="chosen")
