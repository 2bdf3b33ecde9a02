"""Partitions of one GPU: disjoint sets of its SMs as green contexts, each with a stream.

How (docs/decisions/0011-green-contexts.md): ONE ``cuDevSmResourceSplitByCount`` per pair gives
prefill the group and decode the remainder, so the two are disjoint; two independent splits, such as
two of torch's ``GreenContext.create``, would overlap (pytorch #195378). The remainder has no
guarantee of co-scheduling and so goes to decode, whose kernels use no clusters. Work in the primary
context is confined to nothing, so the undivided GPU is a green context of all SMs too.

For tests on a GPU::

    partitions = open_partitions(0)
    for split in partitions.splits:              # granted counts; the last one overlaps
        sides = partitions.streams(split)        # {"prefill": Side, "decode": Side}
        with torch.cuda.stream(sides["decode"].stream): ...
    partitions.whole.stream                      # all SMs, the partition "all"
    partitions.side("prefill", 132)              # both sides may have all SMs (two streams)
    partitions.memory_per_context                # bytes, measured when they were made
    partitions.close()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgspec

from nexusbench.core.batch import Split
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.devices._cuda_driver import (
    CudaError,
    Driver,
    allow_queues,
    checked,
    load_driver,
)

PAIR = ("prefill", "decode")
ALL = "all"
# What drivers before CUDA 13.0 do not say: (smallest partition, granularity) by architecture (CUDA
# driver API, green contexts, 6.35).
_GRANULARITY = {6: (1, 1), 7: (2, 2), 8: (4, 2)}
_NEWER = (8, 8)


class Side(msgspec.Struct, frozen=True):
    """One partition with one number of SMs: a stream whose work runs there and nowhere else.

    ``sms`` are those the driver granted. ``structured``: the SMs are whole groups, so clusters
    can be scheduled. ``green`` is the driver's context, None on an unpartitioned GPU.
    """

    partition: str
    sms: int
    stream: Any  # torch.cuda.ExternalStream
    structured: bool = True
    green: Any = None


class Partitions(ABC):
    """The legal splits of a GPU, and the streams of their sides.

    ``minimum`` and ``multiple`` are the driver's granularity in SMs. A side is made when it is
    first asked for, or by :meth:`make_all`, and kept until :meth:`close`.
    """

    num_sms: int
    minimum: int
    multiple: int
    splits: tuple[Split, ...]
    memory_per_context: int | None = None  # bytes of GPU memory, as measured; None: no context yet
    num_contexts: int = 0  # green contexts made so far

    @abstractmethod
    def side(self, partition: str, sms: int) -> Side:
        """``sms`` SMs of ``partition``. Raises NexusbenchError if no legal split has it."""

    @abstractmethod
    def close(self) -> None:
        """Destroy what was made. Nothing captured on it may be replayed afterwards."""

    @property
    def whole(self) -> Side:
        """The undivided GPU."""
        return self.side(ALL, self.num_sms)

    def streams(self, split: Split) -> dict[str, Side]:
        """The sides of a legal split, by partition."""
        return {name: self.side(name, split.of(name)) for name in split.partitions}

    def make_all(self) -> None:
        """Every side of every split, so that none has to be made while requests wait."""
        for split in self.splits:
            self.streams(split)


class GreenPartitions(Partitions):
    """Green contexts, made in pairs.

    Splits are listed at once, by asking the driver what it would grant, which costs no memory; a
    pair is then two contexts of what was granted. None is destroyed while the device is open:
    destroying one under a captured graph is undefined. ``wrap`` makes torch's stream of a handle,
    ``free_bytes`` reads the GPU's free memory. Raises CudaError.
    """

    def __init__(
        self,
        driver: Driver,
        index: int,
        wrap: Callable[[int], Any],
        free_bytes: Callable[[], int],
        capability: tuple[int, int],
    ) -> None:
        self._driver, self._wrap, self._free_bytes = driver, wrap, free_bytes
        self._device = checked(driver, "cuDeviceGet", index)
        self._kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
        self._whole = checked(driver, "cuDeviceGetDevResource", self._device, self._kind)
        self.num_sms = int(self._whole.sm.smCount)
        self.minimum, self.multiple = granularity(self._whole.sm, capability)
        self._made: dict[tuple[str, int], Side] = {}
        self._contexts: list[Any] = []
        self._streams: list[Any] = []
        self._taken = 0  # bytes of GPU memory
        # Granted SMs of a pair -> what the driver gave: (group, remainder).
        self._pairs = self._possible()
        disjoint = [Split(PAIR, sms) for sms in sorted(self._pairs)]
        self.splits = (*disjoint, Split(PAIR, (self.num_sms, self.num_sms), overlapping=True))

    def side(self, partition: str, sms: int) -> Side:
        """As :meth:`Partitions.side`; both sides of a pair are made together."""
        side = self._made.get((partition, sms))
        if side is not None:
            return side
        if sms == self.num_sms:
            return self._make(partition, self._whole, structured=True)
        for granted, (group, rest) in self._pairs.items():
            if partition in PAIR and granted[PAIR.index(partition)] == sms:
                self._make("prefill", group, structured=True)
                self._make("decode", rest, structured=False)
                return self._made[partition, sms]
        raise NexusbenchError(f"no legal split gives partition '{partition}' {sms} SMs")

    def close(self) -> None:
        """As :meth:`Partitions.close`."""
        streams, self._streams = self._streams, []
        contexts, self._contexts = self._contexts, []
        self._made.clear()
        for stream in reversed(streams):
            checked(self._driver, "cuStreamDestroy", stream)
        for context in reversed(contexts):
            checked(self._driver, "cuGreenCtxDestroy", context)

    def _possible(self) -> dict[tuple[int, int], tuple[Any, Any]]:
        """What one split call gives for each number of SMs that prefill may have."""
        found: dict[tuple[int, int], tuple[Any, Any]] = {}
        first = -(-self.minimum // self.multiple) * self.multiple
        for wanted in range(first, self.num_sms - self.minimum + 1, self.multiple):
            try:
                groups, count, rest = checked(
                    self._driver, "cuDevSmResourceSplitByCount", 1, self._whole, 0, wanted
                )
            except CudaError:
                continue  # a GPU with SMs switched off may refuse some counts
            granted = int(groups[0].sm.smCount), int(rest.sm.smCount)
            if count == 1 and granted[1] >= self.minimum:
                found.setdefault(granted, (groups[0], rest))
        return found

    def _make(self, partition: str, resource: Any, *, structured: bool) -> Side:
        """A context of these SMs, and its stream."""
        driver, before = self._driver, self._free_bytes()
        default = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
        description = checked(driver, "cuDevResourceGenerateDesc", [resource], 1)
        context = checked(driver, "cuGreenCtxCreate", description, self._device, default)
        self._contexts.append(context)
        found = checked(driver, "cuGreenCtxGetDevResource", context, self._kind)
        granted, promised = int(found.sm.smCount), int(resource.sm.smCount)
        if granted != promised:
            raise CudaError(
                f"the driver promised partition '{partition}' {promised} SMs and gave {granted}"
            )
        alone = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        stream = checked(driver, "cuGreenCtxStreamCreate", context, alone, 0)
        self._streams.append(stream)
        self._taken += max(0, before - self._free_bytes())
        self.num_contexts = len(self._contexts)
        self.memory_per_context = self._taken // self.num_contexts
        side = Side(partition, granted, self._wrap(int(stream)), structured, context)
        self._made[partition, granted] = side
        return side


class Unpartitioned(Partitions):
    """``cuda:streams``: streams of the primary context, where every side has all SMs.

    For GPUs and drivers without green contexts, and as the baseline that partitions must beat.
    """

    def __init__(self, num_sms: int, new_stream: Callable[[], Any]) -> None:
        self.num_sms, self.minimum, self.multiple = num_sms, num_sms, num_sms
        self.splits = (Split(PAIR, (num_sms, num_sms), overlapping=True),)
        self._new_stream = new_stream
        self._made: dict[str, Side] = {}

    def side(self, partition: str, sms: int) -> Side:
        """A stream of its own for each partition."""
        if sms != self.num_sms:
            raise NexusbenchError(f"cuda:streams has no {sms} SMs for partition '{partition}'")
        if partition not in self._made:
            self._made[partition] = Side(partition, sms, self._new_stream())
        return self._made[partition]

    def close(self) -> None:
        """Plain streams are torch's, and stay."""
        self._made.clear()


