"""The token table read in chunks: counts, first and last tokens, gaps, in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nexusbench.core.errors import InputError
from nexusbench.metrics.intervals import IntArray

CHUNK = 1 << 19  # tokens at a time
MANY = 1 << 24  # values of a distribution from which on memory counts more than the 8th digit
_SMALL_GAPS = np.iinfo(np.uint32).max  # ns; longer ones need 64 bits


Parts = Callable[[], Iterator[npt.NDArray[np.int32]]]


class Tokens(NamedTuple):
    """Per request its tokens and the times of the first and last (ns, -1 for none); every gap.

    ``gaps`` is in order of the later token's time, in 32 bits where all fit; ns.
    """

    number: IntArray
    first: IntArray
    last: IntArray
    gaps: npt.NDArray[Any] | None  # None where they were let go
    owners: npt.NDArray[np.int32] | None = None  # of the gaps, where some were left out


class _Chunk(NamedTuple):
    request: npt.NDArray[np.int32]  # sorted, stable
    time: IntArray
    before: IntArray  # the request's token before, -1 for none
    place: IntArray  # in the chunk as logged


def read_tokens(parts: Parts, times: IntArray, counts: IntArray, size: int) -> Tokens:
    """Tokens of ``size`` requests: ``parts()`` gives the log's token column in pieces, each time
    anew; ``times`` and ``counts`` are the times of the steps and how many tokens each made.

    The pieces are read twice, to know how much room the gaps need.
    """
    count = np.zeros(size, dtype=np.int64)
    for part in _pieces(parts()):
        count += np.bincount(part, minlength=size)
    first = np.full(size, -1, dtype=np.int64)
    last = np.full(size, -1, dtype=np.int64)
    total = int(np.maximum(count - 1, 0).sum())
    gaps: npt.NDArray[Any] = np.empty(total, dtype=np.uint32)
    filled = 0
    for chunk in _chunks(parts(), times, counts, last):
        begins = chunk.before < 0
        first[chunk.request[begins]] = chunk.time[begins]
        later = ~begins
        found = np.empty(len(begins), dtype=np.int64)
        found[chunk.place] = chunk.time - chunk.before
        kept = np.empty(len(begins), dtype=np.bool_)
        kept[chunk.place] = later
        new = found[kept]
        if len(new) and new.min() < 0:
            raise InputError(
                "a request's tokens go back in time: event table 'step_done' is not in the order "
                "of time; the run is damaged"
            )
        if len(new) and gaps.dtype == np.uint32 and new.max() > _SMALL_GAPS:
            gaps = gaps.astype(np.int64)
        gaps[filled : filled + len(new)] = new
        filled += len(new)
    return Tokens(count, first, last, gaps)


def apart(tokens: Tokens, parts: Parts) -> Tokens:
    """Without the gaps of 0: those tokens came together, as in one chunk of a stream."""
    assert tokens.gaps is not None
    there = tokens.gaps > 0
    owners = gap_owners(parts, len(tokens.number))[there]
    return tokens._replace(gaps=tokens.gaps[there], owners=owners)


def gap_owners(parts: Parts, size: int) -> npt.NDArray[np.int32]:
    """Whose gap each of ``Tokens.gaps`` is."""
    seen = np.zeros(size, dtype=np.bool_)
    owners = [np.empty(0, dtype=np.int32)]
    for part in _pieces(parts()):
        _, firsts = np.unique(part, return_index=True)
        begins = np.zeros(len(part), dtype=np.bool_)
        begins[firsts] = ~seen[part[firsts]]
        seen[part[firsts]] = True
        owners.append(part[~begins].astype(np.int32))
    return np.concatenate(owners)


def stable_order(keys: npt.NDArray[Any], size: int) -> IntArray:
    """Stable argsort of integers in 0..size-1: radix passes of 16 bits, many times faster than a
    merge sort.
    """
    order = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    if size > 0x10000:
        order = order[np.argsort((keys[order] >> 16).astype(np.uint16), kind="stable")]
    return order


def _pieces(parts: Iterator[npt.NDArray[np.int32]]) -> Iterator[npt.NDArray[np.int32]]:
    """The parts, cut where they are longer than a chunk."""
    for part in parts:
        for start in range(0, len(part), CHUNK):
            yield part[start : start + CHUNK]


def _chunks(
    parts: Iterator[npt.NDArray[np.int32]], times: IntArray, counts: IntArray, last: IntArray
) -> Iterator[_Chunk]:
    """Chunks of the token table by request; ``last`` is kept up to date between them."""
    ends = np.cumsum(counts)
    stop = 0
    for part in _pieces(parts):
        start, stop = stop, stop + len(part)
        low, high = np.searchsorted(ends, [start, stop - 1], side="right")
        within = counts[low : high + 1].copy()
        within[0] = min(ends[low], stop) - start
        if high > low:
            within[-1] = stop - ends[high - 1]
        moments = np.repeat(times[low : high + 1], within)
        order = stable_order(part, len(last))
        request, time = part[order], moments[order]
        same = np.zeros(len(request), dtype=np.bool_)
        same[1:] = request[1:] == request[:-1]
        before = last[request]
        before[1:][same[1:]] = time[:-1][same[1:]]
        last[request] = time  # the last of equal indices wins: the latest token
        yield _Chunk(request, time, before, order)
