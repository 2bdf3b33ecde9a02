"""How fast this machine's cores and memory are, measured in under two seconds."""

from __future__ import annotations

import functools
import platform

import msgspec
import torch

from nexusbench.core.specs import GpuSpec, SimConstants
from nexusbench.core.units import GIB
from nexusbench.devices._cpu_workers import usable_cores
from nexusbench.devices._stopwatch import stopwatch_ns
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


class Probe(msgspec.Struct, frozen=True):
    """Bytes per ns that all cores read, and FLOP per ns of a GEMM in that data type."""

    read_gbps: float
    gemm_gflops: float
    dtype: str


@functools.cache
def probe(dtype: str) -> Probe:
    """Measured once per process, on all usable cores: medians of a few rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(len(usable_cores()))
    try:
        with torch.inference_mode():
            stream = torch.ones(STREAM_BYTES // 4)
            read = _median(lambda: stream.sum())
            a = torch.ones(GEMM_SIZE, GEMM_SIZE, dtype=getattr(torch, dtype))
            gemm = _median(lambda: a @ a)
    finally:
        torch.set_num_threads(threads)
    return Probe(STREAM_BYTES / read, 2.0 * GEMM_SIZE**3 / gemm, dtype)


def _median(work: object) -> float:
    assert callable(work)
    times = []
    for _ in range(ROUNDS + 1):
        start = stopwatch_ns()
        work()
        times.append(stopwatch_ns() - start)
    return float(sorted(times[1:])[ROUNDS // 2])  # the first one pays for page faults


def describe_cpu(dtype: str) -> GpuSpec:
    """The machine in the words of a GPU: a core is an SM, DRAM is HBM."""
    found, cores = probe(dtype), usable_cores()
    measured = "measured at start, median of 5"
    return GpuSpec(
        name=processor_name(),
        num_sms=len(cores),
        clock_mhz=0.0,
        peak_tflops=found.gemm_gflops / 1e3,
        hbm_gib=available_memory() / GIB,
        hbm_gbps=found.read_gbps,
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


def processor_name() -> str:
    """The processor as the system calls it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - not a user's path
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"
