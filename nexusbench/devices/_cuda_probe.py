"""A CUDA GPU in the words of the package: its spec, and what ``doctor`` says of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
from msgspec import UNSET

from nexusbench.core.specs import GpuSpec
from nexusbench.core.units import GIB, MIB
from nexusbench.counters.base import counters, why
from nexusbench.devices._cuda_driver import GpuFacts, memory_line
from nexusbench.devices._cuda_partitions import GreenPartitions, Partitions
from nexusbench.devices.base import DeviceCheck
from nexusbench.physics.gpus import gpu_names, load_gpu

# FLOP per clock and SM, dense bf16 with fp32 accumulation, by compute capability: published peaks
# over (SMs x boost clock) of A100, A10, L40S, H100, B200 and RTX 5090.
_FLOP_PER_CLOCK = {
    (8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192, (12, 0): 1024,
}  # fmt: skip
_FLOP_ELSEWHERE = 1024
# Whose simulator constants stand in for those of a GPU that is not shipped.
_FAMILY = {(8, 0): "a100", (8, 6): "l40s", (8, 9): "l40s", (12, 0): "l40s"}
_FAMILY_ELSEWHERE = "h100"
# A namesake with other memory is another product (an A100 with 40 GB, say).
_MEMORY_TOLERANCE = 0.1


def gpu_spec(facts: GpuFacts, granularity: tuple[int, int]) -> GpuSpec:
    """The shipped description of this GPU, if one has its name, SMs and memory; else one from what
    the driver says, each number with its source.
    """
    minimum, multiple = granularity
    shipped = _shipped(facts)
    if shipped is not None:
        # What is said of its simulated times does not hold of this one, which computes.
        return msgspec.structs.replace(
            shipped, hbm_gib=facts.memory_bytes / GIB, sm_minimum=minimum, sm_multiple=multiple,
            caveats=UNSET,
        )  # fmt: skip
    flop = _FLOP_PER_CLOCK.get(facts.capability, _FLOP_ELSEWHERE)
    family = load_gpu(_FAMILY.get(facts.capability, _FAMILY_ELSEWHERE))
    driver = "what the driver says"
    clock = facts.clock_khz or round(family.clock_mhz * 1e3)
    if facts.memory_khz and facts.bus_bits:
        hbm_gbps = 2.0 * facts.memory_khz * 1e3 * facts.bus_bits / 8 / 1e9
    else:
        hbm_gbps = family.hbm_gbps
    return GpuSpec(
        name=facts.name,
        num_sms=facts.num_sms,
        clock_mhz=clock / 1e3,
        peak_tflops=facts.num_sms * clock * 1e3 * flop / 1e12,
        hbm_gib=facts.memory_bytes / GIB,
        hbm_gbps=hbm_gbps,
        l2_mib=facts.l2_bytes / MIB or family.l2_mib,
        sm_minimum=minimum,
        sm_multiple=multiple,
        link_gbps=family.link_gbps,
        link_latency_us=family.link_latency_us,
        host_gbps=family.host_gbps,
        link=family.link,
        sim=family.sim,
        sources={
            "num_sms": driver,
            "clock_mhz": driver if facts.clock_khz else f"assumed: that of the {family.name}",
            "peak_tflops": f"SMs x clock x {flop} FLOP, by compute capability",
            "hbm_gib": driver,
            "hbm_gbps": "2 x memory clock x bus width, as the driver says them"
            if facts.memory_khz and facts.bus_bits
            else f"assumed: that of the {family.name}",
            "sim": f"those of the {family.name}",
        },
    )


def _shipped(facts: GpuFacts) -> GpuSpec | None:
    """The shipped GPU whose name stands as a word of its own in the device's name."""
    said = facts.name.lower()
    for name in gpu_names():
        word = "[ -]?".join(name)  # drivers write "RTX 6000 Ada" where a file is rtx6000ada
        if not re.search(rf"(?<![a-z0-9]){word}(?![a-z0-9])", said):
            continue
        gpu = load_gpu(name)
        memory = facts.memory_bytes / GIB
        alike = abs(memory - gpu.hbm_gib) <= _MEMORY_TOLERANCE * gpu.hbm_gib
        if gpu.num_sms == facts.num_sms and alike:
            return gpu
    return None


def check_gpu(facts: GpuFacts, partitions: Partitions, gpu: GpuSpec) -> Iterator[DeviceCheck]:
    """What can be told of a GPU that is there; makes one pair of contexts to weigh them."""
    capability = ".".join(map(str, facts.capability))
    known = "as shipped" if gpu.name != facts.name else "not shipped: from the driver"
    yield DeviceCheck(
        "GPU", True, f"{facts.name}, compute capability {capability}, {facts.num_sms} SMs, "
        f"{memory_line(facts)}; peaks {gpu.peak_tflops:,.0f} TFLOP/s and {gpu.hbm_gbps:,.0f} GB/s "
        f"({known})",
    )  # fmt: skip
    yield DeviceCheck("driver", True, facts.driver_version if facts.driver else "version not known")
    disjoint = [split for split in partitions.splits if not split.overlapping]
    yield DeviceCheck(
        "granularity", True, f"at least {partitions.minimum} SMs, in steps of {partitions.multiple}"
    )
    yield DeviceCheck(
        "splits", bool(disjoint),
        f"{len(disjoint)} of prefill/decode: {', '.join(map(str, disjoint)) or 'none'}; and "
        f"{partitions.splits[-1]} (both on all SMs)",
    )  # fmt: skip
    if disjoint:
        sides = partitions.streams(disjoint[len(disjoint) // 2])
        weight = partitions.memory_per_context or 0
        granted = ", ".join(f"{name} {side.sms}" for name, side in sides.items())
        yield DeviceCheck(
            "contexts", isinstance(partitions, GreenPartitions),
            f"{weight / MIB:.1f} MiB of GPU memory each, {partitions.num_contexts} made for "
            f"{granted} SMs",
        )  # fmt: skip
    yield from check_counters()


def check_counters() -> Iterator[DeviceCheck]:
    """Which of the GPU's counters may be read here."""
    for name in ("nvml", "cupti"):
        if name not in counters.names():
            continue
        try:
            with counters.create(name) as source:
                support = source.probe()
        except Exception as error:
            yield DeviceCheck(f"counter {name}", False, f"does not load: {why(error)}")
            continue
        yield DeviceCheck(f"counter {name}", support.ok, support.reason or "permitted")
