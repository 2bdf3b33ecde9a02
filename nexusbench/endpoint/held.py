"""Rows of a replay's event log on their way to it: held back until no row can precede them."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nexusbench.core.events import EventTable
from nexusbench.core.units import NS_PER_MS, NS_PER_US
from nexusbench.endpoint.counting import can_hold
from nexusbench.endpoint.exchange import NOT_YET, Exchange
from nexusbench.endpoint.stream import Answer

# No server makes tokens so fast: deliveries closer together were held back on their way.
TOGETHER_NS = 200 * NS_PER_US
# So was a whole answer that is read within so much, and within this share of the wait for it.
_BURST_NS, _BURST_SHARE = 5 * NS_PER_MS, 50

IntArray = npt.NDArray[np.int64]
Steps = list[tuple[int, int]]


def deliveries(steps: Steps, sent_ns: int) -> Steps:
    """(time, tokens) as deliveries that a client can tell apart: what is read in one burst arrived
    together, when the first of it did.
    """
    found: Steps = []
    latest = 0
    for time, tokens in steps:
        if found and time - latest < TOGETHER_NS:
            found[-1] = (found[-1][0], found[-1][1] + tokens)
        else:
            found.append((time, tokens))
        latest = time
    if len(found) > 1:
        first, span = found[0][0], latest - found[0][0]
        if span <= _BURST_NS and span * _BURST_SHARE <= first - sent_ns:
            return [(first, sum(tokens for _, tokens in found))]
    return found


class UnderWay:
    """The deliveries so far of a request that has not ended, by chunks, or a count that runs: the
    usage at the end may yet say otherwise. What was taken in is not looked at again.
    """

    def __init__(self) -> None:
        self.times, self.tokens = array("q"), array("q")
        self._seen = self._latest = self._counted = 0

    def take(self, answer: Answer) -> None:
        """Take in what was received since the last call."""
        found, runs = answer.deliveries[self._seen :], answer.usage.runs
        self._seen += len(found)
        for delivery in found:
            tokens = delivery.counted - self._counted if runs else 0
            self._counted = max(self._counted, delivery.counted)
            if not (self.times or delivery.size or tokens > 0):
                continue  # nothing is there yet
            if not (tokens and can_hold(delivery, tokens)):
                tokens = delivery.chunks
            if self.times and delivery.time - self._latest < TOGETHER_NS:
                self.tokens[-1] += tokens
            else:
                self.times.append(delivery.time)
                self.tokens.append(tokens)
            self._latest = delivery.time


class _Rows:
    """Equally long columns, the first of which is the time, the second the request."""

    def __init__(self, width: int) -> None:
        self._columns = [array("q") for _ in range(width)]

    def copy(self) -> _Rows:
        """The same rows, to be added to."""
        other = _Rows(0)
        other._columns = [column[:] for column in self._columns]
        return other

    def add(self, *values: int) -> None:
        """One row."""
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)

    def extend(self, *columns: array[int]) -> None:
        """Many rows."""
        for column, values in zip(self._columns, columns, strict=True):
            column.extend(values)

    def cut(self, before: int | None) -> list[IntArray]:
        """Take out the rows of earlier than ``before`` (all for None), sorted."""
        columns = [np.array(column, dtype=np.int64) for column in self._columns]
        order = np.lexsort((columns[1], columns[0]))
        place = len(order)
        if before is not None:
            place = int(np.searchsorted(columns[0][order], before))
        self._columns = [array("q", column[order[place:]].tobytes()) for column in columns]
        return [column[order[:place]] for column in columns]


class Held:
    """Rows of the event log that are not written yet."""

    def __init__(self) -> None:
        self.arrived, self.sent, self.steps, self.ends = _Rows(4), _Rows(3), _Rows(3), _Rows(4)

    def copy(self) -> Held:
        """The same rows, to be added to."""
        other = Held()
        for name, rows in vars(self).items():
            setattr(other, name, rows.copy())
        return other

    def take(self, exchange: Exchange, times: array[int], tokens: array[int], cached: int) -> None:
        """Hold what is known of an exchange, but for its end."""
        request = exchange.request
        index, prompt, bound = request.index, request.num_prompt_tokens, request.max_tokens
        self.arrived.add(request.arrival_ns, index, prompt, bound)
        if exchange.sent_ns != NOT_YET:
            self.sent.add(exchange.sent_ns, index, cached)
        self.steps.extend(times, array("q", [index]) * len(times), tokens)

    def write(self, tables: Mapping[str, EventTable], step: int, before: int | None = None) -> int:
        """Move rows to ``tables``: all, or those of earlier than ``before`` alone. The first step
        has the number ``step``; returns that of the next.
        """
        time, index, prompt, bound = self.arrived.cut(before)
        _extend(tables["arrived"], index, time, prompt, bound)
        time, index, cached = self.sent.cut(before)
        _extend(tables["admitted"], index, time, cached)
        time, index, tokens = self.steps.cut(before)
        steps = np.arange(step, step + len(time))
        _extend(tables["step_done"], steps, time, np.full(len(time), -1), tokens)
        _extend(tables["token"], np.repeat(index, tokens))
        time, index, outcome, code = self.ends.cut(before)
        _extend(tables["ended"], index, time, outcome, code)
        return step + len(steps)


def _extend(table: EventTable, *columns: npt.NDArray[Any]) -> None:
    """Append many rows at once: the caller must leave the interpreter to the thread that sends."""
    for column, values in zip(table.columns.values(), columns, strict=True):
        column.frombytes(values.astype(f"i{column.itemsize}").tobytes())
