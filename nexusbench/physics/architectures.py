"""What a GPU has by its architecture: how it divides its SMs, data types that its tensor cores
compute, and the GPUs whose constants stand for what its file leaves out.

A user knows a data sheet, not fifty constants of kernels. Constants that are shares of a peak or
times of launches are taken over; what an SM does in a cycle is scaled by the clock, and what all
SMs do together by SMs and clock. How far times made so are from measured ones: docs/fidelity.md,
"From a data sheet alone".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from nexusbench.core.kernel_constants import Architecture
from nexusbench.core.specs import CURVES, GpuSpec, SimConstants
from nexusbench.physics.operators import stretched

_FP8 = ("fp8", "fp8_block")


class ArchitectureDefaults(msgspec.Struct, frozen=True):
    """``donors`` are the GPUs whose ``[sim]`` and ``[ranges]`` can stand for missing ones,
    ``kernels`` the one whose ``[kernels]`` do. ``native`` are the kinds of kernels below 16 bit
    that its tensor cores compute, ``lacks`` those that it has no kernel for at all; others
    dequantise to 16 bit.
    """

    chips: str
    donors: tuple[str, ...]
    kernels: str
    sm_minimum: int
    sm_multiple: int
    native: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


# SMs: CUDA Driver API, green contexts (docs.nvidia.com/cuda/cuda-driver-api, section 6.35): compute
# capability 7.X at least 2 and a multiple of 2, 8.X 4 and 2, 9.0 and later 8 and 8. CDNA 3: see
# data/gpus/mi300x.toml. Native types: NVIDIA's architecture white papers, AMD's CDNA 3 white paper.
ARCHITECTURES: dict[Architecture, ArchitectureDefaults] = {
    "volta": ArchitectureDefaults("V100", ("v100",), "l40s", 2, 2),
    "turing": ArchitectureDefaults("T4, RTX 20xx", ("a40",), "l40s", 2, 2, ("int8",)),
    "ampere": ArchitectureDefaults("A100, A30", ("a100",), "l40s", 4, 2, ("int8",)),
    "ampere-rtx": ArchitectureDefaults(
        "A10, A40, RTX A6000, RTX 30xx", ("a40", "rtx3090"), "l40s", 4, 2, ("int8",)
    ),
    "ada": ArchitectureDefaults(
        "L4, L40S, RTX 6000 Ada, RTX 40xx", ("l40s", "rtx4090"), "l40s", 4, 2, (*_FP8, "int8")
    ),
    "hopper": ArchitectureDefaults("H100, H200, GH200", ("h200",), "h200", 8, 8, (*_FP8, "int8")),
    "blackwell": ArchitectureDefaults("B200, B300", ("b200",), "b200", 8, 8,
        (*_FP8, "nvfp4", "mxfp4_mxfp8"),
    ),
    "blackwell-rtx": ArchitectureDefaults(
        "RTX PRO 6000, RTX 50xx", ("rtxpro6000", "rtx5090"), "rtxpro6000", 8, 8, (*_FP8, "nvfp4")
    ),
    "cdna3": ArchitectureDefaults(
        "MI300X, MI325X", ("mi300x",), "h200", 32, 32, (*_FP8, "int8"),
        ("nvfp4", "mxfp4", "w4a16", "w8a16"),
    ),
}  # fmt: skip
# The numbers of a data sheet that nothing else can stand for.
REQUIRED = ("name", "num_sms", "peak_tflops", "hbm_gib", "hbm_gbps", "l2_mib")
_PCIE_LATENCY_US = 10.0  # as GPU files assume it; NVLink's is half of it
_NVLINK_GBPS = 60.0  # more than PCIe 5.0 x16 carries in one direction on paper: no PCIe link
_NVLINK_LATENCY_US = 5.0
# What an SM does in a cycle: a rate grows with the clock, a time shrinks.
_SM_RATES = ("attention_sm_gbps", "attention_unsplit_gbps")
_SM_TIMES = (
    "dense_depth_us", "dense_epilogue_us", "attention_tile_us", "attention_block_us",
    "attention_empty_us", "attention_write_us",
)  # fmt: skip


class Filled(msgspec.Struct, frozen=True):
    """Values that a GPU file left out: of its top level, of ``[sim]`` and of ``[ranges]``, and
    where each comes from.
    """

    top: dict[str, object]
    sim: dict[str, object]
    ranges: dict[str, tuple[float, float]]
    sources: dict[str, str]


def architecture_by_attention(kernel: str) -> Architecture:
    """Of a GPU whose description names none: Hopper if FlashAttention-3 runs on it, Blackwell if
    TensorRT-LLM's kernels do, else Ampere, which has no tensor cores below 16 bit but for integers.
    """
    return "hopper" if kernel == "fa3" else "blackwell" if kernel == "trtllm" else "ampere"


def nearest(donors: Iterable[GpuSpec], given: Mapping[str, Any]) -> GpuSpec:
    """The donor whose SMs do nearest as many FLOP in a cycle, by their ratio.

    Tensor cores of game cards, and of some others, are held to half of the rate of the same chip:
    those attain all of it, which the others' power does not allow.
    """

    def ratio(donor: GpuSpec) -> float:
        own = given["peak_tflops"] / (given["num_sms"] * given.get("clock_mhz", donor.clock_mhz))
        other = donor.peak_tflops / (donor.num_sms * donor.clock_mhz)
        return float(max(own, other) / min(own, other))

    return min(donors, key=ratio)


def fill(
    architecture: Architecture, donor: GpuSpec, given: dict[str, object], sim: dict[str, object]
) -> Filled:
    """What stands for the keys that are missing in ``given`` (a top level with all of REQUIRED) and
    ``sim``. ``donor`` is the described GPU of that name.
    """
    own = ARCHITECTURES[architecture]
    top = {key: value for key, value in _top(own, donor, given).items() if key not in given}
    whole = GpuSpec(**{**given, **top}, sim=donor.sim, sources={})  # type: ignore[arg-type]
    scales = _scales(donor, whole)
    made: dict[str, object] = {}
    for key in SimConstants.__struct_fields__:
        if key not in sim:
            value = getattr(donor.sim, key)
            if value is msgspec.UNSET:
                continue  # as the donor's
            if key in CURVES:
                made[key] = stretched(value, _stretch(donor, whole, sim))
            else:
                made[key] = value * scales[key] if key in scales else value
    ranges = {
        key: (low * scales.get(key, 1.0), high * scales.get(key, 1.0))
        for key, (low, high) in donor.ranges.items()
        if key in made
    }
    return Filled(top, made, ranges, _sources(architecture, donor, top, made, scales))


def _top(own: ArchitectureDefaults, donor: GpuSpec, given: dict[str, object]) -> dict[str, object]:
    """Defaults of the top level: of a card without NVLink, unless the file gives its rate."""
    link = given.get("link_gbps", donor.host_gbps)
    assert isinstance(link, float | int)
    return {
        "clock_mhz": donor.clock_mhz,
        "sm_minimum": own.sm_minimum,
        "sm_multiple": own.sm_multiple,
        "link_gbps": donor.host_gbps,
        "link_latency_us": _NVLINK_LATENCY_US if link > _NVLINK_GBPS else _PCIE_LATENCY_US,
        "host_gbps": donor.host_gbps,
    }


def _scales(donor: GpuSpec, gpu: GpuSpec) -> dict[str, float]:
    """By what the donor's constants are multiplied, of those that are not taken over as they are.

    Each SM of a GPU with fewer of them has a larger share of L2's ports, so that together they read
    it at a rate by SMs and clock.
    """
    clock = gpu.clock_mhz / donor.clock_mhz
    return {
        **dict.fromkeys(_SM_RATES, clock),
        **dict.fromkeys(_SM_TIMES, 1.0 / clock),
        "l2_gbps": clock * gpu.num_sms / donor.num_sms,
    }


def _stretch(donor: GpuSpec, gpu: GpuSpec, sim: dict[str, object]) -> float:
    """The factor on the share of SMs in the donor's bandwidth curves with which each SM draws as
    many bytes in a cycle as one of the donor's.
    """
    efficiency = sim.get("bandwidth_efficiency", donor.sim.bandwidth_efficiency)
    assert isinstance(efficiency, float | int)
    drawn = gpu.hbm_gbps * efficiency / (gpu.num_sms * gpu.clock_mhz)
    donors = donor.hbm_gbps * donor.sim.bandwidth_efficiency / (donor.num_sms * donor.clock_mhz)
    return drawn / donors


def _sources(
    architecture: Architecture,
    donor: GpuSpec,
    top: dict[str, object],
    sim: dict[str, object],
    scales: dict[str, float],
) -> dict[str, str]:
    """Where each filled value comes from; ``kernels`` and ``ranges`` among them."""
    origin = f"Default of the architecture {architecture}"
    found = {}
    for key in top:
        found[key] = (
            f"{origin}: of a card like the {donor.name} without NVLink. Not this GPU's own."
        )
    for key in sim:
        how = "the constant"
        if key in CURVES:
            how = "each SM drawing as many bytes in a cycle as one"
        elif key in scales:
            how = "scaled by SMs and clock from that"
        found[key] = f"{origin}: {how} of the {donor.name}. Not measured on this GPU."
    found["kernels"] = (
        f"{origin}: {ARCHITECTURES[architecture].kernels}'s. Not measured on this GPU."
    )
    if sim:
        found["ranges"] = f"{origin}: those of the {donor.name}, where its constants stand."
    return found


def filled_caveat(architecture: str, donor: GpuSpec, kernels: GpuSpec, made: Filled) -> str:
    """What screens say of a GPU whose file left ``made`` out."""
    parts = [f"{key} = {value:g}" for key, value in made.top.items()
             if isinstance(value, int | float)]  # fmt: skip
    has = [key for key in SimConstants.__struct_fields__
           if getattr(donor.sim, key) is not msgspec.UNSET]  # fmt: skip
    every, own = len(has), len(made.sim)
    if own:
        named = f"all {own} constants of [sim]"
        if own < every:
            named = f"{own} of {every} constants of [sim] ({', '.join(made.sim)})"
        parts.append(f"{named}, those of the {donor.name}")
    return (
        f"BY ANALOGY, NOT VALIDATED: defaults of the architecture {architecture} stand for what "
        f"this GPU's file leaves out: {'; '.join(parts)}. Low precision, experts, windows and "
        f"latent attention are those of the {kernels.name}. How far such times are from measured "
        "ones: docs/fidelity.md, 'From a data sheet alone'"
    )


def unsaid_caveat(architecture: str, kernels: GpuSpec) -> str:
    """What screens say of a GPU whose file has every constant but names no architecture."""
    return (
        f"this GPU's file names no architecture: it counts as {architecture}, by its attention "
        f"kernel, and low precision, experts, windows and latent attention are those of the "
        f"{kernels.name}. Write architecture = one of {', '.join(ARCHITECTURES)}"
    )
