"""GLM-4.5V and 4.6V."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.base import Layout
from nexusbench.models.families.glm4_moe import Glm4MoeFamily


class Glm4vMoeFamily(Glm4MoeFamily):
    """The decoder of GLM-4.5V and 4.6V: that of GLM-4.5."""

    architecture: ClassVar[str] = "Glm4vMoeForConditionalGeneration"
    source: ClassVar[str] = "transformers, models/glm4v_moe"
    inner: ClassVar[str] = "text_config"
    defaults: ClassVar[Layout] = {
        **Glm4MoeFamily.defaults, "vocab_size": 151424, "max_position_embeddings": 65536,
        "attention_bias": True,
    }  # fmt: skip
    sample: ClassVar[Layout] = {"text_config": dict(Glm4MoeFamily.sample)}
