"""Kimi K3."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from nexusbench.core.layers import ExpertsMlp
from nexusbench.core.mixers import LatentAttention
from nexusbench.models.document import ConfigDocument
from nexusbench.models.families.base import Layout
from nexusbench.models.families.kimi_linear import KimiLinearFamily
from nexusbench.models.module_names import ModuleNames, module_names
from nexusbench.models.reading import latent


class KimiK3Family(KimiLinearFamily):
    """Kimi K3: the layers of Kimi Linear with gated latent attention and experts on a latent."""

    architecture: ClassVar[str] = "KimiK3ForConditionalGeneration"
    source: ClassVar[str] = "https://huggingface.co/moonshotai/Kimi-K3"
    inner: ClassVar[str] = "text_config"
    activations: ClassVar[tuple[str, ...]] = ("silu", "situ")
    names: ClassVar[ModuleNames] = {
        **module_names(sparse=("block_sparse_moe", "mlp")),
        **{key: at for key, at in KimiLinearFamily.names.items() if key.startswith("state_")},
    }
    reads: ClassVar[tuple[str, ...]] = (
        *KimiLinearFamily.reads, "routed_expert_hidden_size", "attn_res_block_size"
    )  # fmt: skip
    sample: ClassVar[Layout] = {"text_config": dict(KimiLinearFamily.sample)}
    said: ClassVar[tuple[str, ...]] = (
        "The shapes of the output gate and of the experts' latent are read from the names of keys: "
        "no published code was at hand.",
        "What attention residuals add (a few vectors a layer) is left out.",
    )

    def full(self, config: ConfigDocument) -> tuple[LatentAttention, int]:
        """Latent attention, whose output may be gated."""
        mixer, vectors = latent(config)
        if config.flag("mla_use_output_gate"):
            gate = mixer.num_heads * mixer.value_dim
            mixer = msgspec.structs.replace(mixer, gate=gate)
        return mixer, vectors

    def experts(self, config: ConfigDocument) -> ExpertsMlp:
        """Routed experts on a latent, where the config has one."""
        made = super().experts(config)
        return msgspec.structs.replace(made, latent=config.size("routed_expert_hidden_size"))
