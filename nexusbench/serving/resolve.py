"""From a config to names, model, context length and policies; nothing is opened."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from nexusbench.core.config import TOKENS, RunConfig, check_config
from nexusbench.core.errors import UsageError
from nexusbench.core.mixers import (
    CompressedAttention,
    FullAttention,
    LatentAttention,
    SparseAttention,
    StateMixer,
)
from nexusbench.core.options import declared
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.core.units import GIB
from nexusbench.devices.base import Device, devices
from nexusbench.metrics.run_events import check_slo
from nexusbench.models.config import caveats, warn
from nexusbench.models.precision import Precision, computed_model_of, served_model_of
from nexusbench.partitioners.base import Partitioner, partitioners
from nexusbench.physics.gpus import gpu_names, is_profile
from nexusbench.physics.supported_types import check_types, half_types
from nexusbench.schedulers.base import Scheduler, schedulers
from nexusbench.serving.parallel import check_parallel, check_policy, deployment_caveats

DEFAULT_SWAP_GIB = 4.0  # vLLM's
# How tokens are made; a simulation makes none. (Graphs are how they are launched.)
_OF_TOKENS = [
    field
    for field in declared(RunConfig).values()
    if field.option.panel == TOKENS and field.name != "graphs"
]


class NamedDevice(msgspec.Struct, frozen=True):
    """``KIND:argument`` and the class that opens it."""

    kind: str
    argument: str
    device_class: type[Device]

    @property
    def spec(self) -> str:
        """``KIND:argument`` as a user writes it."""
        return f"{self.kind}:{self.argument}" if self.argument else self.kind

    def describe(self) -> GpuSpec:
        """The GPU that is named, without opening it. Raises UsageError if there is none."""
        return self.device_class.describe(self.argument)


class ModelOnDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A model and the device that is to run it: what a profile is of.

    ``max_model_len`` is the longest context in tokens, ``swap_bytes`` the host memory for swapped
    KV, per GPU. ``caveats`` are sentences on the model's data types and on what its times are not.
    """

    config: RunConfig
    model: ModelSpec
    max_model_len: int
    named: NamedDevice
    swap_bytes: float = 0.0
    caveats: tuple[str, ...] = ()


class NamedRun(ModelOnDevice, frozen=True, kw_only=True):
    """The same, and the policies that serve: the scheduler, and the partitioner still as a spec,
    for it needs an open device.
    """

    scheduler: Scheduler
    partitioner: str
    partitioner_class: type[Partitioner]

    @property
    def needs_belief(self) -> bool:
        """Whether a policy asks a cost model."""
        return self.partitioner_class.needs_belief or self.scheduler.needs_belief


def resolve(config: RunConfig) -> NamedRun:
    """What ``config`` stands for on this machine. Raises UsageError or InputError for what no
    device has to be open to refuse.
    """
    found = model_on_device(config)
    config, named = found.config, found.named
    check_slo(config.goodput)
    scheduler: Scheduler = schedulers.create(config.scheduler)
    spec, cls = partitioner_of(config, scheduler)
    if scheduler.num_gpus == 2:
        named = msgspec.structs.replace(named, argument=pair_of(scheduler, named))
    swap_bytes = swap_gib(config, scheduler, named.kind) * GIB
    check_policy(config, scheduler, swap_bytes)
    return NamedRun(
        config=config, model=found.model, max_model_len=found.max_model_len, named=named,
        swap_bytes=swap_bytes, caveats=found.caveats,
        scheduler=scheduler, partitioner=spec, partitioner_class=cls,
    )  # fmt: skip


def model_on_device(config: RunConfig, model: ModelSpec | None = None) -> ModelOnDevice:
    """The model of ``config`` (or that ``model``) and its device, without policies. Raises
    UsageError or InputError.
    """
    config = check_config(config)
    named = find_device(config.device)
    if model is None:
        model, said = _in_precision(config, named)
    else:
        types = check_types(named.describe(), model) if named.kind == "sim" else []
        said = [*types, *caveats(model)]
    check_tensor_parallel(config.tensor_parallel_size, model, config.enable_expert_parallel)
    length = config.max_model_len or model.max_model_len
    if length > model.max_model_len:
        raise UsageError(
            f"--max-model-len {length}: the context of {model.name} has {model.max_model_len:,} "
            "tokens. Give at most that many, or leave it out"
        )
    check_flags(config, named.kind)
    check_parallel(config, model, named.kind)
    swap_bytes = swap_gib(config, None, named.kind) * GIB
    return ModelOnDevice(
        config=config, model=model, max_model_len=length, named=named, swap_bytes=swap_bytes,
        caveats=tuple(said),
    )  # fmt: skip


def resolve_device(name: str) -> str:
    """``auto`` is a usable CUDA GPU where the CUDA device is there, else the paper's GPU,
    simulated.
    """
    if name != "auto":
        return name
    if "cuda" in devices.names() and devices.load("cuda").usable():
        return "cuda"
    return "sim:l20"


