"""Building blocks of a fast test: a small made-up GPU and model, requests, and ``serve``.

Nothing here is a measurement, of any device: the GPU is so slow that scheduling matters at a
handful of small requests, and a simulated minute takes a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from nexusbench.core.errors import UsageError
from nexusbench.core.kv_layout import KvLayout, uniform_pages
from nexusbench.core.request import Request
from nexusbench.core.specs import GpuSpec, ModelSpec, SimConstants
from nexusbench.core.state import Limits
from nexusbench.core.units import NS_PER_MS
from nexusbench.costs.roofline import Roofline
from nexusbench.devices.base import Device, DeviceOptions, Serving
from nexusbench.devices.sim import Sim
from nexusbench.engine.engine import Engine, EngineConfig
from nexusbench.partitioners.base import Partitioner, partitioners
from nexusbench.schedulers.base import Scheduler, schedulers
from nexusbench.serving.belief import share_belief
from nexusbench.serving.opening import make_pools

SchedulerLike = str | type[Scheduler] | Callable[[], Scheduler]
PartitionerLike = str | type[Partitioner] | Callable[..., Partitioner]
LIMITS = Limits(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=1024)


def tiny_gpu(
    *, num_sms: int = 16, sm_minimum: int = 2, sm_multiple: int = 2, jitter: float = 0.01
) -> GpuSpec:
    """A made-up GPU on which one step of :func:`tiny_model` takes about ten milliseconds."""
    return GpuSpec(
        name="Tiny",
        num_sms=num_sms,
        clock_mhz=1000.0,
        peak_tflops=0.05,
        hbm_gib=4.0,
        hbm_gbps=0.5,
        l2_mib=1.0,
        sm_minimum=sm_minimum,
        sm_multiple=sm_multiple,
        link_gbps=1.0,
        link_latency_us=10.0,
        sim=SimConstants(
            dense_efficiency=0.8,
            attention_efficiency=0.5,
            bandwidth_efficiency=0.9,
            bandwidth_curve=((0.0, 0.0), (0.25, 0.7), (0.5, 0.95), (1.0, 1.0)),
            kernel_us=2.0,
            step_overhead_us=300.0,
            dense_interference=0.1,
            attention_interference=1.0,
            stream_interference=0.05,
            turn_taking=0.15,
            jitter=jitter,
        ),
        sources={},
    )


def tiny_model() -> ModelSpec:
    """A made-up decoder of four layers."""
    return ModelSpec(
        name="tiny",
        num_layers=4,
        hidden_size=256,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=512,
        vocab_size=1000,
        max_model_len=1024,
        source="made up for tests",
    )


def tiny_device(
    seed: int = 0, *, gpu: GpuSpec | None = None, count: int = 1, host: bool = False
) -> Sim:
    """:func:`tiny_gpu` (or ``gpu``), simulated, running :func:`tiny_model`; ``count`` of them, each
    with a KV pool, and with ``host`` memory for swapped KV.
    """
    options = DeviceOptions(
        LIMITS.max_num_seqs, LIMITS.max_num_batched_tokens, seed=seed, swap_bytes=float(host)
    )
    return Sim(gpu or tiny_gpu(), tiny_model(), options, name="tiny", count=count)


def offer(
    index: int,
    arrival_ms: float,
    prompt: int,
    output: int,
    *,
    max_tokens: int = 64,
    prefix_ids: tuple[int, ...] = (),
    after: int = -1,
    think_ms: float = 0.0,
    timeout_ms: float = 0.0,
    cancel_after_ms: float = 0.0,
) -> Request:
    """A request of ``prompt`` + ``output`` tokens; ``index`` counts from 0 in order of arrival.

    ``after`` is the index of the request that must finish first (``arrival_ms`` is then of no
    meaning), ``think_ms`` the time from its end to this one's arrival; a timeout or cancellation
    of 0 is none.
    """
    return Request(
        id=f"r{index}",
        index=index,
        arrival_ns=round(arrival_ms * NS_PER_MS),
        num_prompt_tokens=prompt,
        max_tokens=max(max_tokens, output),
        stop_len=prompt + output,
        prefix_ids=prefix_ids,
        after=after,
        think_ns=round(think_ms * NS_PER_MS),
        timeout_ns=round(timeout_ms * NS_PER_MS),
        cancel_after_ns=round(cancel_after_ms * NS_PER_MS),
    )


def fresh(request: Request) -> Request:
    """The same offer, before anything happened to it: an engine changes the requests it serves."""
    return Request(
        id=request.id,
        index=request.index,
        arrival_ns=request.arrival_ns,
        num_prompt_tokens=request.num_prompt_tokens,
        max_tokens=request.max_tokens,
        stop_len=request.stop_len,
        prefix_ids=request.prefix_ids,
        tenant=request.tenant,
        named_tokens=request.named_tokens,
        after=request.after,
        think_ns=request.think_ns,
        timeout_ns=request.timeout_ns,
        cancel_after_ns=request.cancel_after_ns,
    )


def make_scheduler(what: SchedulerLike) -> Scheduler:
    """A new scheduler from ``name:key=value``, a class or a factory. Raises UsageError."""
    if isinstance(what, str):
        made = schedulers.create(what)
    elif callable(what):
        made = what()
    else:
        raise UsageError(f"give a scheduler's name, its class or a factory, not {what!r}")
    if not isinstance(made, Scheduler):
        raise UsageError(f"{what!r} makes {made!r}, which is no Scheduler")
    return made


def make_partitioner(
    what: PartitionerLike, partitions: tuple[str, ...], device: Device
) -> Partitioner:
    """A new partitioner from a spec, or from anything called with ``partitions`` and ``belief``.

    It gets the analytic belief about ``device``. Raises UsageError.
    """
    belief = Roofline(gpu=device.gpu, model=tiny_model())
    make: Callable[..., Any]
    if isinstance(what, str):
        spec = what

        def make(**extra: Any) -> Any:
            return partitioners.create(spec, **extra)
    elif callable(what):
        make = what
    else:
        raise UsageError(f"give a partitioner's name, its class or a factory, not {what!r}")
    made = make(partitions=partitions, belief=belief)
    if not isinstance(made, Partitioner):
        raise UsageError(f"{what!r} makes {made!r}, which is no Partitioner")
    return made


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests are served: the KV pool (of each GPU) and the host's, in blocks of all layers
    (or as ``layout`` says), the budgets, the GPU, how often books are audited, and the users of a
    closed loop (0: none). ``stop_tokens`` and ``prompts`` are for devices that make tokens: those
    that end a request, and prompts by ``Request.index`` (others are made up).
    """

    kv_blocks: int = 512
    host_blocks: int = 2048
    block_size: int = 4
    hash_block: int = 8
    prefix_caching: bool = True
    limits: Limits = LIMITS
    gpu: GpuSpec | None = None
    audit_every: int = 1
    concurrency: int = 0
    stop_tokens: frozenset[int] = frozenset()
    prompts: Mapping[int, Sequence[int]] = {}
    layout: KvLayout | None = None


