"""What mixes tokens in a layer: the kinds of attention and of states, their projections and what a
sequence keeps of them.

Values are counted per layer. ``kv_values`` grow with every token of the context, ``window_values``
are bounded by a window, ``state_bytes`` do not depend on the length.
"""

from __future__ import annotations

from typing import Literal, Self

import msgspec

STATE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# DSA's indexer keeps fp8 keys with a float32 scale for each 128 of them (DeepSeek-V3.2's inference
# code, and vLLM's indexer cache).
INDEX_KEY_BYTES = 1.0 + 4.0 / 128
# Matrices of states that lead out of them, and down to a rank that all heads share.
STATE_OUT, STATE_RANKS = ("state_out", "mamba_out"), ("state_f_a", "state_g_a")


class Projection(msgspec.Struct, frozen=True, gc=False):
    """A weight matrix ``[inputs, outputs]`` of one layer, ``copies`` times: once for each expert.

    ``part`` is its tensor class (a field of :class:`nexusbench.core.layers.LayerDtypes`).
    """

    name: str
    inputs: int
    outputs: int
    copies: int = 1
    part: Literal["attention", "dense", "experts", "shared", "router"] = "attention"


class _Mixer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every kind answers; one that keeps nothing of a sort answers 0."""

    def projections(self, hidden: int) -> tuple[Projection, ...]:
        """The weight matrices of one layer of ``hidden`` values per token."""
        raise NotImplementedError

    def shard(self, gpus: int) -> Self:
        """One GPU's part of ``gpus`` in tensor parallelism (Megatron layout, 1909.08053): a share
        of the heads; what has no heads is on each of them.
        """
        raise NotImplementedError

    @property
    def kv_values(self) -> float:
        """Values in the KV cache for each token of the context."""
        return 0.0

    @property
    def index_bytes(self) -> float:
        """Bytes of index keys for each token of the context."""
        return 0.0

    @property
    def window_values(self) -> float:
        """Values of a sequence in the KV cache of a window, once that is full."""
        return 0.0

    @property
    def state_bytes(self) -> float:
        """Bytes of a sequence that do not depend on its length."""
        return 0.0

    @property
    def label(self) -> str:
        """What it is, in a few words."""
        raise NotImplementedError


class FullAttention(_Mixer, frozen=True, tag="full", kw_only=True):
    """Grouped-query attention over the whole context (2305.13245).

    ``value_dim`` is the size of a value head (0: that of a key head), ``gate`` the width of the
    projection that gates the output (0: none). ``keys_are_values``: no projection of values, which
    are the keys before they are normalised and rotated. ``shares_kv``: those of an earlier layer;
    nothing is kept. ``wide_norm``: norms over all heads, which the GPUs of a group sum up.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int = 0
    gate: int = 0
    keys_are_values: bool = False
    shares_kv: bool = False
    wide_norm: bool = False

    def shard(self, gpus: int) -> Self:
        """KV heads are on several GPUs each where there are fewer than GPUs."""
        return msgspec.structs.replace(
            self, num_heads=self.num_heads // gpus, gate=-(-self.gate // gpus),
            num_kv_heads=max(1, self.num_kv_heads // gpus),
        )  # fmt: skip

    @property
    def value_size(self) -> int:
        """The size of a value head."""
        return self.value_dim or self.head_dim

    @property
    def token_values(self) -> int:
        """Keys and values of one token."""
        return self.num_kv_heads * (self.head_dim + self.value_size)

    def projections(self, hidden: int) -> tuple[Projection, ...]:
        """Queries, keys and values as one; the output; its gate."""
        keys = 0 if self.shares_kv else self.num_kv_heads * self.head_dim
        once = self.shares_kv or self.keys_are_values
        values = 0 if once else self.num_kv_heads * self.value_size
        made = [
            Projection("qkv", hidden, self.num_heads * self.head_dim + keys + values),
            Projection("attn_out", self.num_heads * self.value_size, hidden),
        ]
        if self.gate:
            made.append(Projection("attn_gate", hidden, self.gate))
        return tuple(made)

    @property
    def kv_values(self) -> float:
        """Keys and values, unless they are those of an earlier layer."""
        return 0.0 if self.shares_kv else float(self.token_values)

    @property
    def label(self) -> str:
        """Heads, KV heads, size of a head."""
        size = str(self.head_dim)
        if self.value_size != self.head_dim:
            size += f"/{self.value_size}"
        shared = ", KV of an earlier layer" if self.shares_kv else ""
        return f"full GQA {self.num_heads}/{self.num_kv_heads} x {size}{shared}"


class WindowAttention(FullAttention, frozen=True, tag="window", kw_only=True):
    """The same over the last ``window`` tokens, or (``chunked``) over the tokens of the same piece
    of ``window`` tokens.
    """

    window: int
    chunked: bool = False

    @property
    def kv_values(self) -> float:
        """Nothing grows without bound."""
        return 0.0

    @property
    def window_values(self) -> float:
        """Keys and values of a full window."""
        return 0.0 if self.shares_kv else float(self.token_values * self.window)

    @property
    def label(self) -> str:
        """As of full attention, and the window."""
        text = super().label.removeprefix("full GQA ")
        return f"{'chunks' if self.chunked else 'window'} of {self.window:,}, GQA {text}"


class LatentAttention(_Mixer, frozen=True, tag="latent", kw_only=True):
    """Multi-head latent attention (DeepSeek-V2, 2405.04434, section 2.1): the cache holds one
    latent of ``kv_rank`` values and one rotated key of ``rope_dim`` for all heads.

    ``q_rank`` is the rank of the queries' projection (0: a single matrix), ``gate`` the width of
    the projection that gates the output (0: none).
    """

    num_heads: int
    q_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    gate: int = 0

    def projections(self, hidden: int) -> tuple[Projection, ...]:
        """Down to the ranks and up from them, and the output."""
        queries = self.num_heads * (self.nope_dim + self.rope_dim)
        made = [Projection("q", hidden, queries)]
        if self.q_rank:
            made = [
                Projection("q_a", hidden, self.q_rank), Projection("q_b", self.q_rank, queries)
            ]  # fmt: skip
        keys = self.num_heads * (self.nope_dim + self.value_dim)
        made += [
            Projection("kv_a", hidden, self.kv_rank + self.rope_dim),
            Projection("kv_b", self.kv_rank, keys),
            Projection("attn_out", self.num_heads * self.value_dim, hidden),
        ]
        if self.gate:
            made.append(Projection("attn_gate", hidden, self.gate))
        return tuple(made)

    def shard(self, gpus: int) -> Self:
        """The projections down to the ranks and the cache, which all heads share, are on each."""
        heads = self.num_heads // gpus
        return msgspec.structs.replace(self, num_heads=heads, gate=-(-self.gate // gpus))

    @property
    def kv_values(self) -> float:
        """The latent and the rotated key."""
        return float(self.kv_rank + self.rope_dim)

    @property
    def label(self) -> str:
        """Heads and what the cache holds."""
        return f"MLA {self.num_heads} heads, latent {self.kv_rank}+{self.rope_dim}"


class SparseAttention(_Mixer, frozen=True, tag="sparse", kw_only=True):
    """Attention over the ``topk`` tokens that an indexer picks, in blocks of ``block`` tokens (DSA,
    DeepSeek-V3.2; MiniMax-M3).

    The indexer has ``index_heads`` queries of ``index_dim`` values, made from ``index_inputs``, and
    one key a token, which has a cache of its own; with ``index_weights`` each head has a weight
    that follows from the token. ``reuses``: the layer has no indexer and takes the tokens that an
    earlier layer picked. ``index_dtype`` is of the cache of keys.
    """

    base: FullAttention | LatentAttention
    topk: int
    index_heads: int
    index_dim: int
    index_inputs: int
    index_weights: bool = True
    block: int = 1
    reuses: bool = False
    index_dtype: Literal["fp8", "bfloat16", "float16", "float32"] = "fp8"

    def projections(self, hidden: int) -> tuple[Projection, ...]:
        """Those of the attention, and the indexer's."""
        made = self.base.projections(hidden)
        if self.reuses:
            return made
        queries = Projection("index_q", self.index_inputs, self.index_heads * self.index_dim)
        made = (*made, queries, Projection("index_k", hidden, self.index_dim))
        if self.index_weights:
            made = (*made, Projection("index_weights", hidden, self.index_heads))
        return made

    def shard(self, gpus: int) -> Self:
        """The indexer of latent attention is on each; that of KV heads goes with them."""
        base, heads = self.base.shard(gpus), self.index_heads
        if isinstance(base, FullAttention):
            heads = max(1, heads // gpus)
        return msgspec.structs.replace(self, base=base, index_heads=heads)

    @property
    def kv_values(self) -> float:
        """As of the attention: what is not picked is kept."""
        return self.base.kv_values

    @property
    def index_bytes(self) -> float:
        """One key of the indexer."""
        each = INDEX_KEY_BYTES if self.index_dtype == "fp8" else STATE_BYTES[self.index_dtype]
        return 0.0 if self.reuses else self.index_dim * each

    @property
    def label(self) -> str:
        """The attention and the indexer."""
        indexer = "the picks of an earlier layer"
        if not self.reuses:
            indexer = f"indexer {self.index_heads} x {self.index_dim}"
        return f"top {self.topk:,} of {self.base.label}, {indexer}"


class CompressedAttention(_Mixer, frozen=True, tag="compressed", kw_only=True):
    """Attention of DeepSeek-V4: one head of keys that are also the values, in full over the last
    ``window`` tokens, and before them one entry for every ``ratio`` tokens (0: none).

    Where ``topk`` is not 0, an indexer of ``index_heads`` x ``index_dim`` picks that many entries,
    and entries are made of two overlapping series. The output goes through ``groups`` matrices down
    to ``out_rank`` each (transformers, models/deepseek_v4).
    """

    num_heads: int
    head_dim: int
    q_rank: int
    groups: int
    out_rank: int
    window: int
    ratio: int = 0
    topk: int = 0
    index_heads: int = 0
    index_dim: int = 0

    def projections(self, hidden: int) -> tuple[Projection, ...]:
        """Queries through their rank, the one key, the grouped output, compressor and indexer."""
        wide = self.num_heads * self.head_dim
        made = [
            Projection("q_a", hidden, self.q_rank),
            Projection("q_b", self.q_rank, wide),
            Projection("kv", hidden, self.head_dim),
            Projection("out_a", wide // self.groups, self.groups * self.out_rank),
            Projection("attn_out", self.groups * self.out_rank, hidden),
        ]
        series = 2 if self.topk else 1
        if self.ratio:
            each = series * self.head_dim
            made += [
                Projection("compress_kv", hidden, each), Projection("compress_gate", hidden, each)
            ]  # fmt: skip
        if self.topk:
            each = series * self.index_dim
            made += [
                Projection("index_kv", hidden, each),
                Projection("index_gate", hidden, each),
                Projection("index_q", self.q_rank, self.index_heads * self.index_dim),
                Projection("index_weights", hidden, self.index_heads),
            ]
        return tuple(made)

    def shard(self, gpus: int) -> Self:
        """Keys, compressor and indexer are on each."""
        heads, groups = self.num_heads // gpus, max(1, self.groups // gpus)
        return msgspec.structs.replace(self, num_heads=heads, groups=groups)

    @property
    def kv_values(self) -> float:
        """A token's share of a compressed entry."""
        return self.head_dim / self.ratio if self.ratio else 0.0

    @property
    def index_bytes(self) -> float:
        """A token's share of the key of an entry."""
        return self.index_dim * INDEX_KEY_BYTES / self.ratio if self.topk else 0.0

    @property
    def window_values(self) -> float:
        """The keys of the window."""
        return float(self.window * self.head_dim)

    @property
    def label(self) -> str:
        """Heads, window and compression."""
        text = f"compressed MQA {self.num_heads} x {self.head_dim}, window {self.window:,}"
        if self.ratio:
            text += f", then 1 entry in {self.ratio} tokens"
        return text + (f", top {self.topk:,} of them" if self.topk else "")


class StateMixer(_Mixer, frozen=True, tag="state", kw_only=True):
    """A recurrent state instead of a KV cache: Mamba2, gated delta net, KDA, lightning attention,
    short convolutions.

    ``heads`` matrices of ``key_dim`` x ``value_dim`` values (0: a convolution alone), and
    ``conv_values`` values that convolutions keep of the last tokens, in ``state_dtype`` and
    ``conv_dtype``.
    """

    kind: str
    heads: int
    key_dim: int
    value_dim: int
    matrices: tuple[Projection, ...]
    conv_values: int = 0
    state_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    conv_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    def projections(self, hidden: int) -> tuple[Projection, ...]:
        """Those of the kind."""
        return self.matrices

    def shard(self, gpus: int) -> Self:
        """Columns of all matrices but those down to a rank, rows of the one that leads out."""
        replace, matrices = msgspec.structs.replace, []
        for one in self.matrices:
            if one.name in STATE_OUT:
                one = replace(one, inputs=one.inputs // gpus)
            elif one.name not in STATE_RANKS:
                one = replace(one, outputs=-(-one.outputs // gpus))
            matrices.append(one)
        heads, kept = self.heads // gpus, -(-self.conv_values // gpus)
        return replace(self, heads=heads, conv_values=kept, matrices=tuple(matrices))

    @property
    def state_bytes(self) -> float:
        """The matrices and what convolutions keep."""
        state = self.heads * self.key_dim * self.value_dim * STATE_BYTES[self.state_dtype]
        return state + self.conv_values * STATE_BYTES[self.conv_dtype]

    @property
    def label(self) -> str:
        """The kind and the size of its state."""
        return f"{self.kind}, state {self.heads} x {self.key_dim} x {self.value_dim}"


Mixer = (
    FullAttention | WindowAttention | LatentAttention | SparseAttention | CompressedAttention
    | StateMixer
)  # fmt: skip
