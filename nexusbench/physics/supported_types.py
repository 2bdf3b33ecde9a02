"""Which data types a GPU computes in, and what servers do where it has no tensor cores for them."""

from __future__ import annotations

from nexusbench.core.errors import UsageError
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.physics.precisions import (
    architecture,
    kind_of,
    product_kernel,
    served_experts,
)


def half_types(gpu: GpuSpec) -> tuple[str, ...]:
    """The 16-bit types that its tensor cores compute in, the preferred one first."""
    half = architecture(gpu) in ("volta", "turing")
    return ("float16",) if half else ("bfloat16", "float16")


def check_types(gpu: GpuSpec, model: ModelSpec) -> list[str]:
    """What is computed in other types than ``model`` has, a sentence each.

    Raises UsageError for small floats on a GPU that servers have no kernels of them for: MARLIN and
    attention over such a KV cache begin with Turing.
    """
    experts: set[str] = set()
    others = {model.head_dtype}
    for group in model.groups:
        for one in group.projections(model.hidden_size):
            (experts if one.part == "experts" else others).add(group.dtypes.of(one))
    weights = sorted(experts | others)
    if architecture(gpu) == "volta":
        for what, dtype in (*(("weights", one) for one in weights), ("KV", model.dtypes.kv)):
            if "fp" in dtype:
                raise UsageError(
                    f"{model.name} has {what} in {dtype}, which {gpu.name} has no kernels for: "
                    "they begin with Turing. Choose another GPU, or a checkpoint in 16 bit"
                )
    said = []
    for dtype in weights:
        kernel = product_kernel(gpu, dtype).kind
        if dtype not in others and served_experts(gpu, dtype, model.dtypes.activations).scales:
            continue  # experts alone have it, whose kernel quantises activations
        if kernel != kind_of(dtype) and kernel.endswith("a16"):
            said.append(
                f"{gpu.name} is not simulated with products in {dtype}: they are computed in 16 "
                "bit, from weights that stay small (as MARLIN does)"
            )
    return said
