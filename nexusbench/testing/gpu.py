"""check_gpu: a GPU's description, and that the simulated GPU made of it behaves like one."""

from __future__ import annotations

import math
from itertools import pairwise

from nexusbench.core.batch import BatchShape
from nexusbench.core.specs import GpuSpec
from nexusbench.core.units import GIB, MIB, NS_PER_S
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import legal_splits, load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.testing._errors import ConformanceError, named

SHAPES = {
    "one decode": BatchShape(1, 1000),
    "64 decodes": BatchShape(64, 64_000),
    "a short prompt": BatchShape(0, 0, ((128, 0),)),
    "a long prompt": BatchShape(0, 0, ((8192, 0),)),
    "a mixed batch": BatchShape(64, 64_000, ((512, 1000),)),
}
MODEL, BYTES = "qwen2.5-3b", 2  # fits every GPU of this decade; bf16
# A wave that is filled better can make fewer SMs a little faster; measured GPUs show it too.
WAVE_ALLOWANCE = 1.02


def check_gpu(name: str) -> None:
    """Load a GPU by name or path and time launches on every share of it.

    Checked are: the file (types, ranges, its bandwidth curve); that it can be divided; that times
    are finite, above what data sheet compute and memory allow, and fall as SMs are added; that a
    neighbour never speeds a launch up; and that each number states its source. Raises
    ConformanceError; InputError for a file that cannot be read.
    """
    gpu = load_gpu(name)
    with named("splits"):
        splits = [split for split in legal_splits(gpu) if not split.overlapping]
        if not splits:
            raise ConformanceError("contract", f"its {gpu.num_sms} SMs make no two partitions")
    physics = Physics(gpu, load_model(MODEL))
    for title, shape in SHAPES.items():
        with named(title):
            counts = [*(split.sms[0] for split in splits), gpu.num_sms]
            times = [physics.load(shape, sms).solo for sms in counts]
            _check_times(times, counts)
            _check_limits(gpu, shape, times[-1])
    with named("side by side"):
        _check_pairs(physics, gpu)
    with named("sources"):
        _check_sources(gpu)


def _check_times(times: list[float], counts: list[int]) -> None:
    for time, sms in zip(times, counts, strict=True):
        if not (math.isfinite(time) and time > 0):
            raise ConformanceError("contract", f"takes {time} ns on {sms} SMs")
    for (fewer, before), (more, after) in pairwise(zip(counts, times, strict=True)):
        if after > before * WAVE_ALLOWANCE:
            problem = f"{before:.0f} ns on {fewer} SMs, but {after:.0f} on {more}"
            raise ConformanceError("contract", problem)


def _check_limits(gpu: GpuSpec, shape: BatchShape, ns: float) -> None:
    """No launch beats the data sheet: its weights must be read, its products computed."""
    model = load_model(MODEL)
    tokens = shape.num_decodes + sum(tokens for tokens, _ in shape.chunks)
    weights = sum(linear.inputs * linear.outputs * linear.count for linear in model.linears)
    num_bytes = weights * BYTES
    if gpu.hbm_gib * GIB < num_bytes:
        raise ConformanceError("contract", f"{MODEL} does not fit its {gpu.hbm_gib:g} GiB")
    cached = num_bytes < gpu.l2_mib * MIB
    reading = 0.0 if cached else num_bytes / (gpu.hbm_gbps * 1e9)
    computing = 2.0 * weights * tokens / (gpu.peak_tflops * 1e12)
    least = max(reading, computing) * NS_PER_S
    if ns < least:
        raise ConformanceError("contract", f"takes {ns:.0f} ns; the data sheet allows {least:.0f}")


def _check_pairs(physics: Physics, gpu: GpuSpec) -> None:
    prefill, decode = SHAPES["a long prompt"], SHAPES["64 decodes"]
    for split in legal_splits(gpu):
        one, other = physics.load(prefill, split.sms[0]), physics.load(decode, split.sms[1])
        for mine, beside in ((one, other), (other, one)):
            slower = physics.slowdown(mine, beside)
            if not (math.isfinite(slower) and slower >= 1.0):
                problem = f"beside a neighbour, split {split}, it runs at {slower} of its time"
                raise ConformanceError("contract", problem)


def _check_sources(gpu: GpuSpec) -> None:
    """Published numbers at least say where they were published."""
    wanted = ("num_sms", "peak_tflops", "hbm_gib", "hbm_gbps")
    missing = [key for key in wanted if not gpu.sources.get(key, "").strip()]
    if missing:
        raise ConformanceError("contract", f"[sources] does not name: {', '.join(missing)}")
