"""The device of a run, opened; the KV pools that its memory holds; and checks ahead of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from nexusbench.core.config import RunConfig, check_config, fields_of
from nexusbench.core.errors import UsageError
from nexusbench.core.kv_layout import KvGroup, KvLayout, KvPages, kv_layout
from nexusbench.core.machine import require_memory
from nexusbench.core.options import declared
from nexusbench.core.request import Request
from nexusbench.core.specs import ModelSpec
from nexusbench.core.state import Limits
from nexusbench.core.units import ceil_div
from nexusbench.devices.base import Device, DeviceOptions
from nexusbench.kv.grouped import kv_cache
from nexusbench.kv.manager import KVCacheManager
from nexusbench.models.precision import AUTO
from nexusbench.physics.host import load_engine
from nexusbench.schedulers.base import Scheduler
from nexusbench.serving.belief import check_closed, make_belief, make_partitioner
from nexusbench.serving.resolve import ModelOnDevice, model_on_device, resolve, said_of
from nexusbench.workloads.base import Trace

if TYPE_CHECKING:
    from nexusbench.profiling.profile import Subject

# Blocks are kept as Python objects: more take minutes and gigabytes before the first request.
MOST_BLOCKS = 10**9
MOST_PAGES = 2**53  # pages are only counted; a float holds each number up to here
# Which requests arrive when, and what an hour costs: nothing that :func:`check_run` looks at.
_TRAFFIC = {"trace": ""} | {
    name: declared(RunConfig)[name].default
    for name in (*fields_of("load"), "price_per_hour", "watts", "seed")
}


def open_device(what: ModelOnDevice, *, profiling: bool = False) -> tuple[Device, Limits]:
    """The device, and the step budgets that follow from it (vLLM's API-server defaults).

    ``profiling``: with times by operator class and exact totals where it has them. Raises
    UsageError or InputError for what cannot be opened.
    """
    config, named = what.config, what.named
    # Large-memory GPUs other than the A100 get vLLM's larger defaults (arg_utils, V1); see
    # docs/decisions/0004.
    gpu = named.describe()
    large = gpu.hbm_gib >= 70 and "a100" not in gpu.name.lower()
    limits = Limits(
        config.max_num_seqs or (1024 if large else 256),
        config.max_num_batched_tokens or (8192 if large else 2048),
        what.max_model_len,
        config.goodput.get("ttft"),
        config.goodput.get("tbt") or config.goodput.get("tpot"),
    )
    options = DeviceOptions(
        limits.max_num_seqs, limits.max_num_batched_tokens, config.gpu_memory_utilization,
        config.tensor_parallel_size, config.seed, config.kernel_table, profiling,
        model_name=config.model, load_format=config.load_format,
        dtype=None if config.dtype == AUTO else config.dtype,
        temperature=config.temperature, top_p=config.top_p,
        swap_bytes=what.swap_bytes, graphs=config.graphs,
        host=None if config.engine is None else load_engine(config.engine),
        data_parallel=config.data_parallel_size, expert_parallel=config.enable_expert_parallel,
        pipeline_parallel=config.pipeline_parallel_size,
    )  # fmt: skip
    device = named.device_class.open(named.argument, what.model, options)
    longest = device.spec.longest_context
    if longest and limits.max_model_len > longest:
        device.close()
        raise UsageError(
            f"{device.spec.name} computes contexts of {what.model.name} up to {longest:,} tokens, "
            f"not {limits.max_model_len:,}: beyond them its LongRoPE has other frequencies from "
            f"the first token on. Give --max-model-len {longest}"
        )
    return device, limits


def open_subject(config: RunConfig, model: ModelSpec | None = None) -> Subject:
    """The device and model of ``config`` (or that ``model``), open to be profiled; the caller
    closes the device. Raises UsageError or InputError.
    """
    from nexusbench.profiles.profile import DeviceAsked
    from nexusbench.profiling.profile import Subject

    what = model_on_device(config, model)
    device, limits = open_device(what, profiling=True)
    asked = DeviceAsked(
        what.named.spec, config.kernel_table, config.gpu_memory_utilization, config.engine
    )
    said = tuple(said_of(what, device.gpu))
    return Subject(device, what.model, limits, config.block_size, asked, said)


def check_gpus(scheduler: Scheduler, device: Device) -> None:
    """Raise UsageError if the policy runs on another number of GPUs than the device has."""
    found, name = device.spec.num_gpus, device.spec.name
    if scheduler.num_gpus == found:
        return
    if found == 1:
        raise UsageError(
            f"scheduler '{scheduler.name}' needs {scheduler.num_gpus} GPUs, {name} is one. "
            "Use a simulated pair, such as --device sim:l20+l20"
        )
    one = name.partition("+")[0]
    raise UsageError(
        f"scheduler '{scheduler.name}' runs on one GPU, {name} has {found}. Use --device {one}, or "
        f"--device {one} --tensor-parallel-size {found}"
    )


def kv_pools(
    config: RunConfig, model: ModelSpec, device: Device, trace: Trace
) -> tuple[KVCacheManager, list[KVCacheManager]]:
    """The KV cache of the (first) GPU, and those of the device's other pools. Raises UsageError
    for sizes that no memory holds.
    """
    spec, block_size = device.spec, config.block_size
    sizes = kv_pages(config, model, device)
    block_bytes = sizes.page_bytes
    blocks = config.kv_blocks or int(spec.kv_bytes // block_bytes)
    if spec.makes_tokens and config.kv_blocks is None:
        # Real memory costs real time to clear, so what the trace can never fill is left out. Twice
        # what it can: policies look at the share in use (nexus at 70 %), which stays a low one.
        blocks = min(blocks, 2 * fillable_blocks(trace, block_size))
    counts = [blocks] * spec.num_gpus
    if spec.host is not None:
        counts.append(int(spec.host_bytes // block_bytes))
    most = MOST_BLOCKS if sizes.is_uniform else MOST_PAGES
    if max(counts) > most:
        what = f"blocks of {block_size} tokens" if sizes.is_uniform else "pages"
        raise UsageError(
            f"a KV pool of {max(counts):,} {what} is more than the "
            f"{most:,} that are kept account of. Ask for fewer --kv-blocks (or less "
            "--swap-space), or a larger --block-size"
        )
    if spec.kind == "cpu":
        pool = f"a KV cache of {blocks:,} blocks of {block_size} tokens"
        require_memory(blocks * block_bytes, pool, "Ask for fewer --kv-blocks")
    elif spec.makes_tokens:
        check_room(blocks, block_size, block_bytes, spec.kv_bytes)
    if trace.hash_block % block_size and any(request.hash_ids for request in trace.requests):
        raise UsageError(
            f"--block-size {block_size} does not divide the trace's hash block of "
            f"{trace.hash_block} tokens; pick one that does"
        )
    first, *others = make_pools(
        counts, spec.num_gpus, sizes, trace.hash_block, config.prefix_caching
    )
    return first, others


def kv_pages(config: RunConfig, model: ModelSpec, device: Device) -> KvPages:
    """What the blocks of ``model`` are on ``device``. Raises UsageError for one without any."""
    spec = device.spec
    if spec.kv_token_bytes:
        layout = KvLayout((KvGroup("full", spec.kv_token_bytes),))
    else:
        layout = kv_layout(model, spec.tensor_parallel, frees_windows=spec.frees_windows)
    return layout.paged(config.block_size)


def make_pools(
    counts: Sequence[int], num_gpus: int, sizes: KvPages, hash_block: int, prefix_caching: bool
) -> list[KVCacheManager]:
    """A KV pool of each count of blocks: one per GPU, then the host's, which caches no prefixes."""
    return [
        kv_cache(
            blocks, sizes, hash_block=hash_block,
            prefix_caching=prefix_caching and number < num_gpus,
        )
        for number, blocks in enumerate(counts)
    ]  # fmt: skip


def fillable_blocks(trace: Trace, block_size: int) -> int:
    """KV blocks that all requests would hold at once, with one more each for launches of several
    decode steps.
    """
    sizes = [request.prompt_tokens + request.output_tokens for request in trace.requests]
    return sum(ceil_div(size, block_size) + 1 for size in sizes)


def check_room(num_blocks: int, block_size: int, block_bytes: float, kv_bytes: float) -> None:
    """Raise UsageError if a pool of real KV blocks exceeds what a GPU has left for them."""
    if num_blocks * block_bytes > kv_bytes:
        raise UsageError(
            f"a KV cache of {num_blocks:,} blocks of {block_size} tokens needs "
            f"{num_blocks * block_bytes / 1e9:.1f} GB, and the GPU has {kv_bytes / 1e9:.1f} GB "
            "left for it. Ask for fewer --kv-blocks"
        )


def check_pool(requests: list[Request], kv: KVCacheManager, step: int) -> None:
    """Refuse a pool in which not one request fits that is computed ``step`` tokens at a time;
    single misfits are rejected and counted by the engine.
    """
    least = min([kv.most_blocks(r.stop_len, step) for r in requests], default=0)
    if least > kv.num_blocks:
        what = f"{kv.num_blocks} blocks of {kv.block_size} tokens"
        if not kv.uniform:
            what = f"{kv.num_blocks} pages, which the blocks of all groups of layers share,"
        raise UsageError(
            f"a KV pool of {what} holds no request of "
            f"this trace: the smallest needs {least}. Raise --kv-blocks or "
            "--gpu-memory-utilization, or pick a larger GPU"
        )


def decisive(config: RunConfig) -> bytes:
    """What :func:`check_run` looks at: configs that agree in it need one check."""
    return msgspec.json.encode(msgspec.structs.replace(config, **_TRAFFIC))


def check_runs(configs: Iterable[RunConfig]) -> None:
    """:func:`check_run` for each, where they differ at all: a single run is checked as it is
    assembled.
    """
    every = list(configs)
    if len(every) > 1:
        different = {decisive(check_config(config)): config for config in every}
        for config in different.values() if len(different) > 1 else ():
            check_run(config)


def check_run(config: RunConfig) -> None:
    """Raise what assembling ``config`` would for anything but its trace: the policies, their
    options, the belief and its profile, the device.

    A simulated device is opened for it, which takes milliseconds. Of a real one, which takes long
    and exists once, only what needs no opening is checked. An input that is wrong by itself is an
    InputError, what does not go together another UsageError.
    """
    run = resolve(config)
    if run.named.kind != "sim":
        if run.needs_belief:
            check_closed(run.config, run.model)
        return
    with closing(open_device(run)[0]) as device:
        check_gpus(run.scheduler, device)
        partitioner, _ = make_partitioner(run, device)
        partitioner.initial(device.spec)


def check_belief(config: RunConfig) -> None:
    """:func:`check_run` of what all policies share: device, cost model and profile."""
    what = model_on_device(config)
    if what.named.kind != "sim":
        check_closed(what.config, what.model)
        return
    with closing(open_device(what)[0]) as device:
        make_belief(what.config, device, what.model)
