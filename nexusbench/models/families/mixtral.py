"""Mixtral."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.module_names import ModuleNames, module_names


class MixtralFamily(ModelFamily):
    """Mixtral: every layer has routed experts, and a sliding window in the config is in force."""

    architecture: ClassVar[str] = "MixtralForCausalLM"
    source: ClassVar[str] = "arXiv 2401.04088; transformers, models/mixtral"
    windowed: ClassVar[bool] = True
    num_experts: ClassVar[str] = "num_local_experts"
    expert_size: ClassVar[str] = "intermediate_size"
    names: ClassVar[ModuleNames] = module_names(sparse=("block_sparse_moe", "mlp"))
    sample: ClassVar[Layout] = {**LAYOUT, "num_local_experts": 8, "num_experts_per_tok": 2}