def find_device(name: str) -> NamedDevice:
    """The device class of ``KIND:argument`` or ``auto``. Raises UsageError if there is none."""
    kind, _, argument = resolve_device(name).partition(":")
    if kind not in devices.names() and (kind.lower() in gpu_names() or kind.endswith(".toml")):
        raise UsageError(f"'{name}' is a GPU, not a device; write sim:{kind}")
    return NamedDevice(kind, argument, devices.load(kind))


def rules_of(specs: Iterable[str]) -> str:
    """Whose rules of which version each scheduler follows, each named once; '' of those that do not
    say.
    """
    known = {spec: schedulers.create(spec).rules for spec in dict.fromkeys(specs)}
    return "; ".join(f"{spec}: {rules}" for spec, rules in known.items() if rules)


def pair_of(policy: Scheduler, named: NamedDevice) -> str:
    """A policy that needs two GPUs gets two of the simulated one that the config names; as the
    device's argument. Raises UsageError where there can be no two.
    """
    kind, argument = named.kind, named.argument
    if kind != "sim" or is_profile(argument):
        what = f"sim:{argument}, a profile," if kind == "sim" else kind
        raise UsageError(
            f"scheduler '{policy.name}' needs {policy.num_gpus} GPUs, {what} is one device. Use a "
            "simulated pair, such as --device sim:l20+l20"
        )
    return argument if "+" in argument or not argument else f"{argument}+{argument}"


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


def caveats_of(config: RunConfig) -> list[str]:
    """What is to be said of the model and of the devices of ``config`` before any figure of
    them.
    """
    what = model_on_device(config)
    return list(what.caveats) if what.named.kind != "sim" else said_of(what, what.named.describe())


def said_of(what: ModelOnDevice, gpu: GpuSpec) -> list[str]:
    """The same, of what runs on ``gpu``."""
    return [*what.caveats, *deployment_caveats(what.config, what.model, gpu), *gpu.warnings]


def _in_precision(config: RunConfig, named: NamedDevice) -> tuple[ModelSpec, list[str]]:
    """The model in the data types that it is run in, and what there is to say of them."""
    asked = Precision(config.dtype, config.quantization, config.kv_cache_dtype)
    if named.kind != "sim":
        computed = computed_model_of(config.model, asked)
        said = [*computed.said, *caveats(computed.model, dequantised=bool(computed.said))]
        warn(said)
        return computed.model, said
    gpu = named.describe()
    served = served_model_of(config.model, asked, half_types(gpu))
    said = [*served.said, *check_types(gpu, served.model), *caveats(served.model)]
    warn(said)
    return served.model, said


def check_tensor_parallel(size: int, model: ModelSpec, whole_experts: bool = False) -> None:
    """Heads and feed-forward layers must divide evenly (but experts that lie whole on a GPU); KV
    heads may be replicated instead.
    """
    mixers = [
        group.mixer.base if isinstance(group.mixer, SparseAttention) else group.mixer
        for group in model.groups
    ]
    # What all heads share, a latent or a single key, is kept on each GPU.
    attention = {
        (mixer.num_heads, mixer.num_kv_heads if isinstance(mixer, FullAttention) else 1)
        for mixer in mixers
        if isinstance(mixer, FullAttention | LatentAttention | CompressedAttention)
    }
    states = [mixer.heads for mixer in mixers if isinstance(mixer, StateMixer)]
    apart = "expert_down" if whole_experts else ""
    widths = {x.inputs for x in model.linears if x.name.endswith("down") and x.name != apart}
    wide = math.gcd(*widths) if widths else size

    def divides(n: int) -> bool:
        for heads, kv_heads in attention:
            if heads % n or (kv_heads % n and n % kv_heads):
                return False
        return wide % n == 0 and not any(heads % n for heads in states)

    if not divides(size):
        most = min((heads for heads, _ in attention), default=size)
        legal = [n for n in range(1, most + 1) if divides(n)]
        heads = " and ".join(f"{q} heads, {kv} KV heads" for q, kv in sorted(attention))
        raise UsageError(
            f"--tensor-parallel-size {size}: {model.name} with {heads} "
            f"and layers {wide} wide can be split {', '.join(map(str, legal))} ways"
        )


def check_flags(config: RunConfig, kind: str) -> None:
    """Raise UsageError for a flag about tokens on a device that makes none, or about CUDA graphs on
    one that has none.
    """
    if not config.graphs and kind != "cuda":
        raise UsageError(
            f"--no-graphs is for --device cuda, which decodes by CUDA graphs; {kind} has none. "
            "Leave it out"
        )
    if kind != "sim":
        if config.engine is not None:
            raise UsageError(
                f"--engine is for simulated devices; --device {kind} has a host of its own. Leave "
                "it out"
            )
        return
    for field in _OF_TOKENS:
        if getattr(config, field.name) != field.default:
            raise UsageError(
                f"{field.flag} is for devices that compute tokens: use --device cpu or cuda, or "
                "leave it out"
            )


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
