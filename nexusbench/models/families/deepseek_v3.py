"""DeepSeek-V3 and R1, and what is published in their layout."""

from __future__ import annotations

from typing import ClassVar

from msgspec import structs

from nexusbench.core.layers import DenseMlp, ExpertsMlp
from nexusbench.core.mixers import LatentAttention, Mixer, SparseAttention
from nexusbench.kernels.routing import Routing
from nexusbench.models.design_reading import grouped_routing, latent_design
from nexusbench.models.designs import ExpertsDesign, LatentDesign
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import LAYOUT, Biases, Layout, ModelFamily
from nexusbench.models.reading import dense_first, latent, refuse, routed
from nexusbench.models.stacking import LayerPlan


class DeepseekV3Family(ModelFamily):
    """Latent attention in every layer, some dense layers first, then routed and shared experts."""

    architecture: ClassVar[str] = "DeepseekV3ForCausalLM"
    source: ClassVar[str] = "arXiv 2412.19437; transformers, models/deepseek_v3"
    expert_size: ClassVar[str] = "moe_intermediate_size"
    biases: ClassVar[Biases | None] = Biases(qkv=None, output=None)
    reads: ClassVar[tuple[str, ...]] = (
        "kv_lora_rank", "q_lora_rank", "first_k_dense_replace", "moe_layer_freq",
        "n_routed_experts", "n_shared_experts",
    )  # fmt: skip
    defaults: ClassVar[Layout] = {
        "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
        "n_shared_experts": 1, "n_routed_experts": 256, "kv_lora_rank": 512, "q_lora_rank": 1536,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
        "num_experts_per_tok": 8, "first_k_dense_replace": 3, "max_position_embeddings": 4096,
        "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **LAYOUT, "kv_lora_rank": 64, "q_lora_rank": 96, "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32, "v_head_dim": 32, "n_routed_experts": 8, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "moe_intermediate_size": 192, "first_k_dense_replace": 1,
        "n_group": 2, "topk_group": 1,
    }  # fmt: skip

    def layers(self, config: ConfigDocument, count: int) -> list[LayerPlan]:
        """Each layer: its attention, and dense or experts."""
        hidden, dense = config.count("hidden_size"), self.dense(config, count)
        mlps: dict[bool, DenseMlp | ExpertsMlp] = {}
        if any(dense):
            mlps[True] = DenseMlp(intermediate_size=config.count("intermediate_size"))
        if not all(dense):
            mlps[False] = self.experts(config)
        return [
            LayerPlan(mixer=mixer, mlp=mlps[is_dense], vectors=vectors + 2 * hidden)
            for (mixer, vectors), is_dense in zip(self.mixers(config, count), dense, strict=True)
        ]

    def mixers(
        self, config: ConfigDocument, count: int
    ) -> list[tuple[LatentAttention | SparseAttention, int]]:
        """The attention of each layer, and its parameters that are in no matrix."""
        made: list[tuple[LatentAttention | SparseAttention, int]] = [latent(config)]
        return made * count

    def dense(self, config: ConfigDocument, count: int) -> list[bool]:
        """Whether each layer is dense."""
        refuse(config, "moe_layer_freq", (1,), "Only experts in every layer after the first ones")
        if config.size("n_routed_experts") == 0:
            return [True] * count
        kinds = config.listed("mlp_layer_types", count, ("dense", "sparse"), longer=True)
        if kinds is not None:
            return [kind == "dense" for kind in kinds]
        first = dense_first(config, count)
        return [index < first for index in range(count)]

    def experts(self, config: ConfigDocument) -> ExpertsMlp:
        """Routed experts, and shared ones as one of their widths together."""
        shared = config.size("n_shared_experts") * config.count(self.expert_size)
        counts = ("n_routed_experts", "num_experts", "num_local_experts")
        return routed(config, count=counts, size=self.expert_size, shared_size=shared)

    def attention_design(
        self, config: ConfigDocument, index: int, mixer: Mixer | None
    ) -> LatentDesign:
        """Latent attention, with rotary pairs next to one another unless the config says no."""
        neighbours = config.flag("rope_interleave", default=True)
        return latent_design(config, mixer, neighbours=neighbours)

    def experts_design(self, config: ConfigDocument, made: ExpertsDesign) -> ExpertsDesign:
        """Experts of the best groups."""
        grouped = grouped_routing(config, made.routing, made.num_experts)
        return structs.replace(made, routing=grouped)

    def routing(self, config: ConfigDocument) -> Routing:
        """Sigmoids, corrected by a bias for choosing."""
        refuse(config, "scoring_func", ("sigmoid",), "Only sigmoid scores are computed here")
        refuse(config, "topk_method", ("noaux_tc",), "Only noaux_tc is computed of this family")
        return Routing(
            0, scores="sigmoid", normalised=config.flag("norm_topk_prob"), group_score="two",
            scale=config.number("routed_scaling_factor", 1.0), corrected=True,
        )  # fmt: skip
