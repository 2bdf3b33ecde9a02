"""Llama Nemotron Super and Ultra."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.layers import DenseMlp
from nexusbench.core.mixers import FullAttention, Projection
from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.reading import in_window
from nexusbench.models.stacking import LayerPlan

_BLOCK = {"attention": {"n_heads_in_group": 4}, "ffn": {"ffn_mult": 3.0}}
_SKIP = {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.5}}


class NemotronNasFamily(ModelFamily):
    """Llama Nemotron Super and Ultra: Llama's layers, each with its own width of the feed-forward
    part and number of KV heads, some without attention, without it or with a matrix in its place.
    """

    architecture: ClassVar[str] = "DeciLMForCausalLM"
    source: ClassVar[str] = (
        "arXiv 2411.19146; https://huggingface.co/nvidia/Llama-3_3-Nemotron-Super-49B-v1"
    )
    reads: ClassVar[tuple[str, ...]] = ("block_configs",)
    sample: ClassVar[Layout] = {
        **{key: value for key, value in LAYOUT.items()
           if key not in ("num_hidden_layers", "intermediate_size", "num_key_value_heads")},
        "block_configs": [_BLOCK, _SKIP],
    }  # fmt: skip

    def decoder_of(self, config: ConfigDocument) -> ConfigDocument:
        """As usual, with as many layers as there are blocks."""
        blocks = config.data.get("block_configs")
        if not isinstance(blocks, list) or not 0 < len(blocks) <= 4096:
            problem = "is missing" if blocks is None else f"is {shown(blocks)}"
            raise config.error("block_configs", problem, "Give an object for each layer")
        count = config.count("num_hidden_layers", len(blocks))
        if count != len(blocks):
            problem = f"has {len(blocks)} entries, not {count}"
            raise config.error("block_configs", problem, "Give one for each layer")
        return config.replaced({"num_hidden_layers": count})

    def layers(self, config: ConfigDocument, count: int) -> list[LayerPlan]:
        """Each block."""
        blocks = config.data["block_configs"]
        assert isinstance(blocks, list)
        return [self._layer(config, block) for block in blocks]

    def _layer(self, config: ConfigDocument, block: object) -> LayerPlan:
        held = block if isinstance(block, dict) else {}
        parts = []
        for name in ("attention", "ffn"):
            part = held.get(name)
            if not isinstance(part, dict):
                problem = f"has {shown(part)} for {name}"
                raise config.error("block_configs", problem, "Give an object")
            parts.append(part)
        mixer, first = self._attention(config, parts[0])
        mlp, second = self._mlp(config, parts[1])
        norms = bool(mixer or first) + bool(mlp or second)
        return LayerPlan(
            mixer=mixer, mlp=mlp, vectors=norms * config.count("hidden_size"),
            others=(*first, *second),
        )  # fmt: skip

    def _attention(
        self, config: ConfigDocument, part: dict[str, object]
    ) -> tuple[FullAttention | None, tuple[Projection, ...]]:
        hidden = config.count("hidden_size")
        for key in ("sparsify", "num_sink_tokens"):
            if part.get(key):
                problem = f"has {key} {shown(part[key])}"
                raise config.error("block_configs", problem, "Only attention without it")
        if part.get("no_op"):
            return None, ()
        if part.get("replace_with_linear"):
            return None, (Projection("linear_attention", hidden, hidden),)
        heads = config.count("num_attention_heads")
        group, window = part.get("n_heads_in_group"), part.get("window_length")
        if isinstance(group, bool) or not isinstance(group, int) or group < 1 or heads % group:
            problem = f"has n_heads_in_group {shown(group)}"
            raise config.error("block_configs", problem, f"It must divide the {heads} heads")
        if window is not None and (isinstance(window, bool) or not isinstance(window, int)):
            problem = f"has window_length {shown(window)}"
            raise config.error("block_configs", problem, "Give a whole number, or null")
        if hidden % heads:
            problem = f"{heads} does not divide hidden_size {hidden}"
            raise config.error("num_attention_heads", problem, "Correct one of the two")
        mixer = FullAttention(
            num_heads=heads, num_kv_heads=heads // group,
            head_dim=config.count("head_dim", hidden // heads),
        )  # fmt: skip
        return in_window(config, mixer, max(0, window or 0)), ()

    def _mlp(
        self, config: ConfigDocument, part: dict[str, object]
    ) -> tuple[DenseMlp | None, tuple[Projection, ...]]:
        hidden = config.count("hidden_size")
        if part.get("sparsify"):
            problem = f"has sparsify {shown(part['sparsify'])}"
            raise config.error("block_configs", problem, "Only dense feed-forward parts")
        if part.get("no_op"):
            return None, ()
        if part.get("replace_with_linear"):
            return None, (Projection("linear_mlp", hidden, hidden, 1, "dense"),)
        times, wide = part.get("ffn_mult"), part.get("intermediate_size")
        if wide is None:
            if (
                isinstance(times, bool)
                or not isinstance(times, int | float)
                or not (0 < times <= 1000)
            ):
                problem = f"has ffn_mult {shown(times)}"
                raise config.error("block_configs", problem, "Give a positive number")
            # As configuration_decilm.py: two thirds, rounded up to a multiple of 256.
            wide = (int(2 * times * hidden / 3) + 255) // 256 * 256
        if isinstance(wide, bool) or not isinstance(wide, int) or not 0 < wide <= 10**7:
            problem = f"has intermediate_size {shown(wide)}"
            raise config.error("block_configs", problem, "Give a positive integer")
        return DenseMlp(intermediate_size=wide), ()
