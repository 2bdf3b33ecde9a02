"""Attention over a KV cache of 8-bit values in aiconfigurator's tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.fidelity.samples import KernelSample
from nexusbench.physics.attention import Attention
from nexusbench.physics.precisions import small_kv_constants
from nexusbench.physics.small_kv import SmallKvAttention

if TYPE_CHECKING:
    from nexusbench.experiments.fidelity.aiconfigurator import AttentionRow

FAMILY = "small-kv"
# Kernels that servers take for such a cache, by a part of their names: FlashAttention-3,
# TensorRT-LLM's in FlashInfer, and FlashInfer's own.
_KERNELS = ("flash_attn", "trtllm", "fidecode", "fiprefill")


def small_kv(
    rows: Sequence[AttentionRow],
    kind: str,
    gpu: GpuSpec,
    bandwidth: float,
    fitted: bool,
    copies: int,
) -> Iterator[KernelSample]:
    """Full attention of the table ``kind`` ("context" or "generation") with 16-bit queries over an
    8-bit cache; ``bandwidth`` in bytes per ns, ``fitted`` if half of it may be fitted on.
    """
    constants, layouts = small_kv_constants(gpu), dict[tuple[int, int, int], SmallKvAttention]()
    for row in rows:
        layout = row.num_heads, row.num_key_value_heads, row.head_dim
        if (
            row.attn_dtype != "bfloat16"
            or row.kv_cache_dtype != "fp8"
            or row.head_dim > 256
            or row.window_size
            or not any(kernel in row.kernel_source for kernel in _KERNELS)
        ):
            continue
        if layout not in layouts:
            make = partial(
                Attention, num_heads=layout[0], num_kv_heads=layout[1], head_dim=layout[2],
                kv_bytes=1.0,
            )  # fmt: skip
            layouts[layout] = SmallKvAttention(gpu, constants, make, layout[0], layout[2], 1)
        batch, tokens = row.batch_size, row.isl
        before = row.step if kind == "generation" else 0
        decodes = batch if tokens == 1 else 0
        chunks = () if decodes else ((tokens, before),) * batch
        made = layouts[layout].time(
            chunks, decodes, decodes * (before + 1), gpu.num_sms, bandwidth, copies=copies
        )
        half = round(layout[0] * 5 + layout[1] * 3 + layout[2] / 64) * 7919 % 13 < 6.5
        name = f"{FAMILY} {'decode' if decodes else 'prefill'}"
        count = before if kind == "generation" else tokens
        curve = (*layout, batch)
        yield KernelSample(name, row.latency * 1e3, made.time / 1e3, fitted and half, curve, count)
