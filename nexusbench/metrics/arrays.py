"""Event tables as arrays: whether they fit together, tokens read in pieces, sets of intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nexusbench.core.errors import InputError
from nexusbench.core.events import OUTCOMES, PREEMPTION_KINDS
from nexusbench.core.units import NS_PER_MS

if TYPE_CHECKING:
    from nexusbench.core.events import RunFacts

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def to_ms(ns: npt.NDArray[Any]) -> FloatArray:
    """Nanoseconds as milliseconds."""
    return ns / NS_PER_MS


def pick(values: IntArray, rows: IntArray) -> IntArray:
    """``values[rows]``, -1 where the row is -1."""
    picked = np.full(len(rows), -1, dtype=np.int64)
    known = rows >= 0
    picked[known] = values[rows[known]]
    return picked


def own_column(values: Any, dtype: type[np.signedinteger[Any]]) -> npt.NDArray[Any]:
    """An array of ``dtype``: copied from a list or array.array, shared with a numpy array."""
    own = isinstance(values, np.ndarray)
    return np.asarray(values, dtype=dtype) if own else np.array(values, dtype=dtype)


class Intervals(NamedTuple):
    """Disjoint intervals in growing order, ns."""

    starts: IntArray
    ends: IntArray

    @property
    def length(self) -> int:
        """Total length, ns."""
        return int((self.ends - self.starts).sum())

    def covered_until(self, times: IntArray) -> FloatArray:
        """How much of the set lies before each time, ns."""
        if not len(self.starts):
            return np.zeros(len(times))
        points = np.column_stack((self.starts, self.ends)).ravel()
        lengths = self.ends - self.starts
        after = np.cumsum(lengths)
        covered = np.column_stack((after - lengths, after)).ravel()
        result: FloatArray = np.interp(times, points, covered)
        return result


def union(starts: IntArray, ends: IntArray) -> Intervals:
    """The union of any intervals ``[starts, ends)``, in any order."""
    if not len(starts):
        return Intervals(starts, ends)
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    gap = starts[1:] > reach[:-1]
    return Intervals(starts[np.append(True, gap)], reach[np.append(gap, True)])


def time_with_several(sets: list[Intervals]) -> int:
    """For how long at least two of the sets hold at the same time, ns."""
    if len(sets) < 2:
        return 0
    starts = np.concatenate([one.starts for one in sets])
    ends = np.concatenate([one.ends for one in sets])
    times = np.concatenate((starts, ends))
    changes = np.concatenate((np.ones_like(starts), -np.ones_like(ends)))
    order = np.argsort(times, kind="stable")
    times, active = times[order], np.cumsum(changes[order])
    return int(np.diff(times)[active[:-1] >= 2].sum())


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


class _TokenChunk(NamedTuple):
    request: npt.NDArray[np.int32]  # sorted, stable
    time: IntArray
    before: IntArray  # the request's token before, -1 for none
    place: IntArray  # in the chunk as logged


def read_tokens(parts: Parts, times: IntArray, counts: IntArray, size: int) -> Tokens:
    """Tokens of ``size`` requests: ``parts()`` gives the log's token column in pieces, each time
    anew; ``times`` and ``counts`` are the times of the steps and how many tokens each made.

    The pieces are read twice: the first pass counts the gaps.
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
    """Without the gaps of 0, which lie between tokens of one delivery of a stream."""
    assert tokens.gaps is not None
    there = tokens.gaps > 0
    owners = gap_owners(parts, len(tokens.number))[there]
    return tokens._replace(gaps=tokens.gaps[there], owners=owners)


def gap_owners(parts: Parts, size: int) -> npt.NDArray[np.int32]:
    """The request of each of ``Tokens.gaps``."""
    seen = np.zeros(size, dtype=np.bool_)
    owners = [np.empty(0, dtype=np.int32)]
    for part in _pieces(parts()):
        _, firsts = np.unique(part, return_index=True)
        begins = np.zeros(len(part), dtype=np.bool_)
        begins[firsts] = ~seen[part[firsts]]
        seen[part[firsts]] = True
        owners.append(part[~begins].astype(np.int32))
    return np.concatenate(owners)


def gap_steps(
    parts: Parts, counts: IntArray, size: int
) -> Iterator[tuple[npt.NDArray[np.int32], IntArray, IntArray]]:
    """For the gaps of :func:`read_tokens`, in pieces and in their order: their requests, and the
    rows of the steps that made the earlier and the later token.
    """
    last = np.full(size, -1, dtype=np.int64)
    for chunk in _chunks(parts(), np.arange(len(counts)), counts, last):
        logged = np.empty(len(chunk.place), dtype=np.int64)
        logged[chunk.place] = np.arange(len(logged))
        logged = logged[chunk.before[logged] >= 0]
        yield chunk.request[logged], chunk.before[logged], chunk.time[logged]


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
) -> Iterator[_TokenChunk]:
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
        yield _TokenChunk(request, time, before, order)


Tables = Mapping[str, Mapping[str, npt.NDArray[Any]]]
Where = Callable[[str, int], tuple[Path, int]]

