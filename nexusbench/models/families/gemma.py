"""Gemma."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.mixers import Mixer
from nexusbench.kernels.gates import Gate
from nexusbench.models.designs import Edges, GroupedDesign
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import Layout
from nexusbench.models.families.gemma2 import Gemma2Family
from nexusbench.models.reading import FULL, refuse


class GemmaFamily(Gemma2Family):
    """Gemma: full attention in every layer, GeGLU."""

    architecture: ClassVar[str] = "GemmaForCausalLM"
    source: ClassVar[str] = "arXiv 2403.08295; transformers, models/gemma"
    norms: ClassVar[int] = 2
    defaults: ClassVar[Layout] = {
        "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16,
        "head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    }  # fmt: skip

    def windows(self, config: ConfigDocument, count: int) -> list[int]:
        """None."""
        config.listed("layer_types", count, (FULL,))
        return [0] * count

    def attention_design(
        self, config: ConfigDocument, index: int, mixer: Mixer | None
    ) -> GroupedDesign:
        """Scores are scaled by the size of a head, and not held within a cap."""
        refuse(config, "attn_logit_softcapping", (), "Gemma 1 holds no scores within a cap")
        made = super().attention_design(config, index, mixer)
        hint = "Gemma 1 scales scores by the size of a head"
        refuse(config, "query_pre_attn_scalar", (made.head_dim,), hint)
        return made

    def edges(self, config: ConfigDocument) -> Edges:
        """As of Gemma 2, without a cap."""
        refuse(config, "final_logit_softcapping", (), "Gemma 1 holds no logits within a cap")
        return super().edges(config)

    def gate(self, config: ConfigDocument) -> Gate:
        """GELU by tanh, also where older configs say "gelu" (transformers, models/gemma)."""
        return Gate("gelu_tanh")
