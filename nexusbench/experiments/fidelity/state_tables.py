"""Kernels of recurrent states measured for aiconfigurator: vLLM's gated delta rule (``gdn``) and
KDA (``kda``), scans and decodes, and their short convolutions, each by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import msgspec

from nexusbench.core.mixers import StateMixer
from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.fidelity.samples import KernelSample
from nexusbench.experiments.fidelity.typed_rows import Count, Heads, Millis, newest, read_rows
from nexusbench.physics.operators import OperatorClass
from nexusbench.physics.precisions import kernels_of
from nexusbench.physics.states import CHANNEL_DELTA, DELTA, KEPT_TOKENS, StateScan

# A family's kind of constants, its kind of mixer, and its tables.
_TABLES = {
    "gdn": ("delta", DELTA, "linear_attention/vllm/*/gdn_perf.parquet"),
    "kda": ("channel-delta", CHANNEL_DELTA, "kda/vllm/*/kda_perf.parquet"),
}
KINDS = {name: kind for name, (kind, _, _) in _TABLES.items()}
_SCANS = (
    "chunk_gated_delta_rule_flashinfer", "chunk_gated_delta_rule_triton", "flashkda_fwd",
    "chunk_kda_with_fused_gate",
)  # fmt: skip
_STEPS = (
    "fused_recurrent_gated_delta_rule_packed_decode", "fused_recurrent_kda_packed_decode"
)  # fmt: skip
LEFT_OUT = (
    "gdn, kda: vLLM's kernels one by one, states in float32; left out: verification of drafts, and "
    "KDA's convolution of prompts, which the host launched more slowly than it computed"
)


class StateRow(msgspec.Struct, frozen=True):
    """A measured kernel: ``seq_len`` tokens of each of ``batch_size`` sequences; ms."""

    kernel_source: str
    phase: str
    batch_size: Heads
    seq_len: Count
    num_k_heads: Heads
    head_k_dim: Heads
    num_v_heads: Heads
    head_v_dim: Heads
    latency: Millis


def read_states(
    folder: Path, gpu: GpuSpec, fitted: bool, thin: int = 1, family: str = ""
) -> list[KernelSample]:
    """The kernels in a system's folder, every ``thin``-th row of the newest tables of vLLM, any of
    which may be missing; ``family``: a key of KINDS alone. Halves are of whole numbers of heads,
    by their power of two and whether they are one. Raises InputError for a table that is broken.
    """
    samples: list[KernelSample] = []
    for name, (kind, mixer, pattern) in _TABLES.items():
        path = newest(folder, pattern)
        if family not in ("", name) or path is None:
            continue
        own = fitted and kind in kernels_of(gpu).states
        bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
        for row in _rows(path)[::thin]:
            timed = _kernel(name, row)
            if timed is None:
                continue
            operator, time = timed
            heads = row.num_v_heads, row.num_k_heads
            half = (math.floor(math.log2(heads[0]) * 2) + math.floor(math.log2(heads[1]))) % 2 == 0
            made = time(_scan(gpu, mixer, row), gpu.num_sms, bandwidth).time / 1e3
            curve = (*heads, row.batch_size)
            samples.append(
                KernelSample(operator, row.latency * 1e3, made, own and half, curve, row.seq_len)
            )
    return samples


@lru_cache
def _rows(path: Path) -> list[StateRow]:
    return read_rows(path, StateRow)


def _scan(gpu: GpuSpec, kind: str, row: StateRow) -> StateScan:
    """A layer with the row's heads; keys of fewer heads are shared."""
    channels = 2 * row.num_k_heads * row.head_k_dim + row.num_v_heads * row.head_v_dim
    mixer = StateMixer(
        kind=kind, heads=row.num_v_heads, key_dim=row.head_k_dim, value_dim=row.head_v_dim,
        matrices=(), conv_values=channels * KEPT_TOKENS,
    )  # fmt: skip
    return StateScan(gpu, mixer)


_Timed = Callable[[StateScan, int, float], OperatorClass]


def _kernel(name: str, row: StateRow) -> tuple[str, _Timed] | None:
    """(what it is called, its time); None of a kernel that is not scored."""
    batch, tokens, source = row.batch_size, row.seq_len, row.kernel_source
    if source in _SCANS:
        chunks = ((tokens, 0),) * batch
        return f"{name}-prefill", lambda one, sms, rate: one.scan(chunks, sms, rate)
    if row.phase == "generation" and source in _STEPS:
        return f"{name}-decode", lambda one, sms, rate: one.step(batch, sms, rate, 1)
    if row.phase == "generation" and source == "causal_conv1d_update":
        return (
            f"{name} conv-decode", lambda one, sms, rate: one.step_convolution(batch, sms, rate, 1)
        )  # fmt: skip
    if source == "causal_conv1d_fn":
        return (
            f"{name} conv-prefill",
            lambda one, sms, rate: one.convolution(batch * tokens, batch, sms, rate),
        )
    return None
