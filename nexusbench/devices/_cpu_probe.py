"""The CPU of this machine, described as a GPU is."""

from __future__ import annotations

from nexusbench.core.machine import available_memory, processor_name
from nexusbench.core.specs import GpuSpec, SimConstants
from nexusbench.core.units import GIB
from nexusbench.kernels.limits import GEMM_SIZE, ROUNDS, STREAM_BYTES, gemm_gflops, stream_gbps

# A description needs the constants of a simulated GPU; a CPU's own times come from its profile, so
# these are neutral: attain everything, no fixed times but a thread team's wake-up.
_NEUTRAL = SimConstants(
    dense_efficiency=1.0,
    attention_efficiency=1.0,
    bandwidth_efficiency=1.0,
    bandwidth_curve=((0.0, 0.0), (1.0, 1.0)),
    kernel_us=5.0,
    step_overhead_us=500.0,
    dense_interference=0.0,
    attention_interference=0.0,
    stream_interference=0.0,
    turn_taking=1.0,
    jitter=0.0,
)


def describe_cpu(dtype: str, num_sms: int) -> GpuSpec:
    """The machine in the words of a GPU: ``num_sms`` cores (or percent of them), DRAM is HBM."""
    measured = f"measured when the device opens, best of {ROUNDS} rounds (of one that takes long)"
    return GpuSpec(
        name=processor_name(),
        num_sms=num_sms,
        clock_mhz=0.0,
        peak_tflops=gemm_gflops(dtype) / 1e3,
        hbm_gib=available_memory() / GIB,
        hbm_gbps=stream_gbps(),
        l2_mib=1.0,
        sm_minimum=1,
        sm_multiple=1,
        link_gbps=1.0,
        link_latency_us=1.0,
        sim=_NEUTRAL,
        sources={
            "peak_tflops": f"{measured}: {dtype} GEMM of {GEMM_SIZE} rows",
            "hbm_gbps": f"{measured}: sum over {STREAM_BYTES // 1024**2} MiB",
            "sim": "neutral: a CPU's times come from its profile",
        },
    )