def granularity(sm: Any, capability: tuple[int, int]) -> tuple[int, int]:
    """(smallest partition, multiple) of a device's SM resource: as the driver says, else by
    architecture.
    """
    minimum, multiple = _GRANULARITY.get(capability[0], _NEWER)
    said = getattr(sm, "minSmPartitionSize", 0), getattr(sm, "smCoscheduledAlignment", 0)
    return int(said[0] or minimum), int(said[1] or multiple)


def open_partitions(index: int = 0, *, green: bool = True) -> Partitions:
    """The partitions of GPU ``index``, or with ``green`` off plain streams without any.

    Starts CUDA and the primary context first, which every green context refers to. Raises
    UsageError where green contexts are not to be had, naming ``cuda:streams``; never falls back to
    it by itself.
    """
    import torch

    allow_queues()
    device = torch.device("cuda", index)
    torch_cuda: Any = torch.cuda  # half of it has no types
    torch_cuda.init()
    torch.cuda.set_device(device)
    torch.zeros(1, device=device)
    properties = torch.cuda.get_device_properties(device)
    if not green:
        return Unpartitioned(
            properties.multi_processor_count, lambda: torch_cuda.Stream(device=device)
        )
    try:
        return GreenPartitions(
            load_driver(),
            index,
            wrap=lambda handle: torch_cuda.ExternalStream(handle, device=device),
            free_bytes=lambda: torch.cuda.mem_get_info(device)[0],
            capability=(properties.major, properties.minor),
        )
    except (CudaError, AttributeError) as error:  # a binding that is too old lacks the functions
        raise UsageError(
            f"the SMs of {properties.name} cannot be partitioned: {error}. To serve without "
            "partitions, all SMs for both sides: --device cuda:streams"
        ) from error
