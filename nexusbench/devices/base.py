"""The device seam: submit a batch, wait for what ends, read the clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import msgspec

from nexusbench.core.batch import Batch, StepOutput, TransferOutput
from nexusbench.core.errors import NexusbenchError
from nexusbench.core.host import EngineHost
from nexusbench.core.parallelism import Parallelism
from nexusbench.core.parts import unit_of
from nexusbench.core.registry import Registry
from nexusbench.core.request import Request
from nexusbench.core.specs import DeviceSpec, GpuSpec, ModelSpec
from nexusbench.core.work import HostGap


class DeviceOptions(msgspec.Struct, frozen=True):
    """What a device is opened with: memory shares, largest step, seed, measured times.

    ``profiling``: report ns per operator class with every step, and keep exact ``totals`` where the
    device can tell them. The rest is for devices that compute: the model as the user named it, the
    source of its weights (``auto``, ``safetensors``, ``dummy``), their data type (None: the
    model's own), and how tokens are sampled (temperature 0: the likeliest).
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float = 0.9
    tensor_parallel: int = 1
    seed: int = 0
    kernel_table: str | None = None  # a folder; simulated devices only
    profiling: bool = False
    model_name: str = ""
    load_format: str = "auto"
    dtype: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    swap_bytes: float = 0.0  # host memory for swapped KV, per GPU; simulated devices only
    graphs: bool = True  # decode by CUDA graphs, on devices that have them
    host: EngineHost | None = None  # of a serving engine; simulated devices only
    data_parallel: int = 1  # engines on as many GPUs (or groups); simulated devices only
    expert_parallel: bool = False  # whole experts on each GPU; simulated devices only
    pipeline_parallel: int = 1  # stages of an engine; simulated devices only

    @property
    def parallel(self) -> Parallelism:
        """How the model is spread over GPUs."""
        return Parallelism(
            self.tensor_parallel, self.data_parallel, self.expert_parallel, self.pipeline_parallel
        )


class Serving(msgspec.Struct, frozen=True):
    """What a device that computes is given before the first batch: its KV pool and the prompts.

    ``prompts`` holds the token ids of the requests whose trace gives them, by ``Request.index``;
    others are made from ``seed`` and the request's ``prefix_ids``, each of ``hash_block`` tokens.
    ``launches`` are (partition, SMs) pairs to expect from the first request on: their threads and
    graphs are made before the run begins. ``again``: the same launch may be made many times, as in
    a sweep; its tokens are not kept.
    """

    num_blocks: int
    block_size: int
    hash_block: int = 512
    prompts: Mapping[int, Sequence[int]] = {}
    seed: int = 0
    launches: tuple[tuple[str, int], ...] = ()
    again: bool = False


class DeviceCheck(msgspec.Struct, frozen=True):
    """One line of ``nexusbench doctor --device``: what was checked, whether it passed, and what was
    found or what to do.
    """

    name: str
    ok: bool
    text: str


class Ranks(ABC):
    """The data-parallel ranks of a device on its one clock, numbered from 0. An engine runs on
    each: it submits to a device of its own (``devices``), what ends comes from here.
    """

    devices: Sequence[Device]

    @property
    @abstractmethod
    def accepting(self) -> bool:
        """Whether a rank without a launch may get one now. False where ranks step together and a
        step is under way, which the idle ones take part in.
        """

    @abstractmethod
    def start(self) -> None:
        """As :meth:`Device.start`."""

    @abstractmethod
    def now(self) -> int:
        """As :meth:`Device.now`."""

    @abstractmethod
    def wait(self, until: int | None) -> Sequence[tuple[int, StepOutput | TransferOutput]]:
        """As :meth:`Device.wait`, each output with the number of its rank."""


class Device(ABC):
    """Something that runs batches on partitions of its SMs and owns the run's only clock.

    ``submit`` returns at once; ``wait`` blocks (on a virtual clock: jumps) until a launch or copy
    has ended or ``until`` is reached. Step numbers are the engine's, growing by one.
    """

    spec: DeviceSpec
    gpu: GpuSpec  # published numbers, for beliefs and for reports
    source: ClassVar[str] = ""
    kernel_table_sha256: str | None = None  # of measured operator times, where a device uses them
    host: EngineHost | None = None  # whose host time the steps of a simulated device have
    random_weights: bool = False  # of the model: times are real, tokens are not
    gpu_uuid: str = ""  # of the GPU that computes, where there is one
    gpu_number: int = 0  # CUDA's
    ranks: Ranks | None = None  # of data parallelism; the device itself is the first one
    made_of_profile: str | None = None  # points_sha256, where the times are those of a profile

    @classmethod
    @abstractmethod
    def describe(cls, argument: str) -> GpuSpec:
        """The GPU that ``KIND:argument`` names, without opening it. Raises UsageError if there is
        none.
        """

    @classmethod
    def usable(cls) -> bool:
        """Whether this machine can open the device now (for ``--device auto`` and ``doctor``)."""
        return True

    @classmethod
    def lacks(cls, argument: str) -> list[str]:
        """What this machine lacks to open ``KIND:argument``, each with what to do; [] if nothing.
        Raises UsageError for an argument that names no device.
        """
        return []

    @classmethod
    def check_up(cls, argument: str) -> list[DeviceCheck]:
        """Checks on a machine that lacks nothing, for ``doctor --device``."""
        gpu, kind = cls.describe(argument), cls.__module__.rpartition(".")[2]
        size = f"{gpu.num_sms} {unit_of(f'{kind}:{argument}' if argument else kind)}"
        return [DeviceCheck("device", True, f"{gpu.name}: {size}, {gpu.hbm_gib:.1f} GiB")]

    @classmethod
    @abstractmethod
    def open(cls, argument: str, model: ModelSpec, options: DeviceOptions) -> Self:
        """The device that ``KIND:argument`` names, ready to run ``model``.

        Raises UsageError if there is no such device or the model does not fit it.
        """

    def prepare(self, serving: Serving) -> None:  # noqa: B027 - a simulation needs no memory
        """Allocate the KV pool and warm up; called once, before :meth:`start`. Raises UsageError if
        the pool does not fit.
        """

    def start(self) -> None:  # noqa: B027 - a virtual clock stands until work is submitted
        """The run begins: ``now`` counts from here."""

    def forget(self, request: Request) -> None:  # noqa: B027 - called where overridden
        """``request`` has ended, and what is kept of it can be freed. Called where overridden."""

    @abstractmethod
    def now(self) -> int:
        """Nanoseconds since the run began; never backwards."""

    @abstractmethod
    def submit(self, step: int, batch: Batch, sms: int) -> None:
        """Start ``batch`` on ``sms`` SMs of ``batch.partition``.

        Raises NexusbenchError if the partition's queue is full (``spec.depth``) or ``sms`` is out
        of range.
        """

    def transfer(self, number: int, source: int, target: int, num_bytes: float) -> None:
        """Start to copy ``num_bytes`` from a KV pool to another; its end is an output of ``wait``.

        Raises NexusbenchError on a device with one pool (``spec.pools``).
        """
        raise NexusbenchError(f"{self.spec.name} cannot move KV blocks")

    @abstractmethod
    def wait(self, until: int | None) -> Sequence[StepOutput | TransferOutput]:
        """Outputs of launches (and copies) that ended, in order of ``end_ns``; [] if none did
        before ``until`` (ns).

        With nothing in flight and ``until`` None it returns [] at once. Raises NexusbenchError if a
        launch failed, naming partition and step.
        """

    def wait_for_steps(self, until: int | None) -> list[StepOutput]:
        """:meth:`wait` for callers that start no copies."""
        return [output for output in self.wait(until) if isinstance(output, StepOutput)]

    def interrupt(self) -> None:  # noqa: B027 - a virtual clock never blocks
        """Make a blocked ``wait`` return early, with []; called from signal handlers."""

    def generated(self) -> Mapping[int, Sequence[int]]:
        """Token ids that each ended request got, by ``Request.index``; empty unless
        ``spec.makes_tokens``.
        """
        return {}

    def environment(self) -> dict[str, str]:
        """Versions and settings of driver and hardware, for display; they are not compared."""
        return {}

    def reseed(self, seed: int) -> None:  # noqa: B027 - only simulated devices have a noise to seed
        """Restart simulated noise from ``seed``, so that what follows does not depend on earlier
        launches. Real devices have none.
        """

    def totals(self) -> dict[str, float] | None:
        """Exact cumulative counters (``dram_bytes``, ``sm_active_ns``, ``tensor_busy_ns``,
        ``busy_ns``, ``now_ns``), or None where only hardware counters have them.
        """
        return None

    def host_gaps(self) -> Mapping[str, HostGap]:
        """By partition the time between two launches of which the second was waiting; empty where
        the device cannot tell.
        """
        return {}

    @abstractmethod
    def close(self) -> None:
        """Release threads and memory; also after an error. Calling it twice is fine."""


devices = Registry("nexusbench.devices", "device", "Device")
