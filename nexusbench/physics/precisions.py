"""Which kernel computes in which data type on a GPU, and whose constants it takes.

A GPU file may say them (``[kernels]``). Where it does not, those of a GPU of the same architecture
that was measured stand for them: they are shares of a peak and microseconds, and carry over about
as well as those of other kernels do.

What a GPU has no tensor cores for, and what keeps 16-bit activations, is computed in 16 bit from
weights that stay small. MARLIN (arXiv 2408.11743, figure 1) comes within about a tenth of a 16-bit
product's rate on large batches, and of the bytes' time on small ones: such a product is timed as a
16-bit one (gemm.py, Gemm) that reads fewer bytes. No table of one was found.
"""

from __future__ import annotations

from functools import cache

import msgspec

from nexusbench.core.errors import UsageError
from nexusbench.core.kernel_constants import (
    EXPERTS,
    PRODUCTS,
    Architecture,
    ExpertConstants,
    KernelConstants,
    LatentConstants,
    ProductConstants,
    QuantiseConstants,
    SmallKvConstants,
    SparseConstants,
    StateConstants,
    WindowConstants,
)
from nexusbench.core.specs import GpuSpec
from nexusbench.physics.architectures import ARCHITECTURES, architecture_by_attention
from nexusbench.physics.gpus import load_gpu

# Whose constants stand for those of one kind of products, where another GPU of the generation than
# its usual donor was measured.
_KIND_DONORS: dict[tuple[Architecture, str], str] = {
    ("ampere", "int8"): "a100",
    ("ampere-rtx", "int8"): "a100",
}
_SPARSE_DONOR = "h200"  # where no GPU of the architecture ran sparse attention
_NEED_CORES = ("fp8", "fp8_block", "int8", "nvfp4", "mxfp4_mxfp8")  # tensor cores of their own
_WIDE = {"fp8": "w8a16", "fp8_block": "w8a16", "int8": "w8a16", "nvfp4": "w4a16", "mxfp4": "w4a16",
         "mxfp4_mxfp8": "mxfp4"}  # fmt: skip
# What takes the constants of another kind where it has none of its own: the same rate and traffic.
_LIKE = {"int8": "fp8", "fp8_block": "fp8", "mxfp4": "w4a16", "w8a16": "w4a16", "w4a16": "bf16",
         "mxfp4_mxfp8": "mxfp4"}  # fmt: skip


class Kernel(msgspec.Struct, frozen=True):
    """What computes: ``kind`` is a key of PRODUCTS or EXPERTS ('bf16': no other kernel), ``scales``
    how activations are quantised ('': they are not), ``origin`` whose constants it takes.
    """

    kind: str
    scales: str
    activation_bytes: float
    origin: str


@cache
def _shipped(name: str) -> GpuSpec:
    """A shipped GPU, whose file does not change while this process runs."""
    return load_gpu(name)


def architecture(gpu: GpuSpec) -> Architecture:
    """Of the GPU's file, or what its attention kernel makes of it (gpus.py, which then says so)."""
    if isinstance(gpu.kernels, KernelConstants):
        return gpu.kernels.architecture
    return architecture_by_attention(gpu.sim.attention_kernel)


def kind_of(weights: str, activations: str = "bfloat16") -> str:
    """The kind of kernel for weights of a data type (a key of DTYPE_BYTES).

    8-bit floats are multiplied as such, quantising activations; integers only with activations of
    8 bit, too; everything of 4 bit but NVFP4 keeps 16-bit activations.
    """
    if weights in ("bfloat16", "float16", "float32"):
        return "bf16"
    if weights == "fp8_block" or weights.startswith("mxfp8"):
        return "fp8_block"
    if weights.startswith("fp8"):
        return "fp8"
    if weights.startswith("int8"):
        return "int8" if weights == "int8_w8a8" or activations == "int8" else "w8a16"
    if weights == "mxfp4" and activations == "mxfp8":
        return "mxfp4_mxfp8"
    if weights in ("nvfp4", "mxfp4"):
        return weights
    return "w4a16"


def product_kernel(gpu: GpuSpec, weights: str, activations: str = "bfloat16") -> Kernel:
    """The kernel of a product of such weights on ``gpu``."""
    return _kernel(gpu, kind_of(weights, activations), PRODUCTS)


def experts_kernel(gpu: GpuSpec, weights: str, activations: str = "bfloat16") -> Kernel:
    """The same of experts."""
    return _kernel(gpu, kind_of(weights, activations), EXPERTS)


def served_experts(gpu: GpuSpec, weights: str, activations: str) -> Kernel:
    """The kernel that servers run for experts of such weights, of a model with such activations.

    Of MXFP4 the one that quantises activations, where tensor cores multiply the two types
    (TensorRT-LLM's and SGLang's default on Blackwell; vLLM's recipe for gpt-oss sets it,
    VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8).
    """
    native = ARCHITECTURES[architecture(gpu)].native
    quantised = weights == "mxfp4" and "mxfp4_mxfp8" in native
    return experts_kernel(gpu, weights, "mxfp8" if quantised else activations)


