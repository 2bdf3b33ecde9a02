"""DeepSeek-V2."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.mixers import Mixer
from nexusbench.kernels.routing import Routing
from nexusbench.models.design_reading import latent_design
from nexusbench.models.designs import ExpertsDesign, LatentDesign
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import Layout
from nexusbench.models.families.deepseek_v3 import DeepseekV3Family
from nexusbench.models.reading import refuse


class DeepseekV2Family(DeepseekV3Family):
    """DeepSeek-V2, V2-Lite and their coders: the layers of V3 with other sizes."""

    architecture: ClassVar[str] = "DeepseekV2ForCausalLM"
    source: ClassVar[str] = "arXiv 2405.04434; transformers, models/deepseek_v2"
    defaults: ClassVar[Layout] = {
        "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 11008,
        "moe_intermediate_size": 1407, "num_hidden_layers": 32, "num_attention_heads": 32,
        "n_shared_experts": 2, "n_routed_experts": 64, "kv_lora_rank": 512, "q_lora_rank": 1536,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
        "first_k_dense_replace": 0, "max_position_embeddings": 2048,
    }  # fmt: skip

    def attention_design(
        self, config: ConfigDocument, index: int, mixer: Mixer | None
    ) -> LatentDesign:
        """Latent attention, with rotary pairs next to one another."""
        return latent_design(config, mixer, neighbours=True)

    def experts_design(self, config: ConfigDocument, made: ExpertsDesign) -> ExpertsDesign:
        """Experts of the best groups only where the config says so."""
        in_groups = config.data.get("topk_method") == "group_limited_greedy"
        return super().experts_design(config, made) if in_groups else made

    def routing(self, config: ConfigDocument) -> Routing:
        """The softmax as it is: here transformers heeds no ``norm_topk_prob``."""
        refuse(config, "scoring_func", ("softmax",), "Only softmax scores are computed here")
        known = ("greedy", "group_limited_greedy")
        refuse(config, "topk_method", known, f"Computed are {' and '.join(known)}")
        return Routing(0, scale=config.number("routed_scaling_factor", 1.0))
