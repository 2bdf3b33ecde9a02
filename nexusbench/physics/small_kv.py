"""Attention over a KV cache of 8-bit values beside 16-bit queries.

Keys and values are half the bytes, but servers quantise the queries first, in a kernel of its own,
and take other kernels than for a 16-bit cache (FlashAttention-3 in 8 bit on Hopper, FlashInfer's
elsewhere), whose blocks and tiles take other times. Decodes and prompts differ: constants of both
are factors on those of attention over a 16-bit cache, fitted by architecture (docs/fidelity.md).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from nexusbench.core.kernel_constants import SmallKvConstants
from nexusbench.core.specs import GpuSpec
from nexusbench.physics.attention import Attention
from nexusbench.physics.operators import OperatorClass, total

_READ_AND_WRITTEN = 3.0  # bytes of a query's value: 16 bits, and 8 when quantised
_WIDE = 128  # values of a head, above which FlashAttention-3 keeps fewer blocks in flight
_Chunks = tuple[tuple[int, int], ...]


class SmallKvAttention:
    """Times of the attention that ``make`` gives for a GPU, over a cache of 8-bit values.

    A layer, of ``layers``, has ``num_heads`` query heads of ``head_dim`` values.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        constants: SmallKvConstants,
        make: Callable[[GpuSpec], Attention],
        num_heads: int,
        head_dim: int,
        layers: int,
    ) -> None:
        own = constants
        if head_dim > _WIDE:
            own = msgspec.structs.replace(own, sm_gbps=own.wide_sm_gbps)
        self._prefill = make(_changed(gpu, own, own.prefill_block, own.prefill_tile))
        self._decode = make(_changed(gpu, own, own.decode_block, own.decode_tile))
        self._layers, self._bytes = layers, num_heads * head_dim * _READ_AND_WRITTEN
        self._prefill_launch = own.prefill_launch_us * 1e3
        self._decode_launch = own.decode_launch_us * 1e3
        self._prefill_gbps, self._decode_gbps = own.prefill_query_gbps, own.decode_query_gbps

    def time(
        self,
        chunks: _Chunks,
        num_decodes: int,
        decode_context: int,
        sms: int,
        bandwidth: float,
        *,
        copies: int = 0,
    ) -> OperatorClass:
        """As ``Attention.time``, with the quantisation of the queries."""
        tokens, kernel, launch, gbps = (
            num_decodes, self._decode, self._decode_launch, self._decode_gbps,
        )  # fmt: skip
        if chunks:
            kernel, launch, gbps = self._prefill, self._prefill_launch, self._prefill_gbps
            for count, _ in chunks:
                tokens += count
        made = kernel.time(chunks, num_decodes, decode_context, sms, bandwidth, copies=copies)
        if not tokens:
            return made
        size, layers = tokens * self._bytes * self._layers, self._layers
        moving = size / gbps
        queries = OperatorClass(
            launch * layers + moving, 0.0, moving, 0.0, size, layers, layers, moving
        )
        return total([queries, made])


def _changed(gpu: GpuSpec, own: SmallKvConstants, block: float, tile: float) -> GpuSpec:
    """``gpu`` whose attention takes so many times as long for a block and a tile."""
    sim = gpu.sim
    changed = msgspec.structs.replace(
        sim,
        attention_efficiency=sim.attention_efficiency / block,
        attention_block_us=sim.attention_block_us * block,
        attention_tile_us=sim.attention_tile_us * tile,
        attention_sm_gbps=own.sm_gbps,
        attention_combine_us=own.combine_us,
    )
    return msgspec.structs.replace(gpu, sim=changed)