def build(
    requests: Sequence[Request],
    scheduler: Scheduler,
    partitioner: PartitionerLike | None = None,
    *,
    setting: Setting | None = None,
    seed: int = 0,
    device: Device | None = None,
    observer: Callable[[Engine], None] | None = None,
) -> Engine:
    """An engine that is ready to :meth:`~Engine.run`; see :func:`serve`."""
    own = setting if setting is not None else Setting()
    if device is None:
        host = scheduler.options.preemption == "swap" or scheduler.swap_gib > 0
        device = tiny_device(seed, gpu=own.gpu, count=scheduler.num_gpus, host=host)
    on = device
    made = make_partitioner(partitioner or scheduler.default_partitioner, scheduler.partitions, on)
    belief = made.belief or Roofline(gpu=on.gpu, model=tiny_model())
    told = share_belief(belief, scheduler, type(made), on.spec.num_sms)
    if told is not belief:
        made.belief = told
    launches = tuple((name, on.spec.num_sms) for name in scheduler.partitions)
    on.prepare(Serving(own.kv_blocks, own.block_size, own.hash_block, own.prompts, seed, launches))
    sizes = [own.kv_blocks] * on.spec.num_gpus
    if on.spec.host is not None:
        sizes.append(own.host_blocks)
    size = own.block_size
    paging = uniform_pages(size) if own.layout is None else own.layout.paged(size)
    pool, *others = make_pools(sizes, on.spec.num_gpus, paging, own.hash_block, own.prefix_caching)
    return Engine(
        on,
        scheduler,
        made,
        pool,
        [fresh(request) for request in requests],
        EngineConfig(
            own.limits, own.audit_every, own.concurrency, own.stop_tokens,
            paging.page_bytes or size * tiny_model().kv_bytes_per_token,
        ),
        observer=observer,
        others=others,
    )  # fmt: skip


def serve(
    requests: Sequence[Request],
    scheduler: SchedulerLike | Scheduler,
    partitioner: PartitionerLike | None = None,
    *,
    setting: Setting | None = None,
    seed: int = 0,
    device: Device | None = None,
    observer: Callable[[Engine], None] | None = None,
) -> Engine:
    """Serve fresh copies of ``requests`` to the end and return the engine: log, requests, KV pool.

    The default device is :func:`tiny_device`; the default partitioner is the scheduler's. The books
    are audited after every step. Raises what the engine raises.
    """
    policy = scheduler if isinstance(scheduler, Scheduler) else make_scheduler(scheduler)
    engine = build(
        requests,
        policy,
        partitioner,
        setting=setting,
        seed=seed,
        device=device,
        observer=observer,
    )
    engine.run()
    return engine
