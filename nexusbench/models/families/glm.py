"""GLM-4-9B."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.glm4 import Glm4Family


class GlmFamily(Glm4Family):
    """GLM-4-9B and GLM-Edge: two norms a layer."""

    architecture: ClassVar[str] = "GlmForCausalLM"
    source: ClassVar[str] = "arXiv 2406.12793; transformers, models/glm"
    norms: ClassVar[int] = 2
