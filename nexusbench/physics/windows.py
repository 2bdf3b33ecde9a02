"""Attention with a sliding window: a query sees no more than the ``window`` last keys, its own
included.

Kernels skip the blocks of keys that no row of a tile sees, and mask those that it sees in part
(n_block_min in the mainloops of FlashAttention-2 and -3). So a tile far from the start goes through
the blocks that its rows' windows touch, whole ones. With so few blocks a tile, what full attention
hides decides: queries and outputs, of which a part moves while other tiles compute, and the kernel
that writes keys and values to the cache, a thread block a token, whose SM time follows from its
threads. FlashAttention-2 packs query heads and splits keys only where there is no window
(seqlenq_ngroups_swapped in its flash_api.cpp): there each query head of a decode is a tile of its
own. How far all this is from measurements: docs/fidelity.md.
"""

from __future__ import annotations

from nexusbench.core.specs import GpuSpec
from nexusbench.physics.attention import Attention, spread, write_ns
from nexusbench.physics.operators import OperatorClass
from nexusbench.physics.precisions import architecture, window_constants

_COUNTED = 64  # tiles whose blocks are counted for their mean
_NARROW, _NARROW_ROWS = 64, 192  # FlashAttention-3's tiles of heads so narrow (tile_size.h)

_Chunks = tuple[tuple[int, int], ...]


class WindowedAttention(Attention):
    """Times of the attention of ``layers`` layers of equal shape whose queries see ``window`` keys
    at most; as ``Attention`` in all else.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        window: int,
        kv_bytes: float = 2.0,
        activation_bytes: float = 2.0,
        layers: int = 1,
        *,
        writes: bool = True,
    ) -> None:
        super().__init__(
            gpu, num_heads, num_kv_heads, head_dim, kv_bytes, activation_bytes, layers,
            writes=writes,
        )  # fmt: skip
        own = window_constants(gpu)
        self._window, block = window, self._keys
        if gpu.sim.attention_kernel == "fa3" and head_dim <= _NARROW:
            self._rows, self._block = _NARROW_ROWS, self._block * _NARROW_ROWS / self._rows
        # FlashAttention-3 takes a block more, as measured, even where a window begins with one.
        self._aligned = self._packs and architecture(gpu) == "hopper"
        self._more = own.tile_us * 1e3
        self._write = write_ns(own.write_us * writes, num_kv_heads * head_dim)
        span, blocks = self._rows / self._packed, 0  # tokens of one tile
        for tile in range(_COUNTED):
            first = window + int(tile * span)
            last = max(first, window + int((tile + 1) * span) - 1)
            blocks += last // block - (first - window + 1) // block + 1
        self._steady = blocks / _COUNTED
        self._hidden_bytes = own.hidden * 2.0 * num_heads * head_dim * activation_bytes
        self._new_bytes -= self._hidden_bytes

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
        """As ``Attention.time``; ``decode_context`` is the sum of whole contexts. Decodes whose
        mean context exceeds the window are all taken to exceed it.
        """
        if decode_context > num_decodes * self._window:
            touched = self._touched(decode_context // num_decodes)
            decode_context = min(decode_context, num_decodes * touched)
        return super().time(chunks, num_decodes, decode_context, sms, bandwidth, copies=copies)

    def _touched(self, context: int) -> int:
        """Keys of the blocks that the window of a decode at ``context`` keys touches."""
        block, window = self._keys, self._window
        if self._aligned:
            return (-(-(window - 1) // block) + 1) * block
        return ((context - 1) // block - (context - window) // block + 1) * block

    def _decode(self, count: int, context: int, sms: int) -> tuple[float, float, int, float]:
        if self._packs or self._contiguous:
            return super()._decode(count, context, sms)
        tiles, work, single, again = self._beside(count, context, sms)
        busy = spread(tiles, work, single, sms, self._tail)
        return busy, self._launch, tiles, again

    def _prefill(self, chunks: _Chunks) -> tuple[int, int, int, float, float]:
        tokens = keys = tiles = 0
        work = longest = 0.0
        for count, before in chunks:
            growing = min(count, max(0, self._window - before))  # tokens that see all before them
            _, _, each, whole, most = super()._prefill(((count, before),))
            if growing < count:
                mean = 0.0
                if growing:
                    _, _, some, part, _ = super()._prefill(((growing, before),))
                    mean = part / some * growing
                steady = self._tile + self._steady * self._block
                mean = (mean + steady * (count - growing)) / count
                whole, most = min(whole, each * mean), min(most, steady + self._block)
            tokens += count
            keys += count + min(before, self._window)
            tiles += each
            work += whole + each * self._more
            longest = max(longest, most + self._more)
        return tokens, keys, tiles, work, longest
