"""One measured operator time beside what the physics says."""

from __future__ import annotations

import msgspec


class KernelSample(msgspec.Struct, frozen=True, gc=False):
    """``fitted``: it is in the half that the GPU's constants were fitted on. ``curve`` names the
    curve over ``count`` that a table would hold it in, None if it stands in none.
    """

    operator: str
    measured_us: float
    physics_us: float
    fitted: bool = False
    curve: tuple[object, ...] | None = None
    count: int = 0


class KernelSamples(msgspec.Struct):
    """What a table holds. ``held_out``: (operator, interpolated, measured) in us of the rows that
    were left out of a grid; ``notes``: what was left out of the scoring.
    """

    samples: list[KernelSample]
    held_out: list[tuple[str, float, float]] = []
    notes: list[str] = []
