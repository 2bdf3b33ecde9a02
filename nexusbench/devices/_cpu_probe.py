"""How fast this machine's cores and memory are, measured in under two seconds."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from nexusbench.core.specs import GpuSpec, SimConstants
from nexusbench.core.units import GIB
from nexusbench.devices._cpu_cores import processor_name, usable_cores
from nexusbench.devices._stopwatch import stopwatch_ns
from nexusbench.kernels.linear import Linear
from nexusbench.kernels.native import memory
from nexusbench.models.memory import available_memory

STREAM_BYTES = 256 * 1024**2  # well beyond the caches of a core
GEMM_SIZE = 1024
ROUNDS = 5
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


@functools.cache
def stream_gbps() -> float:
    """Bytes per ns that all usable cores read together: the best of a few rounds."""
    values = memory.zeros((STREAM_BYTES // 4,), torch.float32).fill_(1)  # where weights lie too
    return STREAM_BYTES / _fastest(values.sum)


@functools.cache
def gemm_gflops(dtype: str) -> float:
    """FLOP per ns of a square GEMM in ``dtype`` on all usable cores, the best of a few rounds, by
    torch or by the linear layers' own kernels: in fp32 with AMX these are faster.
    """
    a = torch.ones(GEMM_SIZE, GEMM_SIZE, dtype=getattr(torch, dtype))
    linear = Linear(a)
    return 2.0 * GEMM_SIZE**3 / min(_fastest(lambda: a @ a), _fastest(lambda: linear(a)))


def _fastest(work: Callable[[], object]) -> float:
    """Ns of the fastest round. A limit is wanted, and whatever else runs only makes it slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(len(usable_cores()))
    try:
        with torch.inference_mode():
            work()  # pays for page faults and for the thread team
            times = []
            for _ in range(ROUNDS):
                start = stopwatch_ns()
                work()
                times.append(stopwatch_ns() - start)
    finally:
        torch.set_num_threads(threads)
    return float(min(times))


def describe_cpu(dtype: str, num_sms: int) -> GpuSpec:
    """The machine in the words of a GPU: ``num_sms`` cores (or percent of them), DRAM is HBM."""
    measured = f"measured when the device opens, best of {ROUNDS}"
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
