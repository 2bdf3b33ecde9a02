"""How fast this machine's cores and memory are, measured in a few seconds at most."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from nexusbench.core.clock import now_ns
from nexusbench.core.machine import usable_cores
from nexusbench.kernels.linear import LinearLayer
from nexusbench.kernels.native import memory

STREAM_BYTES = 256 * 1024**2  # well beyond the caches of a core
GEMM_SIZE = 1024
ROUNDS = 5
LONG_NS = 400_000_000  # a first round of more is the measurement: what it pays once is lost in it


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
    linear = LinearLayer(a)
    return 2.0 * GEMM_SIZE**3 / min(_fastest(lambda: a @ a), _fastest(lambda: linear(a)))


def _fastest(work: Callable[[], object]) -> float:
    """Ns of the fastest round. A limit is wanted, and whatever else runs only makes it slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(len(usable_cores()))
    try:
        with torch.inference_mode():
            first = _timed(work)  # pays for page faults and for the thread team
            if first > LONG_NS:  # as bfloat16 does without instructions for it
                return float(first)
            return float(min(_timed(work) for _ in range(ROUNDS)))
    finally:
        torch.set_num_threads(threads)


def _timed(work: Callable[[], object]) -> int:
    start = now_ns()
    work()
    return now_ns() - start
