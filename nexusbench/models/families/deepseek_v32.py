"""DeepSeek-V3.2."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.mixers import LatentAttention, SparseAttention
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import Biases, Layout
from nexusbench.models.families.deepseek_v3 import DeepseekV3Family
from nexusbench.models.reading import latent


class DeepseekV32Family(DeepseekV3Family):
    """DeepSeek-V3.2: V3 whose attention reads the tokens that an indexer picks (DSA)."""

    architecture: ClassVar[str] = "DeepseekV32ForCausalLM"
    source: ClassVar[str] = "arXiv 2512.02556; transformers, models/deepseek_v32"
    biases: ClassVar[Biases | None] = None
    reads: ClassVar[tuple[str, ...]] = (
        *DeepseekV3Family.reads, "index_topk", "index_head_dim", "index_n_heads"
    )  # fmt: skip
    defaults: ClassVar[Layout] = {
        **DeepseekV3Family.defaults, "index_topk": 2048, "index_head_dim": 128,
        "index_n_heads": 64, "max_position_embeddings": 163840,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **DeepseekV3Family.sample, "index_topk": 64, "index_head_dim": 32, "index_n_heads": 4,
    }  # fmt: skip
    said: ClassVar[tuple[str, ...]] = (
        "Keys of the indexer are counted in fp8 with a scale, as servers keep them.",
    )

    def mixers(
        self, config: ConfigDocument, count: int
    ) -> list[tuple[LatentAttention | SparseAttention, int]]:
        """Sparse attention, with an indexer of its own or the picks of an earlier layer."""
        base, vectors = latent(config)
        made: list[tuple[LatentAttention | SparseAttention, int]] = []
        for reuses in self.reusing(config, count):
            size = config.count("index_head_dim")
            mixer = SparseAttention(
                base=base, topk=config.count("index_topk"), reuses=reuses,
                index_heads=config.count("index_n_heads"), index_dim=size,
                index_inputs=base.q_rank or config.count("hidden_size"),
            )  # fmt: skip
            made.append((mixer, vectors + (0 if reuses else 2 * size)))  # its layer norm
        return made

    def reusing(self, config: ConfigDocument, count: int) -> list[bool]:
        """Whether each layer takes the tokens that an earlier one picked."""
        return [False] * count