def _kernel(gpu: GpuSpec, kind: str, kinds: dict[str, str]) -> Kernel:
    built = ARCHITECTURES[architecture(gpu)]
    # Of activations in MXFP8 twice: 16-bit ones, then no product of MXFP4 either.
    while kind not in built.lacks and not (
        (kind in kinds or kind == "bf16") and (kind in built.native or kind not in _NEED_CORES)
    ):
        kind = _WIDE[kind]
    if kind in built.lacks:
        computed = ", ".join(("bf16", *built.native))
        raise UsageError(
            f"the {gpu.name} has no kernel for {EXPERTS[kind]} ({kind}), and no times of one were "
            f"found: it computes {computed}. Take a checkpoint of such weights, or another GPU"
        )
    scales, size = _activations(kind)
    origin = gpu.name  # a 16-bit product takes the GPU's own constants
    if kinds is EXPERTS or scales:
        origin = _found(gpu, kind, kinds is EXPERTS)[0]
    return Kernel(kind, scales, size, origin)


def _activations(kind: str) -> tuple[str, float]:
    """(scales, bytes of a value) of quantised activations."""
    if kind == "nvfp4":
        return "block", 0.5625
    if kind == "mxfp4_mxfp8":
        return "block", 1.03125
    if kind == "fp8_block":
        return "block", 1.0  # its scales, a float32 for 128 values, are left out
    if kind == "int8":
        return "row", 1.0
    if kind == "fp8":
        return "static", 1.0
    return "", 2.0


def _found(gpu: GpuSpec, kind: str, experts: bool) -> tuple[str, object]:
    """(name of the GPU whose they are, constants) of ``kind`` or what it is like."""
    built = architecture(gpu)
    while True:
        donors = [_KIND_DONORS[built, kind]] if (built, kind) in _KIND_DONORS else []
        for one in (gpu, *map(_shipped, (*donors, ARCHITECTURES[built].kernels))):
            kernels = kernels_of(one)
            known = kernels.experts if experts else kernels.products
            if kind in known:
                return one.name, known[kind]
        kind = _LIKE[kind]


def product_constants(gpu: GpuSpec, kind: str) -> ProductConstants:
    """Of ``kind`` (a key of PRODUCTS with low-precision activations), from the GPU's file or its
    donor's.
    """
    found = _found(gpu, kind, experts=False)[1]
    assert isinstance(found, ProductConstants)
    return found


def expert_constants(gpu: GpuSpec, kind: str) -> ExpertConstants:
    """Of ``kind`` (a key of EXPERTS), from the GPU's file or its donor's."""
    found = _found(gpu, kind, experts=True)[1]
    assert isinstance(found, ExpertConstants)
    return found


def quantise_constants(gpu: GpuSpec) -> QuantiseConstants:
    """From the GPU's file or its donor's."""
    found = kernels_of(gpu).quantise or _donor(gpu).quantise
    assert found is not None  # donors have all of them
    return found


def window_constants(gpu: GpuSpec) -> WindowConstants:
    """From the GPU's file or its donor's."""
    found = kernels_of(gpu).window or _donor(gpu).window
    assert found is not None  # donors have all of them
    return found


def latent_constants(gpu: GpuSpec) -> LatentConstants:
    """From the GPU's file or its donor's."""
    found = kernels_of(gpu).latent or _donor(gpu).latent
    assert found is not None
    return found


def small_kv_constants(gpu: GpuSpec) -> SmallKvConstants:
    """From the GPU's file or its donor's."""
    found = kernels_of(gpu).small_kv or _donor(gpu).small_kv
    assert found is not None
    return found


def sparse_constants(gpu: GpuSpec, kind: str) -> SparseConstants:
    """Of ``kind`` (a key of SPARSE), from the GPU's file, its donor's or, where neither was
    measured, the H200's.
    """
    own = kernels_of(gpu).sparse
    if kind in own:
        return own[kind]
    near = _donor(gpu).sparse
    return near[kind] if kind in near else kernels_of(_shipped(_SPARSE_DONOR)).sparse[kind]


def state_constants(gpu: GpuSpec, kind: str) -> StateConstants:
    """Of ``kind`` (a key of STATES), from the GPU's file or its donor's."""
    own = kernels_of(gpu).states
    return own[kind] if kind in own else _donor(gpu).states[kind]


def kernels_of(gpu: GpuSpec) -> KernelConstants:
    """``[kernels]`` of the GPU's file; nothing but its architecture where it has none."""
    own = gpu.kernels
    return own if isinstance(own, KernelConstants) else KernelConstants(architecture(gpu))


def _donor(gpu: GpuSpec) -> KernelConstants:
    return kernels_of(_shipped(ARCHITECTURES[architecture(gpu)].kernels))