_CHANGED = "The file was changed after the run: restore it, or run again"
# Tables whose rows are written at the engine's own time, so they are in order of time.
_ORDERED = (
    "admitted", "kv_blocked", "submitted", "step_done", "repartitioned", "preempted", "ended",
)  # fmt: skip
# Of columns that may be -1: unknown to the writer of the log.
_UNKNOWN = ("predicted", "solo", "cached_tokens")
_ONCE = ("arrived", "ended")


def check_requests(requests: Mapping[str, npt.NDArray[Any]]) -> None:
    """The requests are numbered. Raises InputError."""
    if not np.array_equal(requests["request"], np.arange(len(requests["request"]))):
        raise InputError("the requests of the run are not numbered 0..n-1; it is damaged")


def check_indices(table: str, request: npt.NDArray[Any], count: int, row: int = 0) -> None:
    """All name one of ``count`` requests; ``row`` is that of the first. Raises InputError."""
    if len(request) and (request.min() < 0 or request.max() >= count):
        bad = int(np.flatnonzero((request < 0) | (request >= count))[0])
        raise Misfit(
            table, row + bad, "request",
            f"names a request that does not exist: {request[bad]} of {count}",
        )  # fmt: skip


class Misfit(InputError):
    """A row that cannot be, by table and row; the reader of the file adds its name."""

    def __init__(
        self, table: str, row: int, column: str, problem: str, file: Path | None = None
    ) -> None:
        super().__init__(
            f"event table '{table}', row {row}: {problem}", file=file, field=column, hint=_CHANGED
        )
        self.table, self.row, self.column, self.what = table, row, column, problem

    def located(self, where: Where) -> Misfit:
        """The same with its file, and its row there."""
        file, row = where(self.table, self.row)
        return Misfit(self.table, row, self.column, self.what, file)


def check_tables(tables: Tables, requests: Mapping[str, npt.NDArray[Any]], facts: RunFacts) -> None:
    """Check what metrics assume of a stored log. Raises Misfit for the first row that does
    not meet it.
    """
    for table, column, highest in _codes(facts):
        _check_range(table, column, tables[table][column], 0, highest)
    for table, columns in tables.items():
        for column, values in columns.items():
            _check_range(table, column, values, -1 if column in _UNKNOWN else 0, None)
    for column in ("prompt_tokens", "output_tokens", "max_tokens"):
        _check_range("requests", column, requests[column], 0, None)
    # A client writes rows in the order of deliveries; metrics that need another order sort them.
    for table in _ORDERED if facts.observed == "engine" else ():
        _check_order(table, "time", tables[table]["time"])
    for table in _ONCE:
        _check_once(table, "request", tables[table]["request"])
    _check_known(tables, "ended", "request", tables["arrived"]["request"])
    if facts.observed == "engine":
        _check_once("submitted", "step", tables["submitted"]["step"])
        _check_known(tables, "step_done", "step", tables["submitted"]["step"])
        _check_known(tables, "chunk", "step", tables["submitted"]["step"])


def _codes(facts: RunFacts) -> Iterator[tuple[str, str, int]]:
    """Columns that are indices, and the highest value of each."""
    yield "ended", "outcome", len(OUTCOMES) - 1
    yield "preempted", "kind", len(PREEMPTION_KINDS) - 1
    yield "moved", "source", len(facts.pools) - 1
    yield "moved", "target", len(facts.pools) - 1
    yield "submitted", "partition", len(facts.partitions) - 1
    if facts.strings:
        yield "ended", "reason", len(facts.strings) - 1
        yield "repartitioned", "reason", len(facts.strings) - 1
    if facts.splits:
        yield "submitted", "split", len(facts.splits) - 1
        yield "repartitioned", "split", len(facts.splits) - 1


def _check_range(
    table: str, column: str, values: npt.NDArray[Any], low: int, high: int | None
) -> None:
    if not len(values):
        return
    if values.min() < low or (high is not None and values.max() > high):
        bad = values < low if high is None else (values < low) | (values > high)
        row = int(np.flatnonzero(bad)[0])
        within = f"{low} or more" if high is None else f"within {low}..{high}"
        raise Misfit(table, row, column, f"{values[row]} is not {within}")


def _check_order(table: str, column: str, values: npt.NDArray[Any]) -> None:
    back = np.flatnonzero(values[1:] < values[:-1])
    if len(back):
        row = int(back[0]) + 1
        raise Misfit(table, row, column, f"{values[row]} comes after {values[row - 1]}")


def _check_once(table: str, column: str, values: npt.NDArray[Any]) -> None:
    order = np.argsort(values, kind="stable")
    again = np.flatnonzero(values[order][1:] == values[order][:-1])
    if len(again):
        row = int(order[again + 1].min())
        raise Misfit(table, row, column, f"{values[row]} is there a second time")


def _check_known(tables: Tables, table: str, column: str, known: npt.NDArray[Any]) -> None:
    values = tables[table][column]
    strange = np.flatnonzero(~np.isin(values, known))
    if len(strange):
        row = int(strange[0])
        other = "arrived" if column == "request" else "submitted"
        raise Misfit(table, row, column, f"{values[row]} is not in event table '{other}'")
