"""How much work attention is beside its projections: FLOPs and bytes of one layer on one GPU, by
kind of mixer. A kind is a class here and a line of the table at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from nexusbench.core.mixers import (
    CompressedAttention,
    FullAttention,
    LatentAttention,
    SparseAttention,
    StateMixer,
    WindowAttention,
)

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


class PickedWork(MixerWork, frozen=True, gc=False):
    """Attention to the ``topk`` tokens that an indexer picks: ``pair_flops`` and ``key_bytes`` of
    those, ``index_flops`` and ``index_bytes`` of all tokens (0: the picks are an earlier layer's).
    Latent attention is absorbed, in prompts too.
    """

    topk: int
    pair_flops: float
    key_bytes: float
    query_bytes: float
    index_flops: float
    index_bytes: float

    def chunks(self, chunks: _Chunks) -> Amounts:
        """Of keys that several tokens pick one copy is read."""
        flops = size = 0.0
        for count, before in chunks:
            last = before + count
            pairs = count * mean_keys(before + 1, last, self.topk)
            flops += pairs * self.pair_flops + prefill_pairs(count, before) * self.index_flops
            size += min(last, count * self.topk) * self.key_bytes
            size += last * self.index_bytes + count * self.query_bytes
        return flops, size

    def decodes(self, count: int, context: int) -> Amounts:
        """If all contexts are as long as their mean."""
        keys = min(context, count * self.topk)
        flops = keys * self.pair_flops + context * self.index_flops
        size = keys * self.key_bytes + context * self.index_bytes
        return flops, size + count * self.query_bytes


class EntryWork(PickedWork, frozen=True, gc=False):
    """DeepSeek-V4: a window, and an entry for every ``ratio`` tokens (0: none), of which ``topk``
    are picked (0: all). The index is of entries.
    """

    window: int
    ratio: int

    def chunks(self, chunks: _Chunks) -> Amounts:
        """As above."""
        flops = size = 0.0
        for count, before in chunks:
            last = before + count
            pairs = count * mean_keys(before + 1, last, self.window)
            keys, first, most = float(min(last, count + self.window)), before + 1, last
            if self.ratio:
                kept = self.entries(1, last)
                mean = mean_keys(first / self.ratio, most / self.ratio, self.topk or most)
                pairs += count * mean
                keys += min(last / self.ratio, count * kept)
                flops += prefill_pairs(count, before) / self.ratio * self.index_flops
                size += last / self.ratio * self.index_bytes
            flops += pairs * self.pair_flops
            size += keys * self.key_bytes + count * self.query_bytes
        return flops, size

    def decodes(self, count: int, context: int) -> Amounts:
        """As above."""
        keys = min(context, count * self.window) + self.entries(count, context)
        flops, size = keys * self.pair_flops, keys * self.key_bytes + count * self.query_bytes
        if self.ratio:
            flops += context / self.ratio * self.index_flops
            size += context / self.ratio * self.index_bytes
        return flops, size

    def entries(self, count: int, context: int) -> float:
        """Those that ``count`` tokens of ``context`` tokens in all see."""
        if not self.ratio:
            return 0.0
        entries = context / self.ratio
        return min(entries, float(count * self.topk)) if self.topk else entries


class StateWork(MixerWork, frozen=True, gc=False):
    """A recurrent state: ``token_flops`` of a token, ``moved_bytes`` that it reads and writes, and
    ``state_bytes`` of a sequence.
    """

    token_flops: float
    moved_bytes: float
    state_bytes: float

    def chunks(self, chunks: _Chunks) -> Amounts:
        """States are written once a chunk, and read."""
        tokens, _ = chunk_work(chunks)
        size = tokens * self.moved_bytes + 2.0 * len(chunks) * self.state_bytes
        return tokens * self.token_flops, size

    def decodes(self, count: int, context: int) -> Amounts:
        """Whatever the context."""
        return count * self.token_flops, count * (self.moved_bytes + 2.0 * self.state_bytes)


def mean_keys(first: float, last: float, most: float) -> float:
    """Keys of a token, on average over tokens that see ``first`` to ``last``, ``most`` at most."""
    if last <= most:
        return (first + last) / 2
    if first >= most:
        return most
    growing = most - first
    return most - growing * growing / (2 * (last - first))


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


def _picked(mixer: SparseAttention, kv: float, activation: float) -> PickedWork:
    base, index_bytes = mixer.base, mixer.index_bytes
    if isinstance(base, LatentAttention):
        values = base.kv_rank + base.rope_dim
        queries, gated = base.num_heads * (values + base.kv_rank), _gated(base, base.value_dim)
    else:
        values = base.token_values
        queries = base.num_heads * (base.head_dim + base.value_size)
        gated = _gated(base, base.value_size)
    index = 0 if mixer.reuses else mixer.index_heads * mixer.index_dim
    return PickedWork(
        token_bytes=values * kv + index_bytes,
        message_values=queries + values + index,
        rotated=0,  # with the attention's small kernels
        gated=gated,
        topk=mixer.topk,
        pair_flops=2.0 * queries,
        key_bytes=values * kv,
        query_bytes=queries * activation,
        index_flops=2.0 * index,
        index_bytes=index_bytes,
    )


def _entries(mixer: CompressedAttention, kv: float, activation: float) -> EntryWork:
    queries, index = 2 * mixer.num_heads * mixer.head_dim, mixer.index_heads * mixer.index_dim
    return EntryWork(
        token_bytes=mixer.kv_values * kv + mixer.index_bytes,
        message_values=queries + mixer.head_dim + index,
        rotated=0,
        gated=0,
        topk=mixer.topk,
        pair_flops=2.0 * queries,
        key_bytes=mixer.head_dim * kv,
        query_bytes=queries * activation,
        index_flops=2.0 * index,
        index_bytes=mixer.index_bytes * mixer.ratio,
        window=mixer.window,
        ratio=mixer.ratio,
    )


def _state(mixer: StateMixer, kv: float, activation: float) -> StateWork:
    heads, keys, values = mixer.heads, mixer.key_dim, mixer.value_dim
    moved = 2 * heads * (keys + values)
    return StateWork(
        token_bytes=0.0,
        message_values=moved,
        rotated=0,
        gated=3 * heads * values,  # the output is normalised and gated
        # The state decays, takes a key times a value, and with a query gives an output.
        token_flops=6.0 * heads * keys * values,
        moved_bytes=moved * activation,
        state_bytes=mixer.state_bytes,
    )


def _gated(mixer: FullAttention | LatentAttention, value: int) -> int:
    """Values of the gate, and of the output read and written."""
    return mixer.gate + 2 * mixer.num_heads * value if mixer.gate else 0


# (mixer of one GPU, bytes of a cached value, bytes of an activation) -> its work.
MIXER_WORK: dict[type, Callable[[Any, float, float], MixerWork]] = {
    FullAttention: _full,
    WindowAttention: _window,
    LatentAttention: _latent,
    SparseAttention: _picked,
    CompressedAttention: _entries,
    StateMixer: _state,
}
