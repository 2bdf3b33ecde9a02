"""Nexus's partition controller (arXiv 2507.06608, section 4.2, Algorithm 1) over a device's legal
splits.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from nexusbench.core.batch import BatchShape, Plan, Split
from nexusbench.core.registry import AboveZero
from nexusbench.core.specs import DeviceSpec
from nexusbench.core.state import EngineState
from nexusbench.partitioners.base import (
    Partitioner,
    PartitionerOptions,
    disjoint_splits,
    shapes_to_run,
)


class NexusPartitionerOptions(PartitionerOptions, frozen=True, kw_only=True):
    """Constants of section 5, and the two choices the text leaves open.

    ``alpha`` bounds prefill's slow-down while decode is the target, ``beta`` decode's while prefill
    is; ``kv_switch`` is the share of KV memory in use up to which prefill is the target (below 0:
    never); ``delta`` the hysteresis in percent of the SMs (not published; at least one step of the
    device).
    ``reading`` of the slacks: ``literal`` as printed, or ``swapped`` (alpha for decode, beta for
    prefill), see docs/decisions/0005. ``contention`` false asks the belief without a neighbour.
    """

    alpha: AboveZero = 1.3
    beta: AboveZero = 1.1
    kv_switch: Annotated[float, msgspec.Meta(ge=-1, le=1)] = 0.7
    delta: Annotated[float, msgspec.Meta(ge=0, le=100)] = 5.0
    reading: Literal["literal", "swapped"] = "literal"
    contention: bool = True


class NexusPartitioner(Partitioner[NexusPartitionerOptions]):
    """Give the target all but the smallest share with which the other stage stays within its slack.

    Algorithm 1 walks there in steps of 1 % of the SMs; its end point depends only on the other
    stage's constraint, so we solve for it by bisection over the legal splits (or by trying them
    all, for a belief that is not monotone in SMs). Without a neighbour there is nothing to decide
    and the split stays.
    """

    needs_belief: ClassVar[bool] = True
    source: ClassVar[str] = "Nexus, arXiv 2507.06608, section 4.2, Algorithm 1; constants section 5"

    def initial(self, spec: DeviceSpec) -> Split:
        """Half and half, until both stages have something to run."""
        self._legal = disjoint_splits(spec, self.name)
        step = self._legal[1].sms[0] - self._legal[0].sms[0] if len(self._legal) > 1 else 1
        self._least_change = max(step, round(self.options.delta / 100 * spec.num_sms))
        return min(self._legal, key=lambda split: abs(2 * split.sms[0] - spec.num_sms))

    def split(self, plan: Plan, state: EngineState) -> Split:
        """Mode by KV use, then the end point of Algorithm 1, then hysteresis."""
        options = self.options
        shapes = shapes_to_run(plan, state)
        if "prefill" not in shapes or "decode" not in shapes:
            return state.split
        prefill_first = state.kv.usage <= options.kv_switch
        self.mode = "prefill-prioritized" if prefill_first else "decode-prioritized"
        slack = options.beta if prefill_first == (options.reading == "literal") else options.alpha
        wanted = self._solve(shapes["prefill"], shapes["decode"], prefill_first, slack)
        return self.settle(wanted, state, self._least_change)

    def _solve(
        self, prefill: BatchShape, decode: BatchShape, prefill_first: bool, slack: float
    ) -> Split:
        """The split that gives the other stage the fewest SMs within ``slack`` of its time on all
        SMs.

        T_opt is taken without contention: with all SMs the other stage has no neighbour (notes to
        4.1.1). Where no legal split is within the slack, the other stage gets the most it can.
        """
        belief, options = self.belief, self.options
        assert belief is not None
        target, other = (prefill, decode) if prefill_first else (decode, prefill)
        all_sms = sum(self._legal[0].sms)
        bound = slack * belief.predict(other, all_sms)
        side = 1 if prefill_first else 0  # where the other stage's SMs stand in a split
        # Positions in order of the other stage's growing share; decode's grows towards the front.
        order = range(len(self._legal) - 1, -1, -1) if prefill_first else range(len(self._legal))
        if not belief.monotone:
            own_sms = [self._legal[i].sms[side] for i in order]
            target_sms = [all_sms - own for own in own_sms]
            beside = (target, target_sms) if options.contention else ()
            times = belief.predict_splits(other, own_sms, *beside)
            first = next((i for i, time in enumerate(times) if time <= bound), len(times) - 1)
            return self._legal[order[first]]
        low, high = 0, len(order) - 1
        while low < high:
            middle = (low + high) // 2
            split = self._legal[order[middle]]
            own = split.sms[side]
            neighbour = (target, all_sms - own) if options.contention else None
            if belief.predict(other, own, neighbour) <= bound:
                high = middle
            else:
                low = middle + 1
        return self._legal[order[low]]
