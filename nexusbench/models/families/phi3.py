"""Phi-3 and Phi-4."""

from __future__ import annotations

from typing import ClassVar

from msgspec import structs

from nexusbench.core.layers import DenseMlp, ExpertsMlp
from nexusbench.core.mixers import Mixer
from nexusbench.models.design_reading import grouped_design
from nexusbench.models.designs import DenseDesign, ExpertsDesign, GroupedDesign
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import LAYOUT, Biases, Layout, ModelFamily


class Phi3Family(ModelFamily):
    """Phi-3, Phi-3.5, Phi-4 and their mini models; a sliding window in the config is in force."""

    architecture: ClassVar[str] = "Phi3ForCausalLM"
    source: ClassVar[str] = "arXiv 2404.14219, 2412.08905; transformers, models/phi3"
    windowed: ClassVar[bool] = True
    biases: ClassVar[Biases | None] = Biases()
    multi_head: ClassVar[bool] = True
    defaults: ClassVar[Layout] = {
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }  # fmt: skip
    sample: ClassVar[Layout] = {**LAYOUT, "sliding_window": 512}

    def attention_design(
        self, config: ConfigDocument, index: int, mixer: Mixer | None
    ) -> GroupedDesign:
        """One tensor of queries, keys and values; a part of each head may be rotated."""
        return structs.replace(grouped_design(config, mixer, partial=True), fused=True)

    def mlp_design(
        self, config: ConfigDocument, mlp: DenseMlp | ExpertsMlp | None
    ) -> DenseDesign | ExpertsDesign:
        """One tensor of gate and up projection."""
        return structs.replace(super().mlp_design(config, mlp), fused=True)
