"""The composition root: from a RunConfig to the objects of one run, each resolved exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from nexusbench.core.batch import Split
from nexusbench.core.config import EndpointConfig, RunConfig
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.mixer_work import FullWork
from nexusbench.core.request import Request
from nexusbench.core.specs import DTYPE_BYTES, ModelSpec
from nexusbench.core.state import Limits
from nexusbench.core.units import NS_PER_S
from nexusbench.core.work import Work, model_work
from nexusbench.devices.base import Device, Serving
from nexusbench.kv.grouped import GroupedKV
from nexusbench.kv.manager import KVCacheManager
from nexusbench.partitioners.base import Partitioner
from nexusbench.results.machine import machine_facts
from nexusbench.results.resolved import (
    BeliefFacts,
    ResolvedEngineRun,
    ServedTrace,
    served_model,
    slo_bounds,
)
from nexusbench.schedulers.base import Scheduler
from nexusbench.serving.belief import BeliefFactory, make_belief, make_partitioner
from nexusbench.serving.opening import check_gpus, check_pool, kv_pools, open_device
from nexusbench.serving.peers import EngineParts, make_peers
from nexusbench.serving.resolve import NamedRun, resolve, said_of
from nexusbench.workloads import transform
from nexusbench.workloads.base import Trace
from nexusbench.workloads.head import load_head
from nexusbench.workloads.trace import conversation_ids, load_trace


class Assembly(msgspec.Struct):
    """The objects of one run, resolved and ready; ``resolved`` is for the manifest, ``peers`` are
    the engines beside the first.
    """

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
    resolved: ResolvedEngineRun
    peers: list[EngineParts] = []

    @property
    def partitions(self) -> tuple[str, ...]:
        """As the event log counts them: those of all engines, one engine after the other."""
        own = self.scheduler.partitions
        if not self.peers:
            return own
        engines = range(1 + len(self.peers))
        return tuple(f"{name}@{engine}" for engine in engines for name in own)

    def columns(self) -> dict[str, list[Any]]:
        """The requests, as they are stored."""
        return request_columns(self.requests, closed=self.trace.concurrency > 0)


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


def assemble(config: RunConfig, belief: BeliefFactory = make_belief) -> Assembly:
    """Build every object of a run. Raises UsageError or InputError for whatever cannot be.

    ``belief`` makes another belief than the config's, for experiments that ask what a policy would
    do if it knew the truth.
    """
    run = resolve(config)
    config, model, scheduler = run.config, run.model, run.scheduler
    trace = prepare_trace(config, run.max_model_len)
    device, limits = open_device(run)
    try:
        check_gpus(scheduler, device)
        partitioner, belief_facts = make_partitioner(run, device, belief)
        # Refuses impossible options before anything is written.
        initial = partitioner.initial(device.spec)
        kv, others = kv_pools(config, model, device, trace)
        peers = make_peers(run, device, trace, belief)
        requests = make_requests(trace, config.block_size)
        check_pool(requests, kv, limits.max_num_batched_tokens)
        if device.spec.makes_tokens:
            forget_answers(requests, trace)
        partitions, num_sms = scheduler.partitions, device.spec.num_sms
        device.prepare(serving_of(config, model, trace, kv, partitions, initial, num_sms))
        resolved = _resolved(run, trace, device, scheduler, partitioner, kv, limits, belief_facts)
    except BaseException:
        device.close()
        raise
    # The requests carry everything now: a second million of them would be kept for nothing.
    trace = msgspec.structs.replace(trace, requests=[])
    return Assembly(
        config, trace, model, device, scheduler, partitioner, kv, others, requests, limits,
        resolved, peers,
    )  # fmt: skip


def make_requests(trace: Trace, block_size: int) -> list[Request]:
    """Engine requests from a trace; prefix ids become comparable over the whole trace."""
    chains = conversation_ids(trace, block_size)
    earlier = _earlier_turns(trace) if any(r.follows for r in trace.requests) else []
    return [
        Request(
            id=r.id, index=index, arrival_ns=r.arrival_ns, tenant=r.tenant,
            num_prompt_tokens=r.prompt_tokens, max_tokens=r.max_tokens,
            stop_len=r.prompt_tokens + r.output_tokens,
            prefix_ids=chains[index][0], named_tokens=chains[index][1],
            after=earlier[index] if r.follows else -1, think_ns=r.think_ns,
            timeout_ns=r.timeout_ns, cancel_after_ns=r.cancel_after_ns,
        )
        for index, r in enumerate(trace.requests)
    ]  # fmt: skip


def request_columns(requests: Sequence[Request], *, closed: bool = False) -> dict[str, list[Any]]:
    """The offered requests as equally long columns; ``closed``: as a closed loop offers them."""
    return {
        "request": [r.index for r in requests],
        "id": [r.id for r in requests],
        "tenant": [r.tenant for r in requests],
        # -1: it arrives when another one has ended; the event log says when that was.
        "arrival": [-1 if closed or r.after >= 0 else r.arrival_ns for r in requests],
        "prompt_tokens": [r.num_prompt_tokens for r in requests],
        "output_tokens": [r.stop_len - r.num_prompt_tokens for r in requests],
        "max_tokens": [r.max_tokens for r in requests],
    }


def _earlier_turns(trace: Trace) -> list[int]:
    """For each request the index of its session's turn before, -1 where there is none."""
    latest: dict[str, int] = {}
    earlier: list[int] = []
    for index, request in enumerate(trace.requests):
        earlier.append(latest.get(request.session, -1) if request.session else -1)
        if request.session:
            latest[request.session] = index
    return earlier


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
    """What the device needs of a run. Raises InputError for a token outside the vocabulary."""
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


