"""Bullet's resource manager (arXiv 2504.19516, Algorithm 1): SMs by the SLOs in danger."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from nexusbench.core.batch import Batch, BatchShape, Plan, Split
from nexusbench.core.registry import AboveZero
from nexusbench.core.specs import DeviceSpec
from nexusbench.core.state import EngineState
from nexusbench.partitioners.base import (
    Partitioner,
    PartitionerOptions,
    disjoint_splits,
    nearest_half,
    shapes_to_run,
)
from nexusbench.policies.bullet import BulletSlo, Pace, PromptsAtHand, expected


class BulletPartitionerOptions(PartitionerOptions, frozen=True, kw_only=True):
    """SLOs, with the scheduler's meanings and defaults."""

    norm_ttft_ms: AboveZero | None = None
    ttft_ms: AboveZero | None = None
    tbt_ms: AboveZero | None = None


class BulletPartitioner(Partitioner[BulletPartitionerOptions]):
    """By P90 of TPOT and the predicted TTFT of all waiting prompts, at each launch of a side:

    ``reduce-decode`` (TPOT holds): decode gets the fewest SMs on which a step keeps the TPOT SLO.
    ``reduce-prefill`` (only TPOT breaks): prefill gets the fewest with which no TTFT breaks.
    ``balanced`` (both break): the split whose worse side, over its SLO, is least bad.
    How far the three calls of Algorithm 1 go is not in our sources: each end point here is solved
    for. A launch keeps its SMs to its end, so decode is not reduced so far that a step outlasts the
    prompts at hand, whose SMs would then idle (ours). Decode gives SMs back by two steps or more
    only (no flapping), and takes them at once. A
    paused decode (the scheduler's doing) leaves prefill alone, hence with all SMs. Splits do not
    overlap, as Bullet's may partly.
    """

    needs_belief: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True
    source: ClassVar[str] = "Bullet, arXiv 2504.19516, section 3 and Algorithm 1"

    def initial(self, spec: DeviceSpec) -> Split:
        """Half and half, until both sides have something to run."""
        self._pace = Pace()
        self._legal = disjoint_splits(spec, self.name)
        return nearest_half(self._legal, spec.num_sms)

    def completed(self, batch: Batch, now: int) -> None:
        """Note first tokens."""
        self._pace.completed(batch, now)

    def split(self, plan: Plan, state: EngineState) -> Split:
        """Algorithm 1's choice of resources, over the legal splits."""
        shapes = shapes_to_run(plan, state)
        if "prefill" not in shapes or "decode" not in shapes:
            return state.split
        slo = expected(self.options, state.limits)
        prefill, decode = shapes["prefill"], shapes["decode"]
        current = self._legal.index(state.split)
        self._pace.forget(state.decoding)
        step = self._step(decode, prefill, current)
        assert self.belief is not None
        prompts = PromptsAtHand(self.belief, prefill, state)
        if not self._pace.late(state.decoding, state.now + step, slo.tpot):
            self.mode = "reduce-decode"
            outlast = prompts.outlasts(slo.tpot)

            def enough(position: int) -> bool:
                time = self._step(decode, prefill, position)
                return time <= slo.tpot and outlast(time, self._legal[position].sms[0])

            return self._legal[self._reduce_decode(enough, current)]
        ttft = prompts.worst_ttft(slo)

        def ratio(position: int) -> float:
            return ttft(self._legal[position].sms[0])

        if ratio(current) <= 1.0:
            self.mode = "reduce-prefill"
            while current > 0 and ratio(current - 1) <= 1.0:
                current -= 1
            return self._legal[current]
        self.mode = "balanced"
        return self._legal[self._balance(decode, prefill, ratio, slo)]

    def _step(self, decode: BatchShape, prefill: BatchShape, position: int) -> float:
        """Nanoseconds of a decode step under a legal split, beside that prefill."""
        assert self.belief is not None
        beside, own = self._legal[position].sms
        return self.belief.predict(decode, own, (prefill, beside)) / decode.repeat

    def _reduce_decode(self, enough: Callable[[int], bool], current: int) -> int:
        """From the split in force to the one with the fewest SMs that are enough."""
        if not enough(current):
            while current > 0 and not enough(current):
                current -= 1
            return current
        last, least = len(self._legal) - 1, current
        while least < last and enough(least + 1):
            least += 1
        return least if least > current + 1 else current

    def _balance(
        self, decode: BatchShape, prefill: BatchShape, ratio: Callable[[int], float], slo: BulletSlo
    ) -> int:
        """Where both are as much over their SLOs: TTFT falls with prefill's share, TPOT rises."""
        low, high = 0, len(self._legal) - 1
        while low < high:
            middle = (low + high) // 2
            if ratio(middle) <= self._step(decode, prefill, middle) / slo.tpot:
                high = middle
            else:
                low = middle + 1
        before = max(0, low - 1)
        tpot = self._step(decode, prefill, low) / slo.tpot
        return before if ratio(before) < tpot else low
