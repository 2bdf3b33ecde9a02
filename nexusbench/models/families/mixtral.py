"""Mixtral."""

from __future__ import annotations

from typing import ClassVar

from msgspec import structs

from nexusbench.kernels.routing import Routing
from nexusbench.models.design_reading import refuse_other_routing
from nexusbench.models.designs import ExpertsDesign
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import LAYOUT, Biases, Layout, ModelFamily
from nexusbench.models.module_names import ModuleNames, module_names


class MixtralFamily(ModelFamily):
    """Mixtral: every layer has routed experts, and a sliding window in the config is in force."""

    architecture: ClassVar[str] = "MixtralForCausalLM"
    source: ClassVar[str] = "arXiv 2401.04088; transformers, models/mixtral"
    windowed: ClassVar[bool] = True
    num_experts: ClassVar[str] = "num_local_experts"
    expert_size: ClassVar[str] = "intermediate_size"
    names: ClassVar[ModuleNames] = module_names(sparse=("block_sparse_moe", "mlp"))
    biases: ClassVar[Biases | None] = Biases()
    defaults: ClassVar[Layout] = {"rms_norm_eps": 1e-5, "rope_theta": 1e6}
    sample: ClassVar[Layout] = {**LAYOUT, "num_local_experts": 8, "num_experts_per_tok": 2}

    def routing(self, config: ConfigDocument) -> Routing:
        """The weights of the chosen experts sum up to 1."""
        refuse_other_routing(config, normalised=True)
        return Routing(0, normalised=True)

    def experts_design(self, config: ConfigDocument, made: ExpertsDesign) -> ExpertsDesign:
        """Under names of its own."""
        return structs.replace(made, module="block_sparse_moe", matrices=("w1", "w3", "w2"))
