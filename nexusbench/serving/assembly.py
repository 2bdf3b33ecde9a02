"""The composition root: from a RunConfig to the objects of one run, each resolved exactly once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from nexusbench.core.config import EndpointConfig, RunConfig, check_config
from nexusbench.core.errors import UsageError
from nexusbench.core.request import Request
from nexusbench.core.specs import ModelSpec
from nexusbench.core.state import Limits
from nexusbench.core.units import GIB, NS_PER_S, counted
from nexusbench.costs.base import CostModel
from nexusbench.devices.base import Device, DeviceOptions, devices
from nexusbench.kv.manager import KVCacheManager
from nexusbench.models.config import caveats, load_model
from nexusbench.partitioners.base import Partitioner, partitioners
from nexusbench.physics.gpus import gpu_names, is_profile
from nexusbench.results.machine import machine_facts
from nexusbench.schedulers.base import Scheduler, schedulers
from nexusbench.serving.belief import make_belief
from nexusbench.serving.calibrated import Calibrated
from nexusbench.serving.memory import check_pool, kv_pools, swap_gib
from nexusbench.serving.tokens import (
    check_flags,
    forget_answers,
    serving_of,
    with_dtype,
    work_of,
)
from nexusbench.workloads import transform
from nexusbench.workloads.base import Trace
from nexusbench.workloads.head import load_head
from nexusbench.workloads.trace import conversation_ids, load_trace

# (config, device, model) -> the belief and its facts for the manifest.
BeliefFactory = Callable[[RunConfig, Device, ModelSpec], tuple[CostModel, dict[str, Any]]]


class Assembly(msgspec.Struct):
    """The objects of one run, resolved and ready; ``facts`` is for the manifest."""

    config: RunConfig
    trace: Trace
    model: ModelSpec
    device: Device
    scheduler: Scheduler
    partitioner: Partitioner
    kv: KVCacheManager
    other_pools: list[KVCacheManager]
    requests: list[Request]
    limits: Limits
    facts: dict[str, Any]


def shape_traffic(config: RunConfig | EndpointConfig) -> Trace:
    """The trace of ``config`` with the arrivals asked for; every change leaves a note."""
    span = None if config.window is None else transform.parse_window(config.window)
    if span is None and config.limit is None:
        trace = load_trace(Path(config.trace))
    else:
        trace = load_head(Path(config.trace), limit=config.limit, window=span)
    if span is not None:
        trace = transform.window(trace, *span)
    if config.limit is not None:
        trace = transform.limit(trace, config.limit)
    if config.spread_ties != "none":
        trace = transform.spread_ties(trace, config.spread_ties, config.seed)
    if config.speed is not None:
        trace = transform.speed(trace, config.speed)
    if config.burstiness is not None:
        if config.request_rate is None:
            raise UsageError("--burstiness redraws arrivals and needs --request-rate")
        trace = transform.burstiness(trace, config.request_rate, config.burstiness, config.seed)
    elif config.request_rate is not None:
        trace = transform.rate(trace, config.request_rate)
    if config.quantize_arrivals is not None:
        trace = transform.quantize_arrivals(trace, config.quantize_arrivals)
    if config.concurrency is not None:
        trace = transform.closed_loop(trace, config.concurrency)
    return trace


def prepare_trace(config: RunConfig, max_model_len: int) -> Trace:
    """:func:`shape_traffic`, with the output bound that policies see, fitted to the context."""
    trace = shape_traffic(config)
    bound: int | Literal["trace"] | None = None
    if config.max_tokens is not None:
        bound = "trace" if config.max_tokens == "trace" else _positive_int(config.max_tokens)
    trace = transform.bounds(trace, bound)
    return transform.fit_context(trace, max_model_len, config.too_long)


def assemble(config: RunConfig, belief: BeliefFactory | None = None) -> Assembly:
    """Build every object of a run. Raises UsageError or InputError for whatever cannot be.

    ``belief`` makes another belief than the config's, for experiments that ask what a policy would
    do if it knew the truth.
    """
    config = check_config(config)
    model, max_model_len = resolve_model(config)
    trace = prepare_trace(config, max_model_len)
    scheduler: Scheduler = schedulers.create(config.scheduler)
    device, limits = open_device(config, model, max_model_len, policy=scheduler)
    try:
        check_gpus(scheduler, device)
        partitioner, belief_facts = make_partitioner(
            config, scheduler, device, model, belief or make_belief
        )
        # Refuses impossible options before anything is written.
        initial = partitioner.initial(device.spec)
        kv, others = kv_pools(config, model, device, trace)
        requests = make_requests(trace, config.block_size)
        check_pool(requests, kv)
        if device.spec.makes_tokens:
            forget_answers(requests, trace)
        partitions, num_sms = scheduler.partitions, device.spec.num_sms
        device.prepare(serving_of(config, model, trace, kv, partitions, initial, num_sms))
    except BaseException:
        device.close()
        raise
    facts = _facts(config, trace, model, device, scheduler, partitioner, kv, limits)
    facts["belief"] = belief_facts
    # The requests carry everything now: a second million of them would be kept for nothing.
    trace = msgspec.structs.replace(trace, requests=[])
    return Assembly(
        config, trace, model, device, scheduler, partitioner, kv, others, requests, limits, facts
    )


def resolve_model(config: RunConfig) -> tuple[ModelSpec, int]:
    """The model that is served and the longest context it is served with. Raises UsageError."""
    model = with_dtype(load_model(config.model), config.dtype)
    check_tensor_parallel(config.tensor_parallel_size, model)
    length = config.max_model_len or model.max_model_len
    if length > model.max_model_len:
        raise UsageError(
            f"--max-model-len {length}: the context of {model.name} has {model.max_model_len:,} "
            "tokens. Give at most that many, or leave it out"
        )
    return model, length


def open_device(
    config: RunConfig,
    model: ModelSpec,
    max_model_len: int,
    *,
    policy: Scheduler | None = None,
    profiling: bool = False,
) -> tuple[Device, Limits]:
    """The device of ``config`` and the step budgets that follow from it (vLLM's API-server
    defaults). ``profiling``: with times by operator class and exact totals where it has them.

    A ``policy`` that needs two GPUs gets two of the simulated one that the config names.
    """
    kind, _, argument = resolve_device(config.device).partition(":")
    if kind not in devices.names() and (kind.lower() in gpu_names() or kind.endswith(".toml")):
        raise UsageError(f"'{config.device}' is a GPU, not a device; write sim:{kind}")
    cls: type[Device] = devices.load(kind)
    # Large-memory GPUs other than the A100 get vLLM's larger defaults (arg_utils, V1); see
    # docs/decisions/0004.
    gpu = cls.describe(argument)
    large = gpu.hbm_gib >= 70 and "a100" not in gpu.name.lower()
    if policy is not None and policy.num_gpus == 2:
        argument = pair_of(policy, kind, argument)
    limits = Limits(
        config.max_num_seqs or (1024 if large else 256),
        config.max_num_batched_tokens or (8192 if large else 2048),
        max_model_len,
        config.goodput.get("ttft"),
        config.goodput.get("tbt") or config.goodput.get("tpot"),
    )
    options = DeviceOptions(
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        gpu_memory_utilization=config.gpu_memory_utilization,
        tensor_parallel=config.tensor_parallel_size,
        seed=config.seed,
        kernel_table=config.kernel_table,
        profiling=profiling,
        model_name=config.model,
        load_format=config.load_format,
        dtype=config.dtype,
        temperature=config.temperature,
        top_p=config.top_p,
        swap_bytes=swap_gib(config, policy, kind) * GIB,
        graphs=config.graphs,
    )
    check_flags(config, kind)
    return cls.open(argument, model, options), limits


def pair_of(policy: Scheduler, kind: str, argument: str) -> str:
    """Two of the simulated GPU, before anything is loaded onto one. Raises UsageError."""
    if kind != "sim" or is_profile(argument):
        what = f"sim:{argument}, a profile," if kind == "sim" else kind
        raise UsageError(
            f"scheduler '{policy.name}' needs {policy.num_gpus} GPUs, {what} is one device. Use a "
            "simulated pair, such as --device sim:l20+l20"
        )
    return argument if "+" in argument else f"{argument}+{argument}"


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


def resolve_device(name: str) -> str:
    """``auto`` is a usable CUDA GPU where the CUDA device is there, else the paper's GPU,
    simulated.
    """
    if name != "auto":
        return name
    if "cuda" in devices.names() and devices.load("cuda").usable():
        return "cuda"
    return "sim:l20"


def make_requests(trace: Trace, block_size: int) -> list[Request]:
    """Engine requests from a trace; prefix ids become comparable over the whole trace."""
    chains = conversation_ids(trace, block_size)
    after = _earlier_turns(trace)
    return [
        Request(
            id=r.id,
            index=index,
            arrival_ns=r.arrival_ns,
            num_prompt_tokens=r.prompt_tokens,
            max_tokens=r.max_tokens,
            stop_len=r.prompt_tokens + r.output_tokens,
            prefix_ids=chains[index][0],
            named_tokens=chains[index][1],
            tenant=r.tenant,
            after=after[index] if r.follows else -1,
            think_ns=r.think_ns,
            timeout_ns=r.timeout_ns,
            cancel_after_ns=r.cancel_after_ns,
        )
        for index, r in enumerate(trace.requests)
    ]


def _earlier_turns(trace: Trace) -> list[int]:
    """For each request the index of its session's turn before, -1 where there is none."""
    latest: dict[str, int] = {}
    earlier: list[int] = []
    for index, request in enumerate(trace.requests):
        earlier.append(latest.get(request.session, -1) if request.session else -1)
        if request.session:
            latest[request.session] = index
    return earlier


