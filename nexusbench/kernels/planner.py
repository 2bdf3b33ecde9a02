"""From lengths and block tables to the index arrays that attention kernels read; no torch here."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nexusbench.core.errors import NexusbenchError

Ints = npt.NDArray[np.int64]
IntsLike = Sequence[int] | Ints

# Padding of so many tokens costs as much as a further call: measured with 2 KV heads of 64 values
# on 2 cores, 47 ns per token (gather and attention) against 20 us per bucket.
PADDED_TOKENS = 512


class BlockTables:
    """Block lists of running requests as rows of one padded array, extended in place.

    Rewriting thousands of block ids in every decode step would cost more than planning the step. A
    request's committed blocks never change while its list object stays the same (the KV cache
    manager replaces the list when it frees), so only new blocks are copied.
    """

    def __init__(self) -> None:
        self.table: Ints = np.zeros((16, 16), dtype=np.int64)
        self._row: dict[Hashable, int] = {}
        self._held: list[list[int]] = [[] for _ in range(16)]
        self._count: list[int] = [0] * 16
        self._free = list(range(15, -1, -1))

    def rows(self, keys: Sequence[Hashable], blocks: Sequence[list[int]]) -> Ints:
        """Rows of ``table`` that hold the block lists of the requests ``keys``, brought up to date.

        They are valid until the next call.
        """
        get, held, count = self._row.get, self._held, self._count
        rows = [0] * len(keys)
        for index, key in enumerate(keys):
            row, listed = get(key, -1), blocks[index]
            if row < 0 or held[row] is not listed or count[row] != len(listed):
                row = self._update(key, row, listed)
            rows[index] = row
        return np.array(rows, dtype=np.int64)

    def forget(self, key: Hashable) -> None:
        """Give back the row of a request that ended; unknown keys are fine."""
        row = self._row.pop(key, -1)
        if row >= 0:
            self._held[row], self._count[row] = [], 0
            self._free.append(row)

    def _update(self, key: Hashable, row: int, blocks: list[int]) -> int:
        if row < 0:
            if not self._free:
                self._grow_rows()
            row = self._row[key] = self._free.pop()
        start = self._count[row] if self._held[row] is blocks else 0
        start = min(start, len(blocks))
        if len(blocks) > self.table.shape[1]:
            wider = np.zeros((len(self.table), max(len(blocks), 2 * self.table.shape[1])), np.int64)
            wider[:, : self.table.shape[1]] = self.table
            self.table = wider
        self.table[row, start : len(blocks)] = blocks[start:]
        self._held[row], self._count[row] = blocks, len(blocks)
        return row

    def _grow_rows(self) -> None:
        old = len(self.table)
        self.table = np.concatenate([self.table, np.zeros_like(self.table)])
        self._held += [[] for _ in range(old)]
        self._count += [0] * old
        self._free = list(range(2 * old - 1, old - 1, -1))


@dataclass(frozen=True, slots=True)
class DecodeBucket:
    """Consecutive sequences of one query token each, of like lengths.

    Their tokens are the rows ``start:stop`` of the batch. ``lengths`` [n] count the keys they
    attend to, ``blocks`` [n, width] name the KV blocks these lie in, padded with valid block ids.
    """

    start: int
    stop: int
    lengths: Ints
    blocks: Ints


@dataclass(frozen=True, slots=True)
class ChunkGroup:
    """``count`` chunks of ``num_tokens`` query tokens each, one after the other from row ``start``.

    Only chunks without prior context are grouped; one with ``context`` > 0 computed tokens stands
    alone, and ``blocks`` [width] name the KV blocks of its context and its own tokens.
    """

    start: int
    count: int
    num_tokens: int
    context: int
    blocks: Ints

    @property
    def stop(self) -> int:
        """One past its last row."""
        return self.start + self.count * self.num_tokens


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """A flattened batch: where its tokens stand, where their K/V go, and what attends to what.

    Sequences stand in the order ``order`` [N] (indices into the caller's), so that whatever runs
    together is a slice. ``positions`` and ``slots`` [T] are each token's place in its request and
    in the KV cache; ``last_rows`` [N] the row of each sequence's last token, in the caller's order.
    ``query_starts`` [N + 1], ``lengths`` [N] (keys) and ``blocks`` [N, width] follow ``order``.
    """

    order: Ints
    positions: Ints
    slots: Ints
    last_rows: Ints
    query_starts: Ints
    lengths: Ints
    blocks: Ints
    num_decodes: int
    decodes: tuple[DecodeBucket, ...]
    chunks: tuple[ChunkGroup, ...]

    @property
    def num_tokens(self) -> int:
        """Rows of the flattened batch."""
        return len(self.positions)


def plan_attention(
    query_lens: IntsLike,
    context_lens: IntsLike,
    tables: Ints | Sequence[Sequence[int]],
    block_size: int,
    *,
    rows: Ints | None = None,
    padded_tokens: int = PADDED_TOKENS,
) -> AttentionPlan:
    """Plan one step of N sequences that compute ``query_lens`` tokens after ``context_lens``.

    ``tables`` are the block lists, or with ``rows`` the table of :class:`BlockTables` and the row
    of each sequence. ``padded_tokens`` is how many tokens of padding a bucket of decodes may have
    (what the attention backend says). Raises NexusbenchError if a block list is too short.
    """
    query, context = _ints(query_lens), _ints(context_lens)
    total = query + context
    width = -(-total // block_size)
    if rows is None:
        table, rows = _padded(tables, total, width), np.arange(len(query))
    else:
        table = np.asarray(tables)
    single = query == 1
    num_decodes = int(np.count_nonzero(single))
    order, cuts = _order(query, context, width, single, padded_tokens // block_size)
    in_order = np.array_equal(order, np.arange(len(query)))
    if not in_order:
        query, context, total, width = query[order], context[order], total[order], width[order]
        rows = rows[order]
    starts = np.zeros(len(query) + 1, dtype=np.int64)
    np.cumsum(query, out=starts[1:])
    blocks = table[rows, : int(width.max())]
    if num_decodes == len(query):
        positions, of = context, np.arange(len(query))
    else:
        of = np.repeat(np.arange(len(query)), query)
        positions = np.arange(starts[-1]) + np.repeat(context - starts[:-1], query)
    block, offset = np.divmod(positions, block_size)
    last_rows = np.empty(len(query), dtype=np.int64)
    last_rows[order] = starts[1:] - 1
    return AttentionPlan(
        order=order,
        positions=positions,
        slots=blocks[of, block] * block_size + offset,
        last_rows=last_rows,
        query_starts=starts,
        lengths=total,
        blocks=blocks,
        num_decodes=num_decodes,
        decodes=tuple(
            DecodeBucket(start, stop, total[start:stop], blocks[start:stop, : int(width[start])])
            for start, stop in cuts
        ),
        chunks=tuple(_chunks(num_decodes, starts, query, context, width, blocks)),
    )


def _ints(values: IntsLike) -> Ints:
    return np.asarray(values, dtype=np.int64)


def _padded(tables: Ints | Sequence[Sequence[int]], total: Ints, width: Ints) -> Ints:
    """Block lists as one array padded with block 0. Raises NexusbenchError if one is too short."""
    table = np.zeros((len(tables), int(width.max(initial=1))), dtype=np.int64)
    for index, (row, blocks, needed) in enumerate(zip(table, tables, width, strict=True)):
        if len(blocks) < needed:
            raise NexusbenchError(
                f"sequence {index} of a step holds {len(blocks)} KV blocks, its {total[index]} "
                f"tokens need {needed}"
            )
        row[:needed] = blocks[:needed]
    return table


def _order(
    query: Ints, context: Ints, width: Ints, single: npt.NDArray[np.bool_], padded_blocks: int
) -> tuple[Ints, list[tuple[int, int]]]:
    """The order of sequences, and the (start, stop) of each bucket of decodes.

    Decodes are first, longest first where more than one bucket pays; a bucket is closed when its
    padding exceeds ``padded_blocks``. Chunks follow: those without context by size, so that equal
    ones are neighbours, then the rest.
    """
    decodes = np.flatnonzero(single)
    cuts: list[tuple[int, int]] = []
    if len(decodes):
        widths = width[decodes]
        if int(widths.max()) * len(decodes) - int(widths.sum()) <= padded_blocks:
            cuts.append((0, len(decodes)))
            # The first sequence gives a bucket its width.
            if widths[0] != widths.max():
                decodes = decodes[np.argsort(-widths, kind="stable")]
        else:
            by_length = np.argsort(-widths, kind="stable")
            decodes, widths = decodes[by_length], widths[by_length]
            start = 0
            while start < len(decodes):
                waste = np.cumsum(widths[start] - widths[start:])
                stop = start + int(np.searchsorted(waste, padded_blocks, side="right"))
                cuts.append((start, stop))
                start = stop
    if len(decodes) == len(query):
        return decodes, cuts
    chunks = np.flatnonzero(~single)
    chunks = chunks[np.lexsort((query[chunks], context[chunks] > 0))]
    return np.concatenate([decodes, chunks]), cuts


def _chunks(
    first: int, starts: Ints, query: Ints, context: Ints, width: Ints, blocks: Ints
) -> list[ChunkGroup]:
    """The chunks from sequence ``first`` on, equal ones without context together."""
    groups: list[ChunkGroup] = []
    index = first
    while index < len(query):
        stop = index + 1
        if not context[index]:
            while stop < len(query) and not context[stop] and query[stop] == query[index]:
                stop += 1
        groups.append(
            ChunkGroup(
                start=int(starts[index]),
                count=stop - index,
                num_tokens=int(query[index]),
                context=int(context[index]),
                blocks=blocks[index, : int(width[index])],
            )
        )
        index = stop
    return groups


def query_tiles(
    query_starts: IntsLike, tile: int, contexts: IntsLike | None = None
) -> tuple[Ints, Ints]:
    """(sequence, first row within it) of every tile of ``tile`` query rows.

    The tiles that see the most keys (late in their sequence, after a long one of ``contexts``) are
    first, so that the longest do not run alone at the end.
    """
    sizes = np.diff(_ints(query_starts))
    counts = -(-sizes // tile)
    sequence = np.repeat(np.arange(len(sizes)), counts)
    ends = np.cumsum(counts)
    row = (np.arange(len(sequence)) - np.repeat(ends - counts, counts)) * tile
    seen = row if contexts is None else row + _ints(contexts)[sequence]
    longest = np.argsort(-seen, kind="stable")
    return sequence[longest], row[longest]
