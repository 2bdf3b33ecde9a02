"""A fixed split: the baseline for dynamic ones."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.batch import Plan, Split
from nexusbench.core.registry import Percent
from nexusbench.core.specs import DeviceSpec
from nexusbench.core.state import EngineState
from nexusbench.partitioners.base import Partitioner, PartitionerOptions, disjoint_splits


class FixedPartitionerOptions(PartitionerOptions, frozen=True, kw_only=True):
    """``prefill``: percent of the SMs for prefill; the nearest legal split is used. For streams
    that are not partitioned there is ``--partitioner whole``.
    """

    prefill: Percent = 50.0


class FixedPartitioner(Partitioner[FixedPartitionerOptions]):
    """The legal split whose prefill share is nearest to ``prefill`` percent, for ever."""

    advised: ClassVar[tuple[str, ...]] = ("prefill=30", "prefill=50", "prefill=70")
    source: ClassVar[str] = (
        "static partition, e.g. Nexus section 6.5 (Nexus-Wo-SC; its share is not published)"
    )

    def initial(self, spec: DeviceSpec) -> Split:
        """The nearest legal split."""
        percent = self.options.prefill
        legal = disjoint_splits(spec, self.name)
        return min(legal, key=lambda split: abs(100 * split.sms[0] / spec.num_sms - percent))

    def split(self, plan: Plan, state: EngineState) -> Split:
        """Never changes."""
        return state.split
