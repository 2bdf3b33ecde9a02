"""How much work a batch is: FLOPs and bytes per operator. Facts of the model, shared by belief and
truth.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.layers import DenseMlp, ExpertsMlp, LayerGroup
from nexusbench.core.mixers import FullAttention
from nexusbench.core.specs import DTYPE_BYTES, Linear, ModelSpec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
# A dense layer in all its copies: FLOPs a token, bytes of weights, bytes of activations a token.
DenseWork = tuple[float, float, float]


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
    computes in ``experts_per_token`` of ``num_experts``. Of a model with several layer groups
    ``groups`` holds the work of each, and what is of one layer is the mean over all.
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
    kv_bytes_per_token: float  # all layers
    attention_flops: float  # per (query, key) pair: 4 x query heads x head size, one layer
    query_bytes_per_token: float  # reading Q and writing the attention output, one layer
    num_heads: int
    num_kv_heads: int
    head_dim: int
    wide: float  # values between the two feed-forward products of a token, this GPU's share
    gated: bool = True
    groups: tuple[ModelWork, ...] = ()

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

    QKV, gate/up and the head are split by columns, attention output and down by rows; KV heads are
    replicated where there are fewer than GPUs. Layers without attention have no heads. Only for
    layers of full attention, or none; the caller has refused others.
    """
    made = tuple(_group_work(model, group, tensor_parallel) for group in model.groups)
    if len(made) == 1:
        return made[0]
    layers, first = model.num_layers, made[0]
    kept = flops = queries = 0.0
    for group in made:
        kept += group.kv_bytes_per_token
        flops += group.attention_flops * group.num_layers
        queries += group.query_bytes_per_token * group.num_layers
    return msgspec.structs.replace(
        first,
        linears=tuple(linear for group in made for linear in group.linears),
        fixed=tuple(each for group in made for each in group.fixed),
        routed=tuple(each for group in made for each in group.routed),
        num_layers=layers,
        kv_bytes_per_token=kept,
        attention_flops=flops / layers,
        query_bytes_per_token=queries / layers,
        groups=made,
    )


def _group_work(model: ModelSpec, group: LayerGroup, tp: int) -> ModelWork:
    """The same of one layer group, its layers alone."""
    mixer = group.mixer
    assert mixer is None or isinstance(mixer, FullAttention)
    heads = kv_heads = head_dim = 0
    if mixer is not None:
        heads, kv_heads = mixer.num_heads // tp, max(1, mixer.num_kv_heads // tp)
        head_dim = mixer.head_dim
    experts, chosen, gated = 1, 1, True
    if isinstance(group.mlp, ExpertsMlp):
        experts, chosen = group.mlp.num_experts, group.mlp.experts_per_token
    if isinstance(group.mlp, ExpertsMlp | DenseMlp):
        gated = group.mlp.gated
    activation = DTYPE_BYTES[model.dtypes.activations]
    linears, fixed, routed = _shards(model, group, tp, activation)
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
        kv_bytes_per_token=(2 * group.count * kv_heads * head_dim * DTYPE_BYTES[model.dtypes.kv]),
        attention_flops=4.0 * heads * head_dim,
        query_bytes_per_token=2 * heads * head_dim * activation,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        wide=group.wide / tp,
        gated=gated,
    )


def _shards(
    model: ModelSpec, group: LayerGroup, tp: int, activation: float
) -> tuple[tuple[Linear, ...], tuple[DenseWork, ...], tuple[DenseWork, ...]]:
    """One GPU's shards of the group's linears; the work of those that every token uses, and of the
    routed experts.
    """
    experts, chosen = 1, 1
    if isinstance(group.mlp, ExpertsMlp):
        experts, chosen = group.mlp.num_experts, group.mlp.experts_per_token
    linears: list[Linear] = []
    fixed: list[DenseWork] = []
    routed: list[DenseWork] = []
    for linear in group.linears(model.hidden_size):
        inputs, outputs, count = linear.inputs, linear.outputs, linear.count
        if linear.name in ("attn_out", "down", "expert_down"):
            inputs //= tp
        elif linear.name == "qkv":
            outputs = _qkv(group, tp)
        elif linear.name not in ("router", "latent_down", "latent_up"):
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


def _qkv(group: LayerGroup, tp: int) -> int:
    """Columns of the projection to queries, keys and values on one GPU."""
    mixer = group.mixer
    assert isinstance(mixer, FullAttention)
    kept = 1 if mixer.keys_are_values else 2
    return (mixer.num_heads // tp + kept * max(1, mixer.num_kv_heads // tp)) * mixer.head_dim


def prefill_pairs(num_tokens: int, context: int) -> float:
    """(query, key) pairs of ``num_tokens`` causal queries after ``context`` tokens."""
    return num_tokens * (context + (num_tokens + 1) / 2)


def chunk_work(chunks: tuple[tuple[int, int], ...]) -> tuple[int, float]:
    """(tokens, (query, key) pairs) of all chunks together."""
    tokens, pairs = 0, 0.0
    for count, before in chunks:
        tokens += count
        pairs += prefill_pairs(count, before)
    return tokens, pairs


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
