"""Decodes of unequal lengths in a kernel that gives each sequence its own thread blocks.

Where FlashAttention-2 does not split keys, a thread block takes one head of one sequence through
all of its keys. Those of the longest sequences go on alone when the others have ended, each at what
a thread block draws, until there are enough of them to fill HBM. Kernels that split keys, or hand
tiles out as SMs become free (FlashAttention-3, TensorRT-LLM's), even the lengths out.
Measured: docs/fidelity.md; the law and what a batch says of its lengths: docs/decisions/0017.
"""

from __future__ import annotations

from msgspec import UNSET

from nexusbench.core.batch import BatchShape
from nexusbench.physics.attention import Attention


def two_lengths(count: int, total: int, longest: int, squares: int) -> tuple[float, float]:
    """(sequences that are as long as the longest, keys that each of them has more than the others)
    in the batch of two lengths with this number, sum, longest and sum of squares.
    """
    mean = total / count
    above = longest - mean
    variance = squares / count - mean * mean
    if above <= 0.0 or variance <= 0.0:
        return 0.0, 0.0
    return count * variance / (variance + above * above), above + variance / above


class UnequalDecodes:
    """How much longer the attention of ``layers`` layers takes for its decodes' unequal lengths.

    ``kernel`` times them as equal ones; ``num_heads`` query heads of ``head_dim`` values of
    ``kv_bytes`` each. ``window``: keys of a sequence that its layers see, 0 for all. A kernel with
    a window splits no keys.
    """

    def __init__(
        self,
        kernel: Attention,
        num_heads: int,
        head_dim: int,
        kv_bytes: float,
        layers: int,
        window: int = 0,
    ) -> None:
        self._kernel, self._layers, self._window = kernel, layers, window
        self._heads, self._key_bytes = num_heads, 2.0 * head_dim * kv_bytes
        self._alone, self._beside = kernel.key_ns(beside=False), kernel.key_ns(beside=True)

    def ns(self, shape: BatchShape, bandwidth: float) -> float:
        """Of a launch on SMs that draw ``bandwidth`` bytes per ns; 0 where lengths are not known.

        Decodes beside a chunk have a thread block for each query head, alone one for each KV head.
        """
        if shape.unequal is UNSET:
            return 0.0
        count, total = shape.num_decodes, shape.decode_context
        if shape.remote is not None:
            count, total = count - shape.remote[0], total - shape.remote[1]
        heads, window, key_ns = self._heads, self._window, self._beside
        if not shape.chunks and not window:
            if self._kernel.key_splits(count, total + count) > 1:
                return 0.0
            heads, key_ns = self._kernel.decode_tiles, self._alone
        long, more = two_lengths(count, total, *shape.unequal)
        if window:
            longest = shape.unequal[0]
            more = max(0.0, min(longest, window) - min(max(0.0, longest - more), window))
        drawn = long * heads * self._key_bytes / key_ns  # bytes per ns, if nothing held them up
        return self._layers * more * key_ns / (1.0 + drawn / bandwidth)