def partitioner_of(config: RunConfig, scheduler: Scheduler) -> tuple[str, type[Partitioner]]:
    """The partitioner as typed, or the scheduler's own, and its class. Raises UsageError if it
    cannot serve the scheduler.
    """
    spec = config.partitioner or scheduler.default_partitioner
    cls: type[Partitioner] = partitioners.load(spec.partition(":")[0])
    if scheduler.partitions not in cls.serves:
        raise UsageError(
            f"partitioner '{spec}' cannot serve scheduler '{scheduler.name}', which runs on "
            f"partition {' and '.join(scheduler.partitions)}; its default is "
            f"'{scheduler.default_partitioner}'"
        )
    return spec, cls


def make_partitioner(
    config: RunConfig,
    scheduler: Scheduler,
    device: Device,
    model: ModelSpec,
    make: BeliefFactory,
) -> tuple[Partitioner, dict[str, Any] | None]:
    """The partitioner, and the facts of the belief that it asks (None if it asks none).

    Raises UsageError if it cannot serve the scheduler, or not on this device.
    """
    spec, cls = partitioner_of(config, scheduler)
    needed = cls.needs_belief or scheduler.needs_belief
    belief, facts = make(config, device, model) if needed else (None, None)
    if belief is not None and not belief.learns and (scheduler.calibrates or cls.calibrates):
        belief = Calibrated(belief, device.spec.num_sms)
        facts = {**(facts or {}), "recalibrate": "over SMs"}
    if scheduler.needs_belief:
        scheduler.belief = belief
    if device.spec.num_gpus not in cls.num_gpus:
        raise UsageError(
            f"partitioner '{spec}' divides {counted(cls.num_gpus[0], 'GPU')}, {device.spec.name} "
            f"has {device.spec.num_gpus}; the default of '{scheduler.name}' is "
            f"'{scheduler.default_partitioner}'"
        )
    made: Partitioner = partitioners.create(spec, partitions=scheduler.partitions, belief=belief)
    return made, facts