def _resolved(
    run: NamedRun,
    trace: Trace,
    device: Device,
    scheduler: Scheduler,
    partitioner: Partitioner,
    kv: KVCacheManager,
    limits: Limits,
    belief: BeliefFacts | None,
) -> ResolvedEngineRun:
    """What the config became on this device and model, for the manifest."""
    config, model, spec = run.config, run.model, device.spec
    engines = config.data_parallel_size
    homes = [spec.pool_of.get(partition, 0) for partition in scheduler.partitions]
    pools = list(spec.pools)
    if engines > 1:
        # Each has one pool, and policies that do not swap (check_policy).
        homes = [engine for engine in range(engines) for _ in homes]
        pools = [f"gpu{engine}" for engine in range(engines)]
    return ResolvedEngineRun(
        device=spec.name, gpu=device.gpu, num_sms=spec.num_sms * engines,
        work=work_of(model, device),
        gpus=config.tensor_parallel_size * spec.num_gpus * spec.stages * engines,
        legal_splits=[str(split) for split in spec.splits],
        kernel_table=device.kernel_table_sha256, made_of_profile=device.made_of_profile,
        host=UNSET if device.host is None else device.host,
        environment=device.environment(), machine={**machine_facts(), **device.environment()},
        model=served_model(model),
        caveats=said_of(run, device.gpu),
        random_weights=device.random_weights,
        scheduler=scheduler.name, scheduler_rules=scheduler.rules or UNSET,
        scheduler_options=msgspec.to_builtins(scheduler.options),
        partitioner=partitioner.name, partitioner_options=msgspec.to_builtins(partitioner.options),
        belief=belief,
        kv_blocks=kv.num_blocks * spec.num_gpus * engines, block_size=kv.block_size, limits=limits,
        kv_groups=kv.sizes if isinstance(kv, GroupedKV) else UNSET,
        swap_bytes=spec.host_bytes, pools=pools, homes=homes,
        trace=trace_facts(trace), seed=config.seed, slo=slo_bounds(config.goodput),
        warmup_ns=round(config.warmup_s * NS_PER_S),
        price_per_hour=config.price_per_hour, watts=config.watts,
    )  # fmt: skip


def work_of(model: ModelSpec, device: Device) -> Work | None:
    """Work counts and measured limits for MFU and MBU; None for a simulation, and for a model whose
    work does not grow evenly with tokens and with pairs of them: experts, windows, latents.
    """
    if device.spec.simulated:
        return None
    counts = model_work(model)
    pair_flops = 0.0
    for each, layers in counts.mixing:
        if type(each) is not FullWork:
            return None
        pair_flops += each.pair_flops * layers
    if counts.routed:
        return None
    weights = sum(linear.inputs * linear.outputs * linear.count for linear in counts.linears)
    head = counts.head.inputs * counts.head.outputs
    return Work(
        token_flops=2.0 * weights,
        head_flops=2.0 * head,
        pair_flops=pair_flops,
        weight_bytes=weights * counts.weight_bytes_each,
        head_bytes=head * DTYPE_BYTES[model.dtypes.embeddings],
        kv_bytes=counts.kv_bytes_per_token,
        peak_flops=device.gpu.peak_tflops * 1e12,
        peak_bytes=device.gpu.hbm_gbps * 1e9,
    )


def trace_facts(trace: Trace) -> ServedTrace:
    """What a manifest says of a trace."""
    return ServedTrace(
        name=trace.name, format=trace.format, sha256=trace.sha256, notes=trace.notes,
        requests=len(trace.requests), following=sum(r.follows for r in trace.requests),
        oracle_max_tokens=trace.oracle_max_tokens, concurrency=trace.concurrency,
    )  # fmt: skip


def _positive_int(text: str) -> int:
    # Ten digits at most: more mean nothing, and a long enough text is no int even to Python.
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and 1 <= int(text) <= 10**9):
        raise UsageError(
            f"--max-tokens takes an integer from 1 to 1,000,000,000 or 'trace', not '{text[:40]}'"
        )
    return int(text)
