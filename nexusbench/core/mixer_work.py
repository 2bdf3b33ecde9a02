"""How much work attention is beside its projections: FLOPs and bytes of one layer on one GPU, by
kind of mixer. A kind is a class here and a line of the table at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from nexusbench.core.mixers import FullAttention, LatentAttention, WindowAttention

_Chunks = tuple[tuple[int, int], ...]
Amounts = tuple[float, float]  # (FLOPs, bytes)


class MixerWork(msgspec.Struct, frozen=True, gc=False):
    """What every kind answers, for one layer.

    ``token_bytes`` is what a token adds to the KV cache, ``message_values`` what its attention on
    another GPU sends there and gets back, ``rotated`` the values that a kernel of its own rotates,
    ``gated`` the values that gate the output and what they gate.
    """

    token_bytes: float
    message_values: int
    rotated: int
    gated: int

    def chunks(self, chunks: _Chunks) -> Amounts:
        """Of prompt tokens: ``(tokens, tokens before them)`` of each chunk."""
        raise NotImplementedError

    def decodes(self, count: int, context: int) -> Amounts:
        """Of ``count`` decodes with ``context`` keys in all, their own included."""
        raise NotImplementedError


class FullWork(MixerWork, frozen=True, gc=False):
    """Attention to the whole context: ``pair_flops`` per query and key, ``key_bytes`` of a token's
    keys and values, ``query_bytes`` of reading its queries and writing its output.
    """

    pair_flops: float
    key_bytes: float
    query_bytes: float

    def chunks(self, chunks: _Chunks) -> Amounts:
        """Keys are read once a chunk."""
        queries, pairs, keys = self.seen(chunks)
        return pairs * self.pair_flops, keys * self.key_bytes + queries * self.query_bytes

    def decodes(self, count: int, context: int) -> Amounts:
        """One query over each context; queries and outputs, a few in a thousand, are left out."""
        keys = self.kept(count, context)
        return keys * self.pair_flops, keys * self.key_bytes

    def seen(self, chunks: _Chunks) -> tuple[int, float, int]:
        """(tokens, pairs of a token and a key that it sees, keys read) of chunks."""
        tokens, pairs = chunk_work(chunks)
        keys = tokens
        for _, before in chunks:
            keys += before
        return tokens, pairs, keys

    def kept(self, count: int, context: int) -> float:
        """Keys that decodes read."""
        return context


class WindowWork(FullWork, frozen=True, gc=False):
    """The same where a token sees the last ``window`` tokens only, its own included."""

    window: int

    def seen(self, chunks: _Chunks) -> tuple[int, float, int]:
        """The first tokens of a prompt see all before them."""
        tokens, pairs, keys = 0, 0.0, 0
        for count, before in chunks:
            growing = min(count, max(0, self.window - before))
            tokens += count
            pairs += prefill_pairs(growing, before) + (count - growing) * self.window
            keys += count + min(before, self.window - 1)
        return tokens, pairs, keys

    def kept(self, count: int, context: int) -> float:
        """If all contexts are as long as their mean: only their sum is known."""
        return min(context, count * self.window)


class PieceWork(WindowWork, frozen=True, gc=False):
    """The same where a token sees those before it in the same piece of ``window`` tokens."""

    def seen(self, chunks: _Chunks) -> tuple[int, float, int]:
        """Each piece is a prompt of its own."""
        return FullWork.seen(self, pieces(chunks, self.window))

    def kept(self, count: int, context: int) -> float:
        """If contexts longer than a piece end anywhere in one."""
        if context <= count * self.window:
            return context
        return count * (self.window + 1) / 2


class LatentWork(MixerWork, frozen=True, gc=False):
    """MLA: a chunk runs on keys and values that are expanded for each head, those of the tokens
    before it anew; decodes on the latents, for which queries and outputs are projected instead
    (DeepSeek-V2, 2405.04434, section 2.1). That projection is the expansion's work.

    ``expand_flops`` and ``expanded_bytes`` are of a token's keys and values, ``chunk_*`` of its
    query in a prompt, ``decode_*`` of its query in a decode.
    """

    expand_flops: float
    expanded_bytes: float
    chunk_pair_flops: float
    chunk_query_bytes: float
    decode_pair_flops: float
    decode_query_bytes: float

    def chunks(self, chunks: _Chunks) -> Amounts:
        """Expanding the tokens before a chunk included: latents read, keys and values written."""
        queries, pairs = chunk_work(chunks)
        earlier = 0
        for _, before in chunks:
            earlier += before
        size = queries * (self.chunk_query_bytes + self.expanded_bytes)
        size += earlier * (self.token_bytes + 2.0 * self.expanded_bytes)
        return pairs * self.chunk_pair_flops + earlier * self.expand_flops, size

    def decodes(self, count: int, context: int) -> Amounts:
        """All heads read one latent; their queries are as wide as it, and not left out."""
        size = context * self.token_bytes + count * self.decode_query_bytes
        return context * self.decode_pair_flops, size


def prefill_pairs(num_tokens: int, context: int) -> float:
    """(query, key) pairs of ``num_tokens`` causal queries after ``context`` tokens."""
    return num_tokens * (context + (num_tokens + 1) / 2)


def chunk_work(chunks: _Chunks) -> tuple[int, float]:
    """(tokens, (query, key) pairs) of all chunks together."""
    tokens, pairs = 0, 0.0
    for count, before in chunks:
        tokens += count
        pairs += prefill_pairs(count, before)
    return tokens, pairs


def pieces(chunks: _Chunks, size: int) -> _Chunks:
    """Chunks cut where a multiple of ``size`` tokens begins, each with the tokens before it from
    there on: what attends to what in chunked attention (Llama 4).
    """
    made: list[tuple[int, int]] = []
    for count, before in chunks:
        start = before % size
        while count > 0:
            part = min(count, size - start)
            made.append((part, start))
            count, start = count - part, 0
    return tuple(made)


def _full(mixer: FullAttention, kv: float, activation: float) -> FullWork:
    return FullWork(*_common(mixer, kv, activation))


def _window(mixer: WindowAttention, kv: float, activation: float) -> WindowWork:
    kind: type[WindowWork] = PieceWork if mixer.chunked else WindowWork
    return kind(*_common(mixer, kv, activation), mixer.window)


def _common(
    mixer: FullAttention, kv: float, activation: float
) -> tuple[float, int, int, int, float, float, float]:
    """The fields of FullWork."""
    heads, values = mixer.num_heads, mixer.token_values
    sizes = mixer.head_dim + mixer.value_size
    rotated = heads + (0 if mixer.shares_kv else mixer.num_kv_heads)
    return (
        0.0 if mixer.shares_kv else values * kv,
        heads * sizes + (0 if mixer.shares_kv else values),
        rotated * mixer.head_dim,
        _gated(mixer, mixer.value_size),
        2.0 * heads * sizes,
        values * kv,
        heads * sizes * activation,
    )


def _latent(mixer: LatentAttention, kv: float, activation: float) -> LatentWork:
    heads, rank, rope = mixer.num_heads, mixer.kv_rank, mixer.rope_dim
    key, value = mixer.nope_dim + rope, mixer.value_dim
    queries = heads * (2 * rank + rope)
    return LatentWork(
        token_bytes=(rank + rope) * kv,
        message_values=queries + rank + rope,
        rotated=0,  # with the attention's small kernels
        gated=_gated(mixer, value),
        expand_flops=2.0 * rank * heads * (mixer.nope_dim + value),
        expanded_bytes=heads * (key + value) * activation,
        chunk_pair_flops=2.0 * heads * (key + value),
        chunk_query_bytes=heads * (key + value) * activation,
        decode_pair_flops=2.0 * queries,
        decode_query_bytes=queries * activation,
    )


def _gated(mixer: FullAttention | LatentAttention, value: int) -> int:
    """Values of the gate, and of the output read and written."""
    return mixer.gate + 2 * mixer.num_heads * value if mixer.gate else 0


# (mixer of one GPU, bytes of a cached value, bytes of an activation) -> its work.
MIXER_WORK: dict[type, Callable[[Any, float, float], MixerWork]] = {
    FullAttention: _full,
    WindowAttention: _window,
    LatentAttention: _latent,
}
