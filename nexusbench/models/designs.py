"""How a layer is computed: what a decoder needs beyond the sizes of core/mixers.py and
core/layers.py, and what its tensors are called. No torch here.
"""

from __future__ import annotations

import msgspec

from nexusbench.kernels.gates import Gate
from nexusbench.kernels.ropes import Rope
from nexusbench.kernels.routing import Routing


class GroupedDesign(msgspec.Struct, frozen=True, kw_only=True):
    """Grouped-query attention: products of queries and keys times ``scale``, over the last
    ``window`` tokens (0: all), held within ``soft_cap`` (0: not), with a score of each head that
    has no value (``sinks``).

    The first ``rotary_dim`` values of a head are rotated. ``fused``: queries, keys and values are
    one tensor, ``qkv_proj``.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: Rope
    rotary_dim: int
    window: int = 0
    soft_cap: float = 0.0
    sinks: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    fused: bool = False


class LatentDesign(msgspec.Struct, frozen=True, kw_only=True):
    """Multi-head latent attention (DeepSeek-V2, 2405.04434, section 2.1); sizes as of
    :class:`nexusbench.core.mixers.LatentAttention`.

    ``neighbours``: the checkpoint has rotary pairs next to one another; else a pair's values are
    half of ``rope_dim`` apart. ``norm_eps`` is of the norms of both latents.
    """

    num_heads: int
    q_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    scale: float
    rope: Rope
    neighbours: bool
    norm_eps: float
    bias: bool = False


class DenseDesign(msgspec.Struct, frozen=True, kw_only=True):
    """A gated feed-forward part; ``fused``: gate and up projection are one tensor."""

    size: int
    gate: Gate = Gate()
    bias: bool = False
    fused: bool = False


class ExpertsDesign(msgspec.Struct, frozen=True, kw_only=True):
    """Routed experts in ``module``, and what every token uses: ``shared_size`` in ``shared``, with
    a sigmoid of its own (``shared_gate``).

    ``matrices`` are the names of an expert's gate, up and down projections. With ``stacked`` those
    of all experts are one tensor each, inputs first, gate and up in turns (gpt-oss). ``bias``: all
    of them and the router have biases.
    """

    num_experts: int
    size: int
    routing: Routing
    gate: Gate = Gate()
    module: str = "mlp"
    router: str = "gate"
    matrices: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    stacked: bool = False
    bias: bool = False
    shared_size: int = 0
    shared: str = "shared_experts"
    shared_gate: bool = False


class LayerDesign(msgspec.Struct, frozen=True, kw_only=True):
    """One layer. ``sandwiched``: what attention and feed-forward part give is normed, too, before
    it is added (Gemma 2).
    """

    attention: GroupedDesign | LatentDesign
    mlp: DenseDesign | ExpertsDesign
    sandwiched: bool = False

    @property
    def ordinary(self) -> bool:
        """Full attention and SwiGLU as in Llama and Qwen, whatever the tensors are called."""
        attention, mlp = self.attention, self.mlp
        if self.sandwiched or not isinstance(attention, GroupedDesign):
            return False
        if not isinstance(mlp, DenseDesign) or mlp.gate.kind != "silu":
            return False
        return attention.rotary_dim == attention.head_dim and plain_scores(attention)


def plain_scores(attention: GroupedDesign | LatentDesign) -> bool:
    """Whether scores are those of full grouped-query attention."""
    if isinstance(attention, LatentDesign):
        return False
    usual = 1 / attention.head_dim**0.5
    unlike = attention.window or attention.soft_cap or attention.sinks
    return not unlike and abs(attention.scale - usual) <= 1e-12 * usual


class Edges(msgspec.Struct, frozen=True, kw_only=True):
    """What a decoder does before its layers, after them, and in every norm.

    Embeddings are multiplied by ``embedding_scale``, logits held within ``logit_cap`` (0: not);
    norms multiply by 1 + their weight with ``unit_offset``.
    """

    embedding_scale: float = 1.0
    logit_cap: float = 0.0
    unit_offset: bool = False
