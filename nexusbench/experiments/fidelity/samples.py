"""One measured operator time beside what the physics says."""

from __future__ import annotations

import msgspec

from nexusbench.experiments.fidelity.partitions.halves import may_be_fitted


class KernelSample(msgspec.Struct, frozen=True, gc=False):
    """``fitted``: it is in the half that the GPU's constants were fitted on. ``curve`` names the
    curve over ``count`` that a table would hold it in, None if it stands in none. ``shape`` names
    the whole shape that a new fit may take or leave; '': ``fitted`` says that, of whole shapes too.
    """

    operator: str
    measured_us: float
    physics_us: float
    fitted: bool = False
    curve: tuple[object, ...] | None = None
    count: int = 0
    shape: str = ""

    @property
    def may_be_fitted(self) -> bool:
        """Whether constants may be fitted on it anew; else it judges them."""
        return may_be_fitted(self.shape) if self.shape else self.fitted


class KernelSamples(msgspec.Struct):
    """What a table holds. ``held_out``: (operator, interpolated, measured) in us of the rows that
    were left out of a grid; ``notes``: what was left out of the scoring.
    """

    samples: list[KernelSample]
    held_out: list[tuple[str, float, float]] = []
    notes: list[str] = []
