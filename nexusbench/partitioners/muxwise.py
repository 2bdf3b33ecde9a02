"""MuxWise's dispatcher (arXiv 2504.14489): the fewest SMs with which decode keeps its bound in the
worst case.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from nexusbench.core.batch import Batch, BatchShape, Plan, Split
from nexusbench.core.registry import AboveZero
from nexusbench.core.specs import DeviceSpec
from nexusbench.core.state import EngineState
from nexusbench.core.units import NS_PER_MS
from nexusbench.partitioners._launches import LaunchBook
from nexusbench.partitioners.base import (
    Partitioner,
    PartitionerOptions,
    disjoint_splits,
    nearest_half,
    shapes_to_run,
)

TBT_MS = 50.0  # the paper's TBT SLO for 8B models
FIRST_TOKENS, MOST_TOKENS = 2048, 131_072  # the guard's grid: 2K to 128K tokens in powers of 4
MOST_DECODES = 1024  # and decode batches from 1 to this, in powers of 4


class MuxwisePartitionerOptions(PartitionerOptions, frozen=True, kw_only=True):
    """``tbt_ms``: the bound on a decode step; else that of ``--goodput``, else the paper's 50 ms.
    ``guard``: slow-down of a decode step beside a prefill where none was observed yet (the paper
    measured at most 1.2 on an A100, 1.3 on an H100).
    """

    tbt_ms: AboveZero | None = None
    guard: Annotated[float, msgspec.Meta(ge=1)] = 1.3


class MuxwisePartitioner(Partitioner[MuxwisePartitionerOptions]):
    """The smallest decode partition whose worst case keeps the TBT bound; the rest to prefill.

    Worst case = the predicted step alone x the largest slow-down observed in its cell of
    (new and reused prefill tokens, decode batch and context, decode SMs). Where no split keeps the
    bound, decode gets the most it can. Deviations: the paper profiles the grid offline (12 h) and
    refreshes it; here each cell starts at ``guard`` and holds what the run has shown, the belief's
    error included. All legal splits are used, not only multiples of 16 SMs.
    """

    needs_belief: ClassVar[bool] = True
    source: ClassVar[str] = "MuxWise, arXiv 2504.14489: dispatcher and contention guard"

    def initial(self, spec: DeviceSpec) -> Split:
        """Half and half, until both sides have something to run."""
        options = self.options
        # In order of decode's growing share.
        self._legal = disjoint_splits(spec, self.name)[::-1]
        self._book = LaunchBook(options.idle)
        self._slowdown: dict[tuple[int, ...], float] = {}
        return nearest_half(self._legal, spec.num_sms)

    def split(self, plan: Plan, state: EngineState) -> Split:
        """For each launch beside a neighbour; without one there is nothing to decide."""
        shapes, split = shapes_to_run(plan, state), state.split
        if "prefill" in shapes and "decode" in shapes:
            options = self.options
            bound = NS_PER_MS * (options.tbt_ms or state.limits.tbt_ms or TBT_MS)
            self.mode = "decode within its bound"
            split = self.settle(self._smallest(shapes, bound), state, 1)
        self._book.note(plan, split, state)
        return split

    def _smallest(self, shapes: dict[str, BatchShape], bound: float) -> Split:
        prefill, decode = shapes["prefill"], shapes["decode"]
        for split in self._legal[self._first(decode, bound) :]:
            if self.worst(prefill, decode, split) <= bound:
                return split
        self.mode = "no split within decode's bound"
        return self._legal[-1]

    def _first(self, decode: BatchShape, bound: float) -> int:
        """A position before which even the step alone takes too long."""
        belief = self.belief
        assert belief is not None
        low, high = 0, len(self._legal) - 1 if belief.monotone else 0
        while low < high:
            middle = (low + high) // 2
            if belief.predict(decode, self._legal[middle].of("decode")) <= bound:
                high = middle
            else:
                low = middle + 1
        return low

    def worst(self, prefill: BatchShape, decode: BatchShape, split: Split) -> float:
        """Worst-case ns of a decode step beside ``prefill``, from what was observed so far."""
        options, sms = self.options, split.of("decode")
        assert self.belief is not None
        slowdown = self._slowdown.get(_cell(prefill, decode, sms), options.guard)
        return self.belief.predict(decode, sms) * slowdown

    def completed(self, batch: Batch, now: int) -> None:
        """Record the slow-down of a decode step that ran beside a prefill on SMs of its own."""
        launch = self._book.ended(batch, now)
        if launch is None or launch.beside is None or batch.chunks or not batch.decodes:
            return
        prefill, sms = launch.beside
        if not prefill.chunks or sms + launch.sms > sum(self._legal[0].sms):
            return
        assert self.belief is not None
        alone = self.belief.predict(batch.shape, launch.sms) / batch.repeat
        cell = _cell(prefill, batch.shape, launch.sms)
        self._slowdown[cell] = max(self._slowdown.get(cell, 1.0), launch.ns / alone)


def _cell(prefill: BatchShape, decode: BatchShape, sms: int) -> tuple[int, ...]:
    """The cell of the guard's grid."""
    new = reused = 0
    for tokens, context in prefill.chunks:
        new += tokens
        reused += context
    return (
        _power(new, FIRST_TOKENS, MOST_TOKENS), _power(reused, FIRST_TOKENS, MOST_TOKENS),
        _power(decode.num_decodes, 1, MOST_DECODES),
        _power(decode.decode_context, FIRST_TOKENS, MOST_TOKENS), sms,
    )  # fmt: skip


def _power(count: int, first: int, most: int) -> int:
    """The smallest first x 4^n, at most ``most``, that ``count`` does not exceed."""
    edge = first
    while edge < count and edge < most:
        edge *= 4
    return edge
