"""Compressed attention (DeepSeek-V4; transformers, models/deepseek_v4): all heads share one key a
token that is its value too, in full over a window, and before it one entry for every few tokens,
all of them or those that an indexer picks.

A query goes through the keys of its window and its entries in one kernel over gathered keys
(``selection.py``), whose tiles are as wide as the longest sequence needs. Fixed times and those of
a token are of all small kernels of a layer, the compressor's among them. Its products are not in
here. Layers that have a window and nothing else take the constants of those with all entries.
"""

from __future__ import annotations

from nexusbench.core.mixer_work import mean_keys
from nexusbench.core.mixers import CompressedAttention
from nexusbench.core.specs import GpuSpec
from nexusbench.physics.operators import L2, NOTHING, OperatorClass, scaled_sum
from nexusbench.physics.precisions import sparse_constants
from nexusbench.physics.selection import (
    Choice,
    Gathered,
    IndexScores,
    SmallKernels,
    causal,
)

HEADS, WIDTH = 64, 64  # of a tile; keys that its width is a multiple of
# Prompts whose keys are gathered and converted at once, and that share a launch: vLLM's workspace.
PROMPTS = 4
_WIDE = 2.0  # bytes of a value of a 16-bit cache

_Chunks = tuple[tuple[int, int], ...]


class EntryAttention:
    """Times of ``layers`` layers of ``mixer``, one GPU's part of it. ``kv_bytes`` and
    ``activation_bytes`` are those of one value.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        mixer: CompressedAttention,
        kv_bytes: float = 2.0,
        activation_bytes: float = 2.0,
        layers: int = 1,
    ) -> None:
        own = sparse_constants(gpu, "picks" if mixer.topk else "entries")
        heads, self._window = mixer.num_heads, float(mixer.window)
        self._ratio, self._topk = mixer.ratio, mixer.topk
        self._gathered = Gathered(
            gpu, own, heads=heads, rows=HEADS, row_flops=4.0 * mixer.head_dim,
            key_bytes=mixer.head_dim * kv_bytes, narrow=kv_bytes < _WIDE,
        )  # fmt: skip
        entry_bytes = mixer.index_bytes * mixer.ratio
        self._scores: IndexScores | None = None
        self._choice: Choice | None = None
        if mixer.topk:
            self._choice = Choice(gpu, own, mixer.topk)
            self._scores = IndexScores(
                gpu, own, mixer.index_heads, mixer.index_dim, entry_bytes, narrow=True
            )
        self._key_bytes, self._index_bytes = mixer.head_dim * kv_bytes, entry_bytes
        wide = 2 * heads * mixer.head_dim * activation_bytes + mixer.index_heads * entry_bytes
        self._new_bytes = own.passes * wide + mixer.head_dim * (activation_bytes + kv_bytes)
        self._small = SmallKernels(gpu, own, self._new_bytes, layers, own.launch_us)
        self._l2 = L2(gpu)

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
        """As ``Attention.time``: all layers on ``sms`` SMs, in ns. Decodes are taken to be of equal
        length.
        """
        tokens = num_decodes
        for count, _ in chunks:
            tokens += count
        if not tokens:
            return NOTHING
        context, window = decode_context / max(1, num_decodes), self._window
        keys = min(context, window) + self._kept(context)
        parts: list[tuple[int, float, float, float]] = []
        different = num_decodes * keys
        for count, before in chunks:
            last = before + count
            mean = mean_keys(before + 1, last, window) + self._mean_entries(before + 1, last)
            kept = min(last, window + count) + min(self._entries(last), count * self._kept(last))
            parts.append((count, self._width(last), mean, kept))
            different += kept
        per_byte = 1.0 / bandwidth
        indexed = self._entries(decode_context)
        if copies:
            new = tokens * self._new_bytes
            seen = new + different * self._key_bytes + indexed * self._index_bytes
            per_byte = self._l2.per_byte(copies * seen, sms, per_byte)
        made = NOTHING
        if num_decodes:
            width = window + self._kept(context)
            made = self._gathered.time([], num_decodes, keys, width, sms, per_byte)
        for first in range(0, len(parts), PROMPTS):
            prompts = self._gathered.time(parts[first : first + PROMPTS], 0, 0, 0, sms, per_byte)
            made = scaled_sum(prompts, 1.0, made)
        if self._scores is not None and self._choice is not None:
            entries = causal(chunks, self._ratio)
            index = self._scores.time(entries, num_decodes, indexed, sms, per_byte)
            made = scaled_sum(index, 1.0, made)
            each = self._entries(context)
            chosen = self._choice.time(entries, num_decodes, each, sms, per_byte)
            made = scaled_sum(chosen, 1.0, made)
        return self._small.after(made, tokens, bool(chunks), sms, per_byte)

    def _entries(self, context: float) -> float:
        """Entries of ``context`` tokens."""
        return context / self._ratio if self._ratio else 0.0

    def _kept(self, context: float) -> float:
        """Those of them that a query sees."""
        entries = self._entries(context)
        return min(entries, self._topk) if self._topk else entries

    def _mean_entries(self, first: int, last: int) -> float:
        """On average over queries that see ``first`` to ``last`` tokens."""
        if self._topk:
            return mean_keys(self._entries(first), self._entries(last), self._topk)
        return (self._entries(first) + self._entries(last)) / 2

    def _width(self, last: float) -> float:
        """Keys of a tile's rows in a launch whose longest context is ``last`` tokens."""
        return self._window + -(-self._kept(last) // WIDTH) * WIDTH
