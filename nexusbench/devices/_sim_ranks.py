"""Data-parallel ranks of a simulated device: GPUs (or groups of them) on one virtual clock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from nexusbench.core.batch import Batch, StepOutput, TransferOutput
from nexusbench.core.errors import NexusbenchError
from nexusbench.devices.base import Ranks
from nexusbench.physics.lockstep import Lockstep

if TYPE_CHECKING:
    from nexusbench.devices.sim import Sim

Outputs = list[tuple[int, StepOutput | TransferOutput]]


class FreeRanks(Ranks):
    """Ranks that share nothing but the clock."""

    def __init__(self, sims: Sequence[Sim]) -> None:
        self.devices = self._sims = tuple(sims)

    @property
    def accepting(self) -> bool:
        """Always."""
        return True

    def start(self) -> None:
        """The virtual clock stands at 0 until work is submitted."""

    def now(self) -> int:
        """Virtual nanoseconds."""
        return self._sims[0].now()

    def wait(self, until: int | None) -> Outputs:
        """Advance the clock of all to the first end, or to ``until`` if that is earlier."""
        ends = [end for sim in self._sims if (end := sim.next_end) is not None]
        due = min(ends) if ends else None
        if until is not None and (due is None or until < due):
            due = until
        found: Outputs = []
        if due is None:
            return found
        for number, sim in enumerate(self._sims):
            while (end := sim.next_end) is not None and end <= due:
                found += [(number, output) for output in sim.wait(due)]
            sim.wait(due)
        return found


class LockstepRanks(FreeRanks):
    """Ranks that step together: a step begins when the clock is to go on and lasts equally long on
    all of them.
    """

    def __init__(self, sims: Sequence[Sim], physics: Lockstep, seed: int) -> None:
        super().__init__(sims)
        self._physics, self._noise = physics, random.Random(seed)
        self._jitter = sims[0].gpu.sim.jitter
        self._submitted: dict[int, tuple[int, Batch]] = {}
        for number, sim in enumerate(sims):
            sim.taker = partial(self.submit, number)

    @property
    def accepting(self) -> bool:
        """Not while a step is under way."""
        return all(sim.next_end is None for sim in self._sims)

    def submit(self, rank: int, step: int, batch: Batch) -> None:
        """What ``rank`` computes in the next step. Raises NexusbenchError during one."""
        if rank in self._submitted or not self.accepting:
            raise NexusbenchError(f"a step of {self._sims[rank].spec.name} is under way")
        self._submitted[rank] = step, batch

    def wait(self, until: int | None) -> Outputs:
        """Begin the step that was submitted; then as :meth:`FreeRanks.wait`."""
        if self._submitted:
            self._begin()
        return super().wait(until)

    def _begin(self) -> None:
        """Start the step on every rank that has something to compute."""
        asked, self._submitted = self._submitted, {}
        shapes = [
            asked[rank][1].shape if rank in asked else None for rank in range(len(self._sims))
        ]
        load = self._physics.load(shapes)
        solo = load.solo * (1.0 + self._jitter * (2.0 * self._noise.random() - 1.0))
        for rank, (step, batch) in asked.items():
            self._sims[rank].launch(step, batch, load, solo)
