"""How much work a batch is: FLOPs and bytes per operator. Facts of the model, shared by belief and
truth.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.layers import DenseMlp, ExpertsMlp, LayerGroup
from nexusbench.core.mixer_work import MIXER_WORK, Amounts, MixerWork
from nexusbench.core.mixer_work import chunk_work as chunk_work
from nexusbench.core.mixer_work import prefill_pairs as prefill_pairs
from nexusbench.core.mixers import Mixer
from nexusbench.core.specs import DTYPE_BYTES, Linear, ModelSpec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
# A dense layer in all its copies: FLOPs a token, bytes of weights, bytes of activations a token.
DenseWork = tuple[float, float, float]
# Matrices of feed-forward parts that are on each GPU.
_WHOLE = ("router", "latent_down", "latent_up")


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Work counts of a model, and the limits of the device it ran on.

    FLOPs of one token in the dense layers, of one row of the output head, and of one (query, key)
    pair in all layers; bytes of those layers' and the head's weights, and of a token's keys and
    values. ``peak_flops`` and ``peak_bytes`` are per second.
    """

    token_flops: Amount
    head_flops: Amount
    pair_flops: Amount
    weight_bytes: Amount
    head_bytes: Amount
    kv_bytes: Amount
    peak_flops: Amount
    peak_bytes: Amount


class HostGap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a partition went from a launch to the next that was waiting, and the ns in between.

    Measured on the device: from the end of one to the begin of the other.
    """

    count: Count
    total_ns: Count
    longest_ns: Count


class ModelWork(msgspec.Struct, frozen=True, gc=False):
    """Per-model constants of the work counts, per GPU of a tensor-parallel group.

    ``linears`` are this GPU's shards. ``fixed`` is the work of those that every token uses,
    ``routed`` of the experts, whose weights are those of one expert in each layer: a token
    computes in ``experts_per_token`` of ``num_experts``. ``mixer`` is this GPU's part of what mixes
    tokens. Of a model with several layer groups ``groups`` holds the work of each, and ``mixer`` is
    None. ``mixing`` holds each kind's work in a layer, and how many layers are of it.
    """

    linears: tuple[Linear, ...]
    fixed: tuple[DenseWork, ...]
    routed: tuple[DenseWork, ...]
    num_experts: int
    experts_per_token: int
    head: Linear
    num_layers: int
    hidden_size: int
    weight_bytes_each: float
    head_bytes_each: float
    activation_bytes: float
    kv_bytes_each: float  # of a value in the KV cache
    mixer: Mixer | None
    mixing: tuple[tuple[MixerWork, int], ...]
    wide: float  # values between the two feed-forward products of a token, this GPU's share
    gated: bool = True
    groups: tuple[ModelWork, ...] = ()

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes that a token adds to the KV cache, all layers."""
        size = 0.0
        for work, layers in self.mixing:
            size += work.token_bytes * layers
        return size

    def chunk_attention(self, chunks: tuple[tuple[int, int], ...]) -> Amounts:
        """(FLOPs, bytes) of the attention of ``chunks``, all layers."""
        flops = size = 0.0
        for work, layers in self.mixing if chunks else ():
            count, moved = work.chunks(chunks)
            flops, size = flops + count * layers, size + moved * layers
        return flops, size

    def decode_attention(self, count: int, context: int) -> Amounts:
        """The same of ``count`` decodes that read ``context`` keys in all, their own included."""
        flops = size = 0.0
        for work, layers in self.mixing if count else ():
            made, moved = work.decodes(count, context)
            flops, size = flops + made * layers, size + moved * layers
        return flops, size

    def dense_work(self, tokens: float) -> list[tuple[float, float]]:
        """(FLOPs, bytes) of each dense layer of the decoder stack for ``tokens`` tokens."""
        if self.groups:
            return [each for group in self.groups for each in group.dense_work(tokens)]
        made = [(flops * tokens, weights + each * tokens) for flops, weights, each in self.fixed]
        if self.routed:
            touched = self.experts_touched(int(tokens))
            for flops, weights, each in self.routed:
                made.append((flops * tokens, weights * touched + each * tokens))
        return made

    def experts_touched(self, tokens: int) -> float:
        """How many experts of a layer ``tokens`` tokens are expected to read, if each chooses its
        ``experts_per_token`` at random: E (1 - (1 - k/E)^tokens).
        """
        missed, factor = 1.0, 1.0 - self.experts_per_token / self.num_experts
        while tokens:  # by squares: the same bits on every machine, unlike a power
            if tokens & 1:
                missed *= factor
            factor *= factor
            tokens >>= 1
        return self.num_experts * (1.0 - missed)


