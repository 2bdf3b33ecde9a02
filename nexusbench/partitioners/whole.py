"""No partition: one stream has the whole GPU."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.batch import Plan, Split
from nexusbench.core.specs import DeviceSpec
from nexusbench.core.state import EngineState
from nexusbench.partitioners.base import Partitioner


class WholePartitioner(Partitioner):
    """All SMs to the partition ``all``; for two partitions, the overlapping (100 %, 100 %)
    two-stream split, or a GPU each where there are two.
    """

    serves: ClassVar[tuple[tuple[str, ...], ...]] = (("all",), ("prefill", "decode"))
    num_gpus: ClassVar[tuple[int, ...]] = (1, 2)
    source: ClassVar[str] = (
        "unpartitioned; semi-PD's (100,100) baseline (2504.19867) for two streams"
    )

    def initial(self, spec: DeviceSpec) -> Split:
        """The whole device, or the overlapping split."""
        if self.partitions == ("all",):
            return spec.whole
        if spec.num_gpus > 1:
            return spec.splits[-1]
        return next(split for split in spec.splits if split.overlapping)

    def split(self, plan: Plan, state: EngineState) -> Split:
        """Never changes."""
        return state.split
