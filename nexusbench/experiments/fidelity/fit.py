"""Fit a GPU's constants to one half of a table of kernels: how ``data/gpus/*.toml`` was made."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from nexusbench.core.errors import InputError
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.experiments.fidelity.kernels import read_samples

Vector = npt.NDArray[np.float64]
# Constants of SimConstants by family, and how far each may go.
BOUNDS = {
    "gemm": {
        "dense_efficiency": (0.3, 1.0),
        "bandwidth_efficiency": (0.5, 1.0),
        "dense_launch_us": (0.5, 10.0),
        "dense_wave_share": (0.0, 1.0),
        "dense_overlap": (0.0, 1.0),
        "dense_depth_us": (0.0, 2.0),
        "dense_epilogue_us": (0.0, 5.0),
        "dense_split_us": (0.0, 4.0),
    },
    "attention": {
        "attention_efficiency": (0.3, 1.0),
        "attention_launch_us": (1.0, 15.0),
        "attention_tile_us": (0.0, 8.0),
        "attention_block_us": (0.0, 4.0),
        "attention_empty_us": (0.0, 2.0),
        "attention_tail": (0.0, 1.0),
        "attention_overlap": (0.0, 1.0),
        "attention_combine_us": (0.0, 8.0),
        "attention_swap_us": (0.0, 8.0),
        "l2_share": (0.2, 1.0),
        "l2_gbps": (800.0, 9000.0),
    },
}
THIN = 12  # of large tables every so many rows are enough for a dozen constants


class FittedConstants(msgspec.Struct, frozen=True):
    """Constants, and the mean size of the error (%) on the fitted half before and after."""

    constants: dict[str, float]
    before: float
    after: float


def fit(
    gpu: GpuSpec, gpu_name: str, model: ModelSpec, table: str, family: str, evaluations: int = 400
) -> FittedConstants:
    """Constants of ``family`` (a key of BOUNDS) that minimise MAPE on the half of ``table`` that
    the scores call fitted. Starts from ``gpu``'s own; deterministic. Raises InputError if the table
    has no such half for this GPU.
    """
    bounds = BOUNDS[family]
    low, high = (np.array(side) for side in zip(*bounds.values(), strict=True))
    start = np.array([getattr(gpu.sim, name) for name in bounds])
    scale = np.maximum(np.abs(start), 0.02 * high)

    def with_(values: Vector) -> GpuSpec:
        changes = dict(zip(bounds, values.tolist(), strict=True))
        return msgspec.structs.replace(gpu, sim=msgspec.structs.replace(gpu.sim, **changes))

    def loss(scaled: Vector) -> float:
        values = np.clip(scaled * scale, low, high)
        outside = float(np.abs((scaled * scale - values) / scale).sum())
        samples = read_samples(with_(values), gpu_name, model, table, THIN).samples
        own = [s for s in samples if s.fitted and s.operator.split(" ")[0] == family]
        if not own:
            raise InputError(
                f"has no half to fit {family} of this GPU on",
                file=table,
                hint="See docs/fidelity.md",
            )
        relative = np.array([s.physics_us / s.measured_us for s in own]) - 1.0
        return 100.0 * (float(np.abs(relative).mean()) + outside)

    before = loss(start / scale)
    best, after = nelder_mead(loss, start / scale, evaluations)
    values = np.clip(best * scale, low, high)
    rounded = {name: float(f"{value:.3g}") for name, value in zip(bounds, values, strict=True)}
    return FittedConstants(rounded, before, after)


def nelder_mead(
    loss: Callable[[Vector], float], start: Vector, evaluations: int
) -> tuple[Vector, float]:
    """The best point found and its loss: Nelder and Mead's simplex with the dimension-dependent
    steps of Gao and Han (2012).
    """
    n = len(start)
    expand, contract, shrink = 1 + 2 / n, 0.75 - 1 / (2 * n), 1 - 1 / n
    simplex = [start] + [start + 0.15 * row for row in np.eye(n)]
    losses = [loss(point) for point in simplex]
    used = n + 1
    while used < evaluations:
        order = np.argsort(losses, kind="stable")
        simplex, losses = [simplex[i] for i in order], [losses[i] for i in order]
        centre = np.mean(simplex[:-1], axis=0)
        step = centre - simplex[-1]
        point = centre + step
        value = loss(point)
        used += 1
        if value < losses[0]:
            further = centre + expand * step
            beyond = loss(further)
            used += 1
            if beyond < value:
                point, value = further, beyond
        elif value >= losses[-2]:
            nearer = centre + (contract if value < losses[-1] else -contract) * step
            inside = loss(nearer)
            used += 1
            if inside < min(value, losses[-1]):
                point, value = nearer, inside
            elif value >= losses[-1]:
                simplex = [simplex[0] + shrink * (p - simplex[0]) for p in simplex]
                losses = [losses[0]] + [loss(p) for p in simplex[1:]]
                used += n
                continue
        simplex[-1], losses[-1] = point, value
    best = int(np.argmin(losses))
    return simplex[best], losses[best]