def model_work(model: ModelSpec, tensor_parallel: int = 1) -> ModelWork:
    """The work constants of ``model`` sharded ``tensor_parallel`` ways (Megatron layout,
    1909.08053).

    Gate/up and the head are split by columns, down by rows, attention by heads. Only for layers
    whose mixer is in MIXER_WORK, or that have none; the caller has refused others.
    """
    made = tuple(_group_work(model, group, tensor_parallel) for group in model.groups)
    if len(made) == 1:
        return made[0]
    mixing: dict[MixerWork, int] = {}
    for group in made:
        for work, layers in group.mixing:
            mixing[work] = mixing.get(work, 0) + layers
    return msgspec.structs.replace(
        made[0],
        linears=tuple(linear for group in made for linear in group.linears),
        fixed=tuple(each for group in made for each in group.fixed),
        routed=tuple(each for group in made for each in group.routed),
        num_layers=model.num_layers,
        mixer=None,
        mixing=tuple(mixing.items()),
        groups=made,
    )


def shard_linears(model: ModelSpec, group: LayerGroup, tensor_parallel: int) -> tuple[Linear, ...]:
    """One GPU's part of the linears of ``group``, in their order: what is not divided is whole."""
    mixer = None if group.mixer is None else group.mixer.shard(tensor_parallel)
    return _shards(model, msgspec.structs.replace(group, mixer=mixer), tensor_parallel, 0.0)[0]


def _group_work(model: ModelSpec, group: LayerGroup, tp: int) -> ModelWork:
    """The same of one layer group, its layers alone."""
    mixer = None if group.mixer is None else group.mixer.shard(tp)
    group = msgspec.structs.replace(group, mixer=mixer)
    experts, chosen, gated = 1, 1, True
    if isinstance(group.mlp, ExpertsMlp):
        experts, chosen = group.mlp.num_experts, group.mlp.experts_per_token
    if isinstance(group.mlp, ExpertsMlp | DenseMlp):
        gated = group.mlp.gated
    activation, kv = DTYPE_BYTES[model.dtypes.activations], DTYPE_BYTES[model.dtypes.kv]
    linears, fixed, routed = _shards(model, group, tp, activation)
    mixing: tuple[tuple[MixerWork, int], ...] = ()
    if mixer is not None:
        mixing = ((MIXER_WORK[type(mixer)](mixer, kv, activation), group.count),)
    return ModelWork(
        linears=linears,
        fixed=fixed,
        routed=routed,
        num_experts=experts,
        experts_per_token=chosen,
        head=Linear("lm_head", model.hidden_size, -(-model.vocab_size // tp), 1),
        num_layers=group.count,
        hidden_size=model.hidden_size,
        weight_bytes_each=DTYPE_BYTES[model.dtypes.weights],
        head_bytes_each=DTYPE_BYTES[model.head_dtype],
        activation_bytes=activation,
        kv_bytes_each=kv,
        mixer=mixer,
        mixing=mixing,
        wide=group.wide / tp,
        gated=gated,
    )


def _shards(
    model: ModelSpec, group: LayerGroup, tp: int, activation: float
) -> tuple[tuple[Linear, ...], tuple[DenseWork, ...], tuple[DenseWork, ...]]:
    """One GPU's shards of the linears of ``group``, whose mixer is this GPU's already; the work of
    those that every token uses, and of the routed experts. Matrices beside attention and
    feed-forward part are small, and on each GPU.
    """
    experts, chosen = 1, 1
    if isinstance(group.mlp, ExpertsMlp):
        experts, chosen = group.mlp.num_experts, group.mlp.experts_per_token
    of_mixer = 0 if group.mixer is None else len(group.mixer.projections(model.hidden_size))
    linears: list[Linear] = []
    fixed: list[DenseWork] = []
    routed: list[DenseWork] = []
    made = group.linears(model.hidden_size)
    beside = len(made) - len(group.others)
    for index, linear in enumerate(made):
        inputs, outputs, count = linear.inputs, linear.outputs, linear.count
        if linear.name in ("down", "expert_down"):
            inputs //= tp
        elif of_mixer <= index < beside and linear.name not in _WHOLE:
            outputs = -(-outputs // tp)
        linears.append(msgspec.structs.replace(linear, inputs=inputs, outputs=outputs))
        of_expert = linear.name.startswith("expert")
        used = count // experts * chosen if of_expert else count  # products that a token needs
        read = count // experts if of_expert else count
        (routed if of_expert else fixed).append(
            (
                2.0 * inputs * outputs * used,
                inputs * outputs * read * linear.bytes_each,
                (inputs + outputs) * used * activation,
            )
        )
    return tuple(linears), tuple(fixed), tuple(routed)


def equivalent_context(tokens: int, pairs: float) -> float:
    """Context of the one chunk of ``tokens`` tokens that has as many pairs.

    Negative where several short chunks have fewer pairs than one chunk without any context.
    """
    return pairs / tokens - (tokens + 1) / 2


def portion(shape: BatchShape, num_layers: int) -> float:
    """How many whole passes through the model a launch is: its share of layers, times repeats."""
    if shape.layers is None:
        return float(shape.repeat)
    return shape.repeat * (shape.layers[1] - shape.layers[0]) / num_layers
