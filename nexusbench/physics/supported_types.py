"""Which data types a GPU computes in, and what servers do where it has no tensor cores for them."""

from __future__ import annotations

from nexusbench.core.errors import UsageError
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.physics.precisions import architecture, kind_of, product_kernel


def half_types(gpu: GpuSpec) -> tuple[str, ...]:
    """The 16-bit types that its tensor cores compute in, the preferred one first."""
    half = architecture(gpu) in ("volta", "turing")
    return ("float16",) if half else ("bfloat16", "float16")


def check_types(gpu: GpuSpec, model: ModelSpec) -> list[str]:
    """What is computed in other types than ``model`` has, a sentence each.

    Raises UsageError for small floats on a GPU that servers have no kernels of them for: MARLIN and
    attention over such a KV cache begin with Ampere.
    """
    types = {
        group.dtypes.of(one)
        for group in model.groups
        for one in group.projections(model.hidden_size)
    }
    weights = sorted({*types, model.head_dtype})
    if architecture(gpu) == "volta":
        for what, dtype in (*(("weights", one) for one in weights), ("KV", model.dtypes.kv)):
            if "fp" in dtype:
                raise UsageError(
                    f"{model.name} has {what} in {dtype}, which {gpu.name} has no kernels for: "
                    "they begin with Ampere. Choose another GPU, or a checkpoint in 16 bit"
                )
    said = []
    for dtype in weights:
        kernel = product_kernel(gpu, dtype).kind
        if kernel != kind_of(dtype) and kernel.endswith("a16"):
            said.append(
                f"{gpu.name} is not simulated with products in {dtype}: they are computed in 16 "
                "bit, from weights that stay small (as MARLIN does)"
            )
    return said
