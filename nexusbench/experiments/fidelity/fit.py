"""Fit a GPU's constants to one half of a table of kernels: how ``data/gpus/*.toml`` was made."""

from __future__ import annotations

import msgspec
import numpy as np

from nexusbench.core.errors import InputError
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.experiments.fidelity.kernels import read_samples
from nexusbench.experiments.fidelity.nelder_mead import Vector, nelder_mead

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
    "mla": {
        "latent_efficiency": (0.3, 1.0),
        "latent_sm_gbps": (5.0, 200.0),
        "latent_tile_us": (0.0, 20.0),
        "latent_launch_us": (1.0, 200.0),
        "latent_combine_us": (0.0, 50.0),
        "latent_passes": (0.5, 10.0),
        "latent_overlap": (0.0, 1.0),
        "latent_token_us": (0.0, 20.0),
        "latent_prefill_block": (0.3, 3.0),
        "latent_prefill_passes": (0.5, 10.0),
        "latent_prefill_launch_us": (1.0, 200.0),
    },
    "window": {
        "window_tile_us": (0.0, 8.0),
        "window_write_us": (0.0, 4.0),
        "window_hidden": (0.0, 1.0),
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
        own = [s for s in samples if s.fitted and _family(s.operator) == family]
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


def _family(operator: str) -> str:
    """``attention`` of ``attention decode``, ``mla`` of ``mla-decode``."""
    return operator.split(" ")[0].removesuffix("-prefill").removesuffix("-decode")
