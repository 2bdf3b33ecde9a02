"""The partitioner seam: how many SMs each partition gets, and the limits on changes of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec

from nexusbench.core.batch import Batch, Plan, Split
from nexusbench.core.errors import UsageError
from nexusbench.core.parts import parts_of
from nexusbench.core.registry import NotNegative, Policy, Registry
from nexusbench.core.specs import DeviceSpec
from nexusbench.core.state import EngineState, shapes_to_run
from nexusbench.core.units import NS_PER_MS
from nexusbench.costs.base import CostModel

__all__ = ["Partitioner", "PartitionerOptions", "disjoint_splits", "partitioners", "shapes_to_run"]


class PartitionerOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options that every partitioner has.

    ``idle``: what a lone batch gets while the neighbour has nothing to run: ``expand`` to all SMs,
    or ``reserve`` (keep to its share). ``min_interval_ms``: re-partition budget, the shortest time
    between two changes.
    """

    idle: Literal["expand", "reserve"] = "expand"
    min_interval_ms: NotNegative = 0.0


if TYPE_CHECKING:  # as for schedulers: Partitioner alone is Partitioner[PartitionerOptions]
    from typing_extensions import TypeVar

    OptionsT = TypeVar(
        "OptionsT", bound=PartitionerOptions, default=PartitionerOptions, covariant=True
    )
else:
    from nexusbench.core.registry import OptionsT


class Partitioner(Policy[OptionsT]):
    """Sizes the partitions for what is about to be launched.

    ``partitions`` names the partition sets it can serve; ``belief`` is the cost model it asks, or
    None. ``mode`` is logged with every change of split.
    """

    Options: ClassVar[type[msgspec.Struct]] = PartitionerOptions
    kind: ClassVar[str] = "partitioner"
    serves: ClassVar[tuple[tuple[str, ...], ...]] = (("prefill", "decode"),)
    needs_belief: ClassVar[bool] = False
    num_gpus: ClassVar[tuple[int, ...]] = (1,)  # how many GPUs with a KV pool each it can divide
    calibrates: ClassVar[bool] = False  # its belief follows the device while it serves
    # Options worth trying on unknown traffic, as typed after the name; advise compares them.
    advised: ClassVar[tuple[str, ...]] = ("",)
    source: ClassVar[str] = ""

    def __init__(
        self,
        options: OptionsT | None = None,
        *,
        partitions: tuple[str, ...] = ("prefill", "decode"),
        belief: CostModel | None = None,
    ) -> None:
        super().__init__(options)
        self.partitions = partitions
        self.belief = belief
        self.mode = "initial"
        self._changed_at: int | None = None

    @abstractmethod
    def initial(self, spec: DeviceSpec) -> Split:
        """The split in force before anything ran; one of the device's legal ones."""

    @abstractmethod
    def split(self, plan: Plan, state: EngineState) -> Split:
        """The split for ``plan``, one of ``state.device.splits`` (or its ``whole``)."""

    def completed(self, batch: Batch, now: int) -> None:
        """As :meth:`Scheduler.completed`."""

    def settle(self, wanted: Split, state: EngineState, least_change: int) -> Split:
        """Hysteresis and budget: the split in force, unless ``wanted`` is worth the change and due.

        ``least_change`` is in SMs of the first partition, compared with the last *applied* split
        (Nexus Algorithm 1, its buffer), not with the last wanted one, so slow drifts do get
        through.
        """
        current = state.split
        if abs(wanted.sms[0] - current.sms[0]) < least_change:
            return current
        wait = self.options.min_interval_ms * NS_PER_MS
        if self._changed_at is not None and state.now - self._changed_at < wait:
            return current
        if wanted != current:
            self._changed_at = state.now
        return wanted


def disjoint_splits(spec: DeviceSpec, policy: str) -> list[Split]:
    """The legal splits in which no SM is shared. Raises UsageError if the device has none."""
    legal = [split for split in spec.splits if not split.overlapping]
    if not legal:
        raise UsageError(
            f"partitioner '{policy}' cannot split {spec.name}: its {spec.num_sms} "
            f"{parts_of(spec.name)} do not make two partitions. Use --partitioner whole"
        )
    return legal


def nearest_half(splits: Sequence[Split], num_sms: int) -> Split:
    """The split whose first side is nearest to half of the SMs; the first of equally near ones."""
    return min(splits, key=lambda split: abs(2 * split.sms[0] - num_sms))


partitioners = Registry("nexusbench.partitioners", "partitioner", "Partitioner")
