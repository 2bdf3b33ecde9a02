"""How much work a batch is: FLOPs and bytes per operator. Facts of the model, shared by belief and
truth.
"""

from __future__ import annotations

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.specs import DTYPE_BYTES, Linear, ModelSpec


class ModelWork(msgspec.Struct, frozen=True, gc=False):
    """Per-model constants of the work counts, per GPU of a tensor-parallel group.

    ``linears`` are this GPU's shards; an expert layer's ``share`` of the tokens is
    experts_per_token/num_experts.
    """

    linears: tuple[Linear, ...]
    token_share: tuple[float, ...]
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


def model_work(model: ModelSpec, tensor_parallel: int = 1) -> ModelWork:
    """The work constants of ``model`` sharded ``tensor_parallel`` ways (Megatron layout,
    1909.08053).

    QKV, gate/up and the head are split by columns, attention output and down by rows; KV heads are
    replicated where there are fewer than GPUs.
    """
    tp = tensor_parallel
    linears, shares = [], []
    for linear in model.linears:
        inputs, outputs = linear.inputs, linear.outputs
        if linear.name in ("attn_out", "down", "expert_down"):
            inputs //= tp
        elif linear.name != "router":
            outputs = -(-outputs // tp)
        linears.append(Linear(linear.name, inputs, outputs, linear.count))
        moe = model.moe
        routed = moe is not None and linear.name.startswith("expert")
        shares.append(
            (moe.experts_per_token + moe.num_shared_experts)
            / (moe.num_experts + moe.num_shared_experts)
            if routed and moe is not None
            else 1.0
        )
    heads, kv_heads = model.num_heads // tp, max(1, model.num_kv_heads // tp)
    activation = DTYPE_BYTES[model.dtypes.activations]
    return ModelWork(
        linears=tuple(linears),
        token_share=tuple(shares),
        head=Linear("lm_head", model.hidden_size, -(-model.vocab_size // tp), 1),
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        weight_bytes_each=DTYPE_BYTES[model.dtypes.weights],
        head_bytes_each=DTYPE_BYTES[model.dtypes.embeddings],
        activation_bytes=activation,
        kv_bytes_per_token=(
            2 * model.num_layers * kv_heads * model.head_dim * DTYPE_BYTES[model.dtypes.kv]
        ),
        attention_flops=4.0 * heads * model.head_dim,
        query_bytes_per_token=2 * heads * model.head_dim * activation,
        num_heads=heads,
        num_kv_heads=kv_heads,
    )


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
