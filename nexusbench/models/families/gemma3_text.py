"""Gemma 3, text only."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.mixers import Mixer
from nexusbench.kernels.ropes import Rope
from nexusbench.models.designs import GroupedDesign
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import Layout
from nexusbench.models.families.gemma2 import Gemma2Family
from nexusbench.models.reading import FULL, refuse
from nexusbench.models.ropes import rope_of


class Gemma3TextFamily(Gemma2Family):
    """Gemma 3: five layers with a window for each that sees everything; normalised heads."""

    architecture: ClassVar[str] = "Gemma3ForCausalLM"
    source: ClassVar[str] = "arXiv 2503.19786; transformers, models/gemma3"
    qk_norm: ClassVar[bool] = True
    period: ClassVar[int] = 6
    defaults: ClassVar[Layout] = {
        **Gemma2Family.defaults, "vocab_size": 262208, "max_position_embeddings": 131072,
        "attn_logit_softcapping": None, "final_logit_softcapping": None,
    }  # fmt: skip
    sample: ClassVar[Layout] = {**Gemma2Family.sample, "num_hidden_layers": 6}

    def attention_design(
        self, config: ConfigDocument, index: int, mixer: Mixer | None
    ) -> GroupedDesign:
        """As of Gemma 2, without a cap: transformers reads the key and does nothing with it."""
        refuse(config, "attn_logit_softcapping", (), "Gemma 3 holds no scores within a cap")
        return super().attention_design(config, index, mixer)

    def rope(self, config: ConfigDocument, index: int) -> Rope | None:
        """Layers with a window have a shorter wavelength, and none of the extensions."""
        kind = self.kinds(config, config.count("num_hidden_layers"))[index]
        size = self.attention(config).head_dim
        nested = config.data.get("rope_parameters")
        if isinstance(nested, dict) and isinstance(nested.get(kind), dict):
            return rope_of(config, size, 1e6 if kind == FULL else 1e4, kind)
        if kind == FULL:
            return rope_of(config, size, 1e6)
        return Rope(theta=config.number("rope_local_base_freq", 1e4))
