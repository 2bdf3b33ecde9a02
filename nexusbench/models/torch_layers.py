"""Layers of any design, one by one, with torch's operators and single native products."""

from __future__ import annotations

import torch

from nexusbench.kernels.experts import GatedProduct
from nexusbench.kernels.norm import RmsNorm
from nexusbench.kernels.paged import HeadShape, LayerKV, PagedKV
from nexusbench.kernels.ropes import Rope
from nexusbench.kernels.rotary import Rotary
from nexusbench.models.architecture import DecoderConfig
from nexusbench.models.designs import DenseDesign, LatentDesign, LayerDesign
from nexusbench.models.feed_forward import ExpertsPart, read_experts
from nexusbench.models.heads import GroupedHeads, LatentHeads
from nexusbench.models.step import Step
from nexusbench.models.weights import WeightReader


def head_shape(design: LayerDesign) -> HeadShape:
    """What attention sees of a layer: latent attention is that of many query heads to one key, the
    latent and the rotated part of it (absorbed, DeepSeek-V2, 2405.04434, section 2.1.2).
    """
    of = design.attention
    if isinstance(of, LatentDesign):
        return HeadShape(of.num_heads, 1, of.kv_rank + of.rope_dim, of.kv_rank)
    return HeadShape(of.num_heads, of.num_kv_heads, of.head_dim)


class TorchLayers:
    """All layers of a decoder, of whatever design."""

    def __init__(self, config: DecoderConfig, read: WeightReader) -> None:
        self.layers = [TorchLayer(config, read, index) for index in range(len(config.layers))]
        self.rules = [layer.heads.rule for layer in self.layers]
        self.rotaries: dict[tuple[int, Rope], Rotary] = {}
        for layer in self.layers:
            key = (layer.heads.rotary_dim, layer.heads.rope)
            if key not in self.rotaries:
                self.rotaries[key] = Rotary(*key, device=read.device)

    def run(
        self, hidden: torch.Tensor, step: Step, kv: PagedKV, first: int, stop: int
    ) -> torch.Tensor:
        """As :meth:`nexusbench.models.layers.Layers.run`."""
        turns = {
            key: rotary.at(step.positions, step.longest) for key, rotary in self.rotaries.items()
        }
        for layer, cache in zip(self.layers[first:stop], kv.layers[first:stop], strict=True):
            layer.forward(hidden, step, turns[layer.heads.rotary_dim, layer.heads.rope], cache)
        if stop < len(self.layers) or step.logit_rows is None:
            return hidden
        return hidden.index_select(0, step.logit_rows)


class TorchLayer:
    """Attention and a feed-forward part, each on the normed residual stream and added to it."""

    __slots__ = ("heads", "input_norm", "mlp", "mlp_norm", "post_attention", "post_mlp")

    def __init__(self, config: DecoderConfig, read: WeightReader, index: int) -> None:
        design, at = config.layers[index], f"model.layers.{index}"
        hidden, eps, attention = config.spec.hidden_size, config.rms_norm_eps, design.attention

        def norm(name: str, dtype: torch.dtype = read.dtype) -> RmsNorm:
            return RmsNorm(read.norm(f"{at}.{name}_layernorm.weight", hidden), eps, dtype)

        self.heads: GroupedHeads | LatentHeads
        if isinstance(attention, LatentDesign):
            self.heads = LatentHeads(read, f"{at}.self_attn", attention, hidden)
        else:
            self.heads = GroupedHeads(read, f"{at}.self_attn", attention, hidden, eps)
        self.mlp: GatedProduct | ExpertsPart
        if isinstance(design.mlp, DenseDesign):
            gate_up, gate_up_bias = read.gate_up(f"{at}.mlp", design.mlp)
            down = read.linear(f"{at}.mlp.down_proj", hidden, design.mlp.size, design.mlp.bias)
            self.mlp = GatedProduct(gate_up, down[0], design.mlp.gate, gate_up_bias, down[1])
        else:
            self.mlp = read_experts(read, at, design.mlp, hidden)
        self.input_norm = norm("input")
        self.post_attention = self.post_mlp = None
        if design.sandwiched:
            self.post_attention = norm("post_attention", torch.float32)
            self.mlp_norm = norm("pre_feedforward")
            self.post_mlp = norm("post_feedforward", torch.float32)
        else:
            self.mlp_norm = norm("post_attention")

    def forward(
        self, hidden: torch.Tensor, step: Step, rotations: torch.Tensor, cache: LayerKV
    ) -> None:
        """Add this layer's part to ``hidden`` [T, hidden_size], in place."""
        qkv = self.heads.project(self.input_norm(hidden), rotations)
        cache.write(step.slots, qkv[:, self.heads.shape.query_size :])
        out = self.heads.output(step.attention.run(qkv, cache))
        hidden.add_(out if self.post_attention is None else self.post_attention(out.float()))
        out = self.mlp(self.mlp_norm(hidden))
        hidden.add_(out if self.post_mlp is None else self.post_mlp(out.float()))
