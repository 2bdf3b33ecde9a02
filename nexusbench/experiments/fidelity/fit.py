"""Fit a GPU's constants to one half of a table of kernels: how ``data/gpus/*.toml`` was made."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from nexusbench.core.errors import InputError
from nexusbench.core.kernel_constants import EXPERTS, PRODUCTS, KernelConstants
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.experiments.fidelity import sparse_tables, state_tables
from nexusbench.experiments.fidelity.kernels import read_samples
from nexusbench.experiments.fidelity.nelder_mead import Vector, nelder_mead
from nexusbench.physics.precisions import (
    kernels_of,
    latent_constants,
    sparse_constants,
    state_constants,
    window_constants,
)

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
# Of one kind of low-precision product (ProductConstants) and of experts (ExpertConstants); the
# shares of tiles stay as they are.
PRODUCT_BOUNDS = {
    "efficiency": (0.2, 1.0),
    "bandwidth_efficiency": (0.4, 1.0),
    "launch_us": (0.5, 20.0),
    "wave_share": (0.0, 1.0),
    "overlap": (0.0, 1.0),
    "depth_us": (0.0, 2.0),
    "epilogue_us": (0.0, 25.0),
}
WAVE_BOUNDS = {
    "step_us": (0.0, 2.0),
    "sm_gbps": (10.0, 400.0),
    "uneven": (1.0, 3.0),
    "single_wave": (1.0, 5.0),
}
EXPERT_BOUNDS = {
    "efficiency": (0.02, 1.0),
    "bandwidth_efficiency": (0.05, 1.0),
    "fixed_us": (1.0, 200.0),
    "remote_us": (0.0, 40.0),
    "wave_share": (0.0, 1.0),
    "overlap": (0.0, 1.0),
    "depth_us": (0.0, 3.0),
    "epilogue_us": (0.0, 20.0),
    "sm_gbps": (10.0, 400.0),
    "touched_ns": (0.0, 5000.0),
    "held_ns": (0.0, 500.0),
    "assigned_ns": (0.0, 20.0),
    "elementwise": (0.0, 6.0),
}
# What stands in [kernels] by its own name: windows, latent attention.
WINDOW_BOUNDS = {"tile_us": (0.0, 8.0), "write_us": (0.0, 4.0), "hidden": (0.0, 1.0)}
LATENT_BOUNDS = {
    "efficiency": (0.3, 1.0),
    "sm_gbps": (5.0, 200.0),
    "tile_us": (0.0, 20.0),
    "launch_us": (1.0, 200.0),
    "combine_us": (0.0, 50.0),
    "passes": (0.1, 10.0),
    "overlap": (0.0, 1.0),
    "token_us": (0.0, 20.0),
    "prefill_block": (0.1, 3.0),
    "prefill_passes": (0.1, 10.0),
    "prefill_launch_us": (1.0, 200.0),
    "graph_us": (1.0, 200.0),
    "prefill_graph_us": (1.0, 200.0),
}
SPARSE_BOUNDS = {
    "efficiency": (0.02, 1.0),
    "narrow": (0.2, 5.0),
    "padding": (0.0, 1.0),
    "gather_gbps": (5.0, 400.0),
    "tile_us": (0.0, 20.0),
    "launch_us": (1.0, 300.0),
    "token_us": (0.0, 20.0),
    "passes": (0.1, 20.0),
    "overlap": (0.0, 1.0),
    "index_efficiency": (0.05, 1.0),
    "topk_us": (0.0, 100.0),
    "prompt_topk_us": (0.0, 200.0),
    "topk_key_ns": (0.0, 10.0),
    "prompt_us": (0.0, 200.0),
}
STATE_BOUNDS = {
    "efficiency": (0.01, 1.0),
    "prepared": (0.0, 20.0),
    "tile_us": (0.0, 60.0),
    "launch_us": (0.5, 60.0),
    "passes": (0.5, 40.0),
    "overlap": (0.0, 1.0),
    "conv_us": (0.5, 20.0),
    "conv_passes": (1.0, 10.0),
    "step_us": (0.5, 20.0),
    "step_passes": (1.0, 5.0),
    "step_conv_us": (0.5, 20.0),
    "step_conv_passes": (1.0, 10.0),
    "l2_gbps": (500.0, 15000.0),
    "l2_share": (0.05, 1.5),
}
FAMILIES = (
    *BOUNDS,
    "window",
    "mla",
    *sparse_tables.KINDS,
    *state_tables.KINDS,
    *(f"gemm-{kind}" for kind in PRODUCTS),
    *("experts" if kind == "bf16" else f"experts-{kind}" for kind in EXPERTS),
)
THIN = 12  # of large tables every so many rows are enough for a dozen constants


class FittedConstants(msgspec.Struct, frozen=True):
    """Constants, and the mean size of the error (%) before and after: on the fitted half, and on
    the shapes that are held out (None where there are none).
    """

    constants: dict[str, float]
    before: float
    after: float
    held_out: tuple[float, float] | None = None


def fit(
    gpu: GpuSpec, gpu_name: str, model: ModelSpec, table: str, family: str, evaluations: int = 400
) -> FittedConstants:
    """Constants of ``family`` (one of FAMILIES) that minimise MAPE on half of ``table``, by whole
    shapes: the half that the scores call fitted where that is of whole shapes, else one by a hash
    of them. Starts from ``gpu``'s own; deterministic. Raises InputError if the table has no such
    half for this GPU.
    """
    bounds, constants, changed = _constants(gpu, family)
    low, high = (np.array(side) for side in zip(*bounds.values(), strict=True))
    start = np.array([constants[name] for name in bounds])
    scale = np.maximum(np.abs(start), 0.02 * high)

    def with_(values: Vector) -> GpuSpec:
        return changed(dict(zip(bounds, values.tolist(), strict=True)))

    def loss(scaled: Vector) -> float:
        values = np.clip(scaled * scale, low, high)
        outside = float(np.abs((scaled * scale - values) / scale).sum())
        error = half_error(values, fitted=True)
        if error is None:
            raise InputError(
                f"has no half to fit {family} of this GPU on",
                file=table,
                hint="See docs/fidelity.md",
            )
        return error + 100.0 * outside

    def half_error(values: Vector, *, fitted: bool) -> float | None:
        samples = read_samples(with_(values), gpu_name, model, table, THIN, family).samples
        own = [
            sample.physics_us / sample.measured_us
            for sample in samples
            if sample.may_be_fitted is fitted and _family(sample.operator) == family
        ]
        return 100.0 * float(np.abs(np.array(own) - 1.0).mean()) if own else None

    before = loss(start / scale)
    best, after = nelder_mead(loss, start / scale, evaluations)
    values = np.clip(best * scale, low, high)
    rounded = {name: float(f"{value:.3g}") for name, value in zip(bounds, values, strict=True)}
    ends = [half_error(point, fitted=False) for point in (start, values)]
    held_out = None if ends[0] is None or ends[1] is None else (ends[0], ends[1])
    return FittedConstants(rounded, before, after, held_out)


_Bounds = dict[str, tuple[float, float]]
_Fitting = tuple[_Bounds, dict[str, float], Callable[[dict[str, float]], GpuSpec]]


def _constants(gpu: GpuSpec, family: str) -> _Fitting:
    """(bounds, constants by name, the GPU with those of the bounds changed). Raises
    InputError for a kind of kernel whose constants are not the GPU's own.
    """
    replace = msgspec.structs.replace
    if family in BOUNDS:
        start = msgspec.structs.asdict(gpu.sim)
        return BOUNDS[family], start, lambda new: replace(gpu, sim=replace(gpu.sim, **new))
    kernels = gpu.kernels
    if family in ("window", "mla", *sparse_tables.KINDS, *state_tables.KINDS):
        return _attention_constants(gpu, family)
    group, _, kind = family.partition("-")
    field, bounds = ("products", PRODUCT_BOUNDS) if group == "gemm" else ("experts", EXPERT_BOUNDS)
    kind = kind or "bf16"
    own = getattr(kernels, field) if isinstance(kernels, KernelConstants) else {}
    if kind not in own or not isinstance(kernels, KernelConstants):
        problem = f"has no constants of {family} to start from"
        hint = f"Write a table [kernels.{field}.{kind}], as shipped GPUs have"
        raise InputError(problem, file=gpu.name, hint=hint)

    start = msgspec.structs.asdict(own[kind])
    waves, inner = start.get("waves"), WAVE_BOUNDS if start.get("waves") else {}
    if waves is not None:
        bounds, start = {**bounds, **WAVE_BOUNDS}, {**start, **msgspec.structs.asdict(waves)}

    def changed(new: dict[str, float]) -> GpuSpec:
        changes: dict[str, object] = {n: value for n, value in new.items() if n not in inner}
        if waves is not None:
            changes["waves"] = replace(waves, **{n: new[n] for n in inner if n in new})
        made = replace(own[kind], **changes)
        return replace(gpu, kernels=replace(kernels, **{field: {**own, kind: made}}))

    return bounds, start, changed


def _attention_constants(gpu: GpuSpec, family: str) -> _Fitting:
    """As ``_constants``, of windows, latent and sparse attention; a donor's to start with."""
    replace, kernels = msgspec.structs.replace, kernels_of(gpu)
    if family == "window":
        own = window_constants(gpu)
        return (
            WINDOW_BOUNDS,
            msgspec.structs.asdict(own),
            lambda new: replace(gpu, kernels=replace(kernels, window=replace(own, **new))),
        )
    if family in sparse_tables.KINDS:
        kind = sparse_tables.KINDS[family]
        chosen = sparse_constants(gpu, kind)
        return (
            SPARSE_BOUNDS,
            msgspec.structs.asdict(chosen),
            lambda new: replace(
                gpu,
                kernels=replace(kernels, sparse={**kernels.sparse, kind: replace(chosen, **new)}),
            ),
        )
    if family in state_tables.KINDS:
        kind = state_tables.KINDS[family]
        kept = state_constants(gpu, kind)
        return (
            STATE_BOUNDS,
            msgspec.structs.asdict(kept),
            lambda new: replace(
                gpu,
                kernels=replace(kernels, states={**kernels.states, kind: replace(kept, **new)}),
            ),
        )
    latent = latent_constants(gpu)
    return (
        LATENT_BOUNDS,
        msgspec.structs.asdict(latent),
        lambda new: replace(gpu, kernels=replace(kernels, latent=replace(latent, **new))),
    )


def _family(operator: str) -> str:
    """``attention`` of ``attention decode``, ``mla`` of ``mla-decode``."""
    return operator.split(" ")[0].removesuffix("-prefill").removesuffix("-decode")
