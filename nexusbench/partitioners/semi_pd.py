"""semi-PD's SLO-aware partitioning (arXiv 2504.19867, Algorithm 1)."""

from __future__ import annotations

from collections import deque
from typing import Annotated, ClassVar, Literal

import msgspec

from nexusbench.core.batch import Batch, Plan, Split
from nexusbench.core.registry import AboveZero, AtLeastOne
from nexusbench.core.specs import DeviceSpec
from nexusbench.core.state import EngineState
from nexusbench.core.units import NS_PER_MS
from nexusbench.partitioners._latency import (
    UNBOUNDED,
    LatencyWindow,
    Observation,
    fit_line,
    queueing,
)
from nexusbench.partitioners._launches import LaunchBook
from nexusbench.partitioners.base import (
    Partitioner,
    PartitionerOptions,
    disjoint_splits,
    nearest_half,
)

TTFT_MS, TPOT_MS = 2250.0, 130.0  # the paper's tight SLO for an 8B model on LongBench
UpTo100 = Annotated[float, msgspec.Meta(gt=0, le=100)]
HISTORY = 8  # windows that the slopes of the models are fitted to


class SemiPdPartitionerOptions(PartitionerOptions, frozen=True, kw_only=True):
    """``ttft_ms``, ``tbt_ms``: the SLO; else that of ``--goodput``, else the paper's 2,250 and 130
    ms. ``both`` is what happens when both are violated: ``keep`` the split (the paper's prose) or
    give ``prefill`` more (its printed algorithm). ``guard``: no step that the model says would
    break the SLO that holds; false as printed.

    The paper prints no values for the rest, so these are our choice: ``percentile`` of the
    latencies in a ``window`` of so many launches, at most ``max_step`` steps of ``step_size``
    percent of the SMs (at least one legal split) per window.
    """

    ttft_ms: AboveZero | None = None
    tbt_ms: AboveZero | None = None
    both: Literal["keep", "prefill"] = "keep"
    guard: bool = True
    percentile: UpTo100 = 90.0
    window: AtLeastOne = 100
    max_step: AtLeastOne = 4
    step_size: UpTo100 = 5.0


class SemiPdPartitioner(Partitioner[SemiPdPartitionerOptions]):
    """Moves SMs to the stage that violates its SLO, as many as its latency model requires.

    TTFT = a1 / (x - lambda) + b1 and TPOT = a2 / y + b2 in percent of the SMs, refitted after each
    window; lambda comes from the last prompts' arrivals and service times. Until a fit has two
    splits to compare, the slopes are those of the paper's assumption that latency is inverse in
    SMs. Deviations: green contexts are disjoint, so x + y = 100 always (MPS percentages may
    overlap); ``step``, which the printed loop never increments, counts its turns, and the loop ends
    at the last legal split; TPOT is observed inside the window. Delayed and asynchronous switching
    is what the engine does anyway. The guard is ours: under overload the stage that fails first
    would take all, both then fail, and the prose keeps that split for ever (docs/log.md).
    """

    source: ClassVar[str] = "semi-PD, arXiv 2504.19867, Algorithm 1 and Eq. 1-4"

    def initial(self, spec: DeviceSpec) -> Split:
        """Half and half."""
        options = self.options
        self._legal = disjoint_splits(spec, self.name)
        step = self._legal[1].sms[0] - self._legal[0].sms[0] if len(self._legal) > 1 else 1
        self._stride = max(1, round(options.step_size / 100 * spec.num_sms / step))
        self._book = LaunchBook(options.idle)
        self._window = LatencyWindow(spec.num_sms)
        self._split = nearest_half(self._legal, spec.num_sms)
        self._ttft: deque[tuple[float, float]] = deque(maxlen=HISTORY)  # (1/(x - lambda), ns)
        self._tpot: deque[tuple[float, float]] = deque(maxlen=HISTORY)  # (1/y, ns)
        self._seen: Observation | None = None
        return self._split

    def completed(self, batch: Batch, now: int) -> None:
        """Observe; at the end of a window refit both models."""
        options = self.options
        self._window.add(batch, self._book.ended(batch, now), now)
        if self._window.launches < options.window:
            return
        seen = self._seen = self._window.close(options.percentile, now)
        if seen.ttft is not None:
            v = queueing(self._percent(self._split, 0), seen.load)
            if v < UNBOUNDED:
                self._ttft.append((v, seen.ttft))
        if seen.tpot is not None:
            self._tpot.append((1.0 / self._percent(self._split, 1), seen.tpot))

    def split(self, plan: Plan, state: EngineState) -> Split:
        """Once a window: Algorithm 1. Else the split in force."""
        split = state.split
        if self._seen is not None:
            split = self.settle(self._adjusted(self._seen, state), state, 1)
            self._seen = None
        self._split = split
        self._book.note(plan, split, state)
        return split

    def _adjusted(self, seen: Observation, state: EngineState) -> Split:
        options, limits, current = self.options, state.limits, state.split
        ttft = NS_PER_MS * (options.ttft_ms or limits.ttft_ms or TTFT_MS)
        tpot = NS_PER_MS * (options.tbt_ms or limits.tbt_ms or TPOT_MS)
        late = seen.ttft is not None and seen.ttft > ttft
        slow = seen.tpot is not None and seen.tpot > tpot
        if late == slow and (not late or options.both == "keep"):
            return current
        self.mode = "TTFT violated" if late else "TPOT violated"
        at, stride = self._legal.index(current), self._stride if late else -self._stride
        for _ in range(options.max_step):
            split = self._legal[at]
            estimate = self.ttft(split, seen) if late else self.tpot(split)
            if estimate <= (ttft if late else tpot):
                break
            onward = min(len(self._legal) - 1, max(0, at + stride))
            if options.guard and late != slow:
                split = self._legal[onward]
                if self.tpot(split) > tpot if late else self.ttft(split, seen) > ttft:
                    break
            at = onward
        return self._legal[at]

    def ttft(self, split: Split, seen: Observation) -> float:
        """Estimated ns under ``split`` at the load that was ``seen``; 0 while no prompt was."""
        v = queueing(self._percent(split, 0), seen.load)
        if v == UNBOUNDED or not self._ttft:
            return UNBOUNDED if seen.ttft is not None else 0.0
        return fit_line(self._ttft, 100.0 * seen.prompt_ns).at(v)

    def tpot(self, split: Split) -> float:
        """Estimated ns under ``split``; 0 while no decode was seen."""
        if not self._tpot:
            return 0.0
        v, ns = self._tpot[-1]
        return fit_line(self._tpot, ns / v).at(1.0 / self._percent(split, 1))

    def _percent(self, split: Split, side: int) -> float:
        return 100.0 * split.sms[side] / sum(self._legal[0].sms)
