"""Qwen1.5-MoE and Qwen2-57B-A14B."""

from __future__ import annotations

from typing import ClassVar

from msgspec import structs

from nexusbench.models.designs import ExpertsDesign
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import LAYOUT, Biases, Layout, ModelFamily


class Qwen2MoeFamily(ModelFamily):
    """Qwen's second generation of experts: routed ones, and a shared one that every token uses."""

    architecture: ClassVar[str] = "Qwen2MoeForCausalLM"
    source: ClassVar[str] = "arXiv 2407.10671; transformers, models/qwen2_moe"
    expert_size: ClassVar[str] = "moe_intermediate_size"
    reads: ClassVar[tuple[str, ...]] = ("decoder_sparse_step", "mlp_only_layers")
    biases: ClassVar[Biases | None] = Biases(qkv=True)
    shared_expert: ClassVar[int | None] = 5632
    sample: ClassVar[Layout] = {
        **LAYOUT, "num_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 192, "shared_expert_intermediate_size": 768,
    }  # fmt: skip

    def biased(self, config: ConfigDocument) -> tuple[bool, bool, bool]:
        """Queries, keys and values have them unless the config says otherwise."""
        return config.flag("qkv_bias", default=True), False, False

    def experts_design(self, config: ConfigDocument, made: ExpertsDesign) -> ExpertsDesign:
        """The shared expert has a gate."""
        return structs.replace(made, shared="shared_expert", shared_gate=made.shared_size > 0)
