"""DuetServe's partitioning optimiser (arXiv 2511.04791) over a device's legal splits."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.batch import Plan, Split
from nexusbench.core.registry import AboveZero
from nexusbench.core.specs import DeviceSpec
from nexusbench.core.state import EngineState
from nexusbench.core.units import NS_PER_MS
from nexusbench.partitioners.base import (
    Partitioner,
    PartitionerOptions,
    disjoint_splits,
    shapes_to_run,
)
from nexusbench.policies.duetserve import duets

TBT_MS = 100.0
WORTH_A_CHANGE = 0.02  # of the rate


class DuetservePartitionerOptions(PartitionerOptions, frozen=True, kw_only=True):
    """``tbt_ms``: tau, with the scheduler's meaning and default."""

    tbt_ms: AboveZero | None = None


class DuetservePartitioner(Partitioner[DuetservePartitionerOptions]):
    """The split with most tokens per time, max (k T_dec + T_pre)/max(k t_d, t_p), of those on which
    a decode step takes no longer than tau; k is what the scheduler put into the launch.

    The split in force stays if it is allowed and within 2 % of the best. Where no split is allowed
    (never with the scheduler ``duetserve``, which then does not split) decode gets the most it can.
    """

    needs_belief: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True
    source: ClassVar[str] = "DuetServe, arXiv 2511.04791"

    def initial(self, spec: DeviceSpec) -> Split:
        """Half and half, until there are two streams."""
        self._legal = disjoint_splits(spec, self.name)
        return min(self._legal, key=lambda split: abs(2 * split.sms[0] - spec.num_sms))

    def split(self, plan: Plan, state: EngineState) -> Split:
        """For two streams the best split; a batch alone runs on all SMs anyway."""
        shapes = shapes_to_run(plan, state)
        if "prefill" not in shapes or "decode" not in shapes:
            return state.split
        assert self.belief is not None
        own = self.options.tbt_ms
        bound = (own or state.limits.tbt_ms or TBT_MS) * NS_PER_MS
        decode = shapes["decode"]
        steps = range(decode.repeat, decode.repeat + 1)
        found = duets(self.belief, decode, shapes["prefill"], self._legal, bound, steps)
        if not found:
            return self._legal[0]
        best = max(found, key=lambda duet: duet.rate)
        for duet in found:
            if duet.split == state.split and duet.rate >= best.rate * (1.0 - WORTH_A_CHANGE):
                return state.split
        return best.split
