"""How much memory a run's KV blocks get: on each GPU, and on the host for swapped ones."""

from __future__ import annotations

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.request import Request
from nexusbench.core.specs import ModelSpec
from nexusbench.devices.base import Device
from nexusbench.kv.manager import KVCacheManager
from nexusbench.schedulers.base import Scheduler
from nexusbench.serving.tokens import check_memory, check_room, fillable_blocks
from nexusbench.workloads.base import Trace

DEFAULT_SWAP_GIB = 4.0
# Blocks are kept as Python objects: more take minutes and gigabytes before the first request.
MOST_BLOCKS = 10**9


def swap_gib(config: RunConfig, policy: Scheduler | None, kind: str) -> float:
    """Host memory for swapped KV: as asked, else what the policy counts on, else 4 GiB (vLLM's
    default) if it swaps. Raises UsageError if it was asked of a device that cannot.
    """
    if kind != "sim":
        if config.swap_space:
            raise UsageError(
                f"--swap-space: only simulated devices swap KV to the host, {kind} recomputes. "
                "Leave it out"
            )
        return 0.0
    if config.swap_space is not None or policy is None:
        return config.swap_space or 0.0
    swaps = policy.options.preemption == "swap"
    return policy.swap_gib or (DEFAULT_SWAP_GIB if swaps else 0.0)


def kv_pools(
    config: RunConfig, model: ModelSpec, device: Device, trace: Trace
) -> tuple[KVCacheManager, list[KVCacheManager]]:
    """The KV cache of the (first) GPU, and those of the device's other pools."""
    first, spec = _kv_cache(config, model, device, trace), device.spec
    block_bytes = model.kv_bytes_on(spec.tensor_parallel) * config.block_size
    sizes = [first.num_blocks] * (spec.num_gpus - 1)
    if spec.host is not None:
        sizes.append(int(spec.host_bytes // block_bytes))
    for blocks in sizes:
        _check_count(blocks, config)
    others = [
        KVCacheManager(
            blocks, config.block_size, hash_block=trace.hash_block,
            prefix_caching=config.prefix_caching and number < spec.num_gpus,
        )
        for number, blocks in enumerate(sizes, 1)
    ]  # fmt: skip
    return first, others


def _kv_cache(config: RunConfig, model: ModelSpec, device: Device, trace: Trace) -> KVCacheManager:
    block_bytes = model.kv_bytes_on(device.spec.tensor_parallel) * config.block_size
    blocks = config.kv_blocks or int(device.spec.kv_bytes // block_bytes)
    if device.spec.makes_tokens and config.kv_blocks is None:
        # Real memory costs real time to clear, so what the trace can never fill is left out. Twice
        # what it can: policies look at the share in use (nexus at 70 %), which stays a low one.
        blocks = min(blocks, 2 * fillable_blocks(trace, config.block_size))
    _check_count(blocks, config)
    if device.spec.kind == "cpu":
        check_memory(blocks, config.block_size, block_bytes)
    elif device.spec.makes_tokens:
        check_room(blocks, config.block_size, block_bytes, device.spec.kv_bytes)
    named = any(request.hash_ids for request in trace.requests)
    if named and trace.hash_block % config.block_size:
        raise UsageError(
            f"--block-size {config.block_size} does not divide the trace's hash block of "
            f"{trace.hash_block} tokens; pick one that does"
        )
    return KVCacheManager(
        blocks, config.block_size, hash_block=trace.hash_block, prefix_caching=config.prefix_caching
    )


def _check_count(blocks: int, config: RunConfig) -> None:
    """Raise UsageError for a pool of more blocks than can be kept account of."""
    if blocks > MOST_BLOCKS:
        raise UsageError(
            f"a KV pool of {blocks:,} blocks of {config.block_size} tokens is more than the "
            f"{MOST_BLOCKS:,} that are kept account of. Ask for fewer --kv-blocks (or less "
            "--swap-space), or a larger --block-size"
        )


def check_pool(requests: list[Request], kv: KVCacheManager) -> None:
    """Refuse a pool in which not one request fits; single misfits are rejected and counted by the
    engine.
    """
    if requests and all(kv.blocks_for(r.stop_len) > kv.num_blocks for r in requests):
        least = min(kv.blocks_for(r.stop_len) for r in requests)
        raise UsageError(
            f"a KV pool of {kv.num_blocks} blocks of {kv.block_size} tokens holds no request of "
            f"this trace: the smallest needs {least}. Raise --kv-blocks or "
            "--gpu-memory-utilization, or pick a larger GPU"
        )
