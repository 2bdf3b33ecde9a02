"""What a run on a device that computes needs beyond one that only keeps time: prompts, data type,
a pool that the trace can fill, limits for MFU and MBU.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nexusbench.core.batch import Split
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.machine import require_memory
from nexusbench.core.request import Request
from nexusbench.core.specs import DTYPE_BYTES, Dtypes, ModelSpec
from nexusbench.core.units import ceil_div
from nexusbench.core.work import Work, model_work
from nexusbench.devices.base import Device, Serving
from nexusbench.kv.manager import KVCacheManager
from nexusbench.workloads.base import Trace

# Flags that say how tokens are made; a simulation makes none.
_FLAGS = {
    "load_format": "--load-format",
    "dtype": "--dtype",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "stop_at_eos": "--stop-at-eos",
}
COMPUTED_DTYPES = ("float32", "bfloat16", "float16")


def check_flags(config: RunConfig, kind: str) -> None:
    """Raise UsageError for a flag about tokens on a device that makes none, or about CUDA graphs on
    one that has none.
    """
    simulated = kind == "sim"
    if not config.graphs and kind != "cuda":
        raise UsageError(
            f"--no-graphs is for --device cuda, which decodes by CUDA graphs; {kind} has none. "
            "Leave it out"
        )
    defaults = RunConfig(trace="")
    for name, flag in _FLAGS.items():
        if simulated and getattr(config, name) != getattr(defaults, name):
            raise UsageError(
                f"{flag} is for devices that compute tokens: use --device cpu or cuda, or "
                "leave it out"
            )


def check_memory(num_blocks: int, block_size: int, block_bytes: float) -> None:
    """Raise UsageError if a pool of real KV blocks does not fit into memory."""
    pool = f"a KV cache of {num_blocks:,} blocks of {block_size} tokens"
    require_memory(num_blocks * block_bytes, pool, "Ask for fewer --kv-blocks")


def check_room(num_blocks: int, block_size: int, block_bytes: float, kv_bytes: float) -> None:
    """Raise UsageError if a pool of real KV blocks exceeds what a GPU has left for them."""
    if num_blocks * block_bytes > kv_bytes:
        raise UsageError(
            f"a KV cache of {num_blocks:,} blocks of {block_size} tokens needs "
            f"{num_blocks * block_bytes / 1e9:.1f} GB, and the GPU has {kv_bytes / 1e9:.1f} GB "
            "left for it. Ask for fewer --kv-blocks"
        )


def with_dtype(model: ModelSpec, dtype: str | None) -> ModelSpec:
    """``model`` in another data type. Raises UsageError for one that is not computed in."""
    if dtype is None:
        return model
    if dtype not in COMPUTED_DTYPES:
        raise UsageError(f"--dtype {dtype} is unknown. Known: {', '.join(COMPUTED_DTYPES)}")
    return msgspec.structs.replace(model, dtypes=Dtypes(dtype, dtype, dtype, dtype))


def fillable_blocks(trace: Trace, block_size: int) -> int:
    """KV blocks that all requests would hold at once, with one more each for launches of several
    decode steps.
    """
    sizes = [request.prompt_tokens + request.output_tokens for request in trace.requests]
    return sum(ceil_div(size, block_size) + 1 for size in sizes)


def forget_answers(requests: list[Request], trace: Trace) -> None:
    """A trace's later turns hold the answers that were given when it was recorded; a device that
    makes tokens gives others, so only prompts can be shared.
    """
    if any(request.named_tokens > request.num_prompt_tokens for request in requests):
        trace.notes.append("prefix reuse of prompts only: the trace's own answers are not made")
    for request in requests:
        request.named_tokens = 0


def serving_of(
    config: RunConfig,
    model: ModelSpec,
    trace: Trace,
    kv: KVCacheManager,
    partitions: tuple[str, ...],
    initial: Split,
    num_sms: int,
) -> Serving:
    """What the device must know of this run. Raises InputError for a token the model has not."""
    prompts = {i: r.token_ids for i, r in enumerate(trace.requests) if r.token_ids}
    for index, tokens in prompts.items():
        request = trace.requests[index]
        if max(tokens) >= model.vocab_size:
            raise InputError(
                f"token {max(tokens)} of request '{request.id}' is not in the vocabulary of "
                f"{model.name}, {model.vocab_size:,} tokens",
                file=config.trace,
                line=request.line or None,
                field="token_ids",
                hint="The trace was made with another tokenizer; serve the model it belongs to",
            )
    shares = [(name, initial.of(name)) for name in partitions if name in initial.partitions]
    launches = dict.fromkeys([*shares, *((name, num_sms) for name in partitions)])
    return Serving(
        kv.num_blocks, kv.block_size, trace.hash_block, prompts, config.seed, tuple(launches)
    )


def work_of(model: ModelSpec, device: Device) -> dict[str, Any] | None:
    """Work counts and measured limits for MFU and MBU; None for a simulation."""
    if device.spec.simulated:
        return None
    counts = model_work(model)
    weights = sum(linear.inputs * linear.outputs * linear.count for linear in counts.linears)
    head = counts.head.inputs * counts.head.outputs
    work = Work(
        token_flops=2.0 * weights,
        head_flops=2.0 * head,
        pair_flops=counts.attention_flops * counts.num_layers,
        weight_bytes=weights * counts.weight_bytes_each,
        head_bytes=head * DTYPE_BYTES[model.dtypes.embeddings],
        kv_bytes=counts.kv_bytes_per_token,
        peak_flops=device.gpu.peak_tflops * 1e12,
        peak_bytes=device.gpu.hbm_gbps * 1e9,
    )
    facts: dict[str, Any] = msgspec.to_builtins(work)
    return facts