def check_tensor_parallel(size: int, model: ModelSpec) -> None:
    """Heads and feed-forward layers must divide evenly; KV heads may be replicated instead."""
    heads, kv_heads = model.num_heads, model.num_kv_heads
    wide = math.gcd(*(layer.inputs for layer in model.linears if layer.name.endswith("down")))
    legal = [
        n
        for n in range(1, heads + 1)
        if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0) and wide % n == 0
    ]
    if size not in legal:
        raise UsageError(
            f"--tensor-parallel-size {size}: {model.name} with {heads} heads, {kv_heads} KV heads "
            f"and layers {wide} wide can be split {', '.join(map(str, legal))} ways"
        )


def _facts(
    config: RunConfig,
    trace: Trace,
    model: ModelSpec,
    device: Device,
    scheduler: Scheduler,
    partitioner: Partitioner,
    kv: KVCacheManager,
    limits: Limits,
) -> dict[str, Any]:
    """What was resolved, for the manifest."""
    spec = device.spec
    return {
        "device": spec.name,
        "gpu": msgspec.to_builtins(device.gpu),
        "num_sms": spec.num_sms,
        "kernel_table": device.kernel_table_sha256,
        "environment": device.environment(),
        "work": work_of(model, device),
        "random_weights": device.random_weights,
        "made_of_profile": device.made_of_profile,
        "legal_splits": [str(split) for split in spec.splits],
        "model": msgspec.to_builtins(model),
        "caveats": caveats(model),
        "scheduler": scheduler.name,
        "scheduler_options": msgspec.to_builtins(scheduler.options),
        "partitioner": partitioner.name,
        "partitioner_options": msgspec.to_builtins(partitioner.options),
        "kv_blocks": kv.num_blocks * spec.num_gpus,
        "block_size": kv.block_size,
        "limits": msgspec.to_builtins(limits),
        "trace": trace_facts(trace),
        "machine": {**machine_facts(), **device.environment()},
        "seed": config.seed,
        "slo": dict(config.goodput),
        "warmup_ns": round(config.warmup_s * NS_PER_S),
        "gpus": config.tensor_parallel_size * spec.num_gpus,
        "swap_bytes": spec.host_bytes,
        "pools": list(spec.pools),
        "homes": [spec.pool_of.get(partition, 0) for partition in scheduler.partitions],
        "price_per_hour": config.price_per_hour,
        "watts": config.watts,
    }


def trace_facts(trace: Trace) -> dict[str, Any]:
    """What a manifest says of a trace."""
    return {
        "name": trace.name,
        "format": trace.format,
        "sha256": trace.sha256,
        "requests": len(trace.requests),
        "notes": trace.notes,
        "oracle_max_tokens": trace.oracle_max_tokens,
        "concurrency": trace.concurrency,
        "following": sum(r.follows for r in trace.requests),
    }


def _positive_int(text: str) -> int:
    # Ten digits at most: more mean nothing, and a long enough text is no int even to Python.
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and 1 <= int(text) <= 10**9):
        raise UsageError(
            f"--max-tokens takes an integer from 1 to 1,000,000,000 or 'trace', not '{text[:40]}'"
        )
    return int(text)
