"""Progress of a run on stderr: on a terminal a live panel of counts and rolling TTFT and TBT, read
from the engine cheaply; else one line when a run begins and one when it ends.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import RenderableType
from rich.live import Live
from rich.table import Table

from nexusbench.cli._console import ProgressLine, counted, progress_console
from nexusbench.core.clock import now_ns
from nexusbench.core.units import NS_PER_MS, NS_PER_S
from nexusbench.endpoint.status import Status

if TYPE_CHECKING:
    from nexusbench.engine.served import Served

RECENT_GAPS = 4096
RECENT_FIRST = 256
# Of more new tokens than this only the latest are sorted.
MOST_TOKENS = 20_000
_NEVER, _UNKNOWN = -1, -2

IntArray = npt.NDArray[np.int64]


class ProgressSnapshot(msgspec.Struct, frozen=True):
    """A moment of a run; times in ns of the device's clock, latencies in ms, None if unknown."""

    ended: int
    offered: int
    now_ns: int
    tokens: int
    running: int
    waiting: int
    kv_usage: float
    split: str
    ttft_ms: float | None
    tbt_ms: float | None


class _NewRows(NamedTuple):
    requests: IntArray
    times: IntArray


class RollingLatency:
    """Mean TTFT and TBT of the most recent tokens; each call reads only new rows of the event log.

    The engine empties its log whenever rows are written to disk. ``num_tokens`` counts all tokens
    ever made; the difference to the rows in the table was drained, so that positions counted from
    the start of the run stay valid. Requests with rows that were drained unread are left out until
    their next token.
    """

    def __init__(self, num_requests: int) -> None:
        self._last: IntArray = np.full(num_requests, _NEVER, dtype=np.int64)
        self._seen = self._drained = self._step_row = 0
        self._gaps = np.empty(0, dtype=np.int64)
        self._first = np.empty(0, dtype=np.int64)

    def update(self, engine: Served) -> None:
        """Read the rows that are new."""
        rows = self._new_rows(engine)
        if len(rows.requests) > MOST_TOKENS:
            # Of several rows of one request the last assignment counts, which is the latest.
            early = slice(0, len(rows.requests) - MOST_TOKENS)
            self._last[rows.requests[early]] = rows.times[early]
            rows = _NewRows(rows.requests[-MOST_TOKENS:], rows.times[-MOST_TOKENS:])
        if len(rows.requests):
            self._add(rows, engine)

    @property
    def ttft_ms(self) -> float | None:
        """Mean of the last RECENT_FIRST values, ms."""
        return float(self._first.mean()) / NS_PER_MS if len(self._first) else None

    @property
    def tbt_ms(self) -> float | None:
        """Mean of the last RECENT_GAPS values, ms."""
        return float(self._gaps.mean()) / NS_PER_MS if len(self._gaps) else None

    def _new_rows(self, engine: Served) -> _NewRows:
        tables = engine.log.tables
        token, done = tables["token"].columns, tables["step_done"].columns
        held = len(token["request"])
        drained = engine.num_tokens - held
        if drained != self._drained:
            self._drained, self._step_row = drained, 0
            if drained > self._seen:
                self._forget(engine, _copy(token["request"], 0))
                self._seen = drained
        start = self._seen - drained
        # Both tables are drained together: the tokens of every step that is left are left too.
        counts = _copy(done["tokens"], self._step_row)
        times = np.repeat(_copy(done["time"], self._step_row), counts)
        requests = _copy(token["request"], held - len(times))
        skip = start - (held - len(times))
        self._step_row, self._seen = len(done["time"]), drained + held
        return _NewRows(requests[skip:], times[skip:])

    def _forget(self, engine: Served, held: IntArray) -> None:
        """Rows were drained unread: the last token time of their requests is unknown."""
        self._last[self._last >= 0] = _UNKNOWN
        silent = np.flatnonzero(self._last == _NEVER)
        visible = np.bincount(held, minlength=len(self._last))
        for request in silent.tolist():
            if engine.requests[request].num_output_tokens > visible[request]:
                self._last[request] = _UNKNOWN

    def _add(self, rows: _NewRows, engine: Served) -> None:
        order = np.argsort(rows.requests, kind="stable")
        requests, times = rows.requests[order], rows.times[order]
        begins = np.append(True, requests[1:] != requests[:-1])
        before = np.append(0, times[:-1])
        before[begins] = self._last[requests[begins]]
        gaps, first = before >= 0, before == _NEVER
        # Back to the order of time: the most recent are last.
        back = np.argsort(order, kind="stable")
        self._gaps = np.append(self._gaps, (times - before)[back][gaps[back]])[-RECENT_GAPS:]
        begun = np.flatnonzero(first[back])[-RECENT_FIRST:]
        # Read only now: later turns of a session get their arrival time while the run goes on.
        offered = [engine.requests[r].arrival_ns for r in requests[back][begun].tolist()]
        ttft = times[back][begun] - np.array(offered, dtype=np.int64)
        self._first = np.append(self._first, ttft)[-RECENT_FIRST:]
        self._last[rows.requests] = rows.times


class ProgressReader:
    """Makes snapshots of an engine."""

    def __init__(self) -> None:
        self._rolling: RollingLatency | None = None

    def __call__(self, engine: Served) -> ProgressSnapshot:
        """A snapshot of the engine now."""
        if self._rolling is None:
            self._rolling = RollingLatency(len(engine.requests))
        self._rolling.update(engine)
        ended, offered = counts_of(engine)
        return ProgressSnapshot(
            ended=ended,
            offered=offered,
            now_ns=engine.now_ns,
            tokens=engine.num_tokens,
            running=engine.num_running,
            waiting=engine.num_waiting,
            kv_usage=engine.kv_usage,
            split=str(engine.split),
            ttft_ms=self._rolling.ttft_ms,
            tbt_ms=self._rolling.tbt_ms,
        )


def counts_of(source: Served | Status) -> tuple[int, int]:
    """(ended, offered) requests."""
    if isinstance(source, Status):
        return source.ended, source.requests
    return source.num_ended, len(source.requests)


def snapshot_of(status: Status) -> ProgressSnapshot:
    """A snapshot of a replay against a server, as far as its client can see it."""
    return ProgressSnapshot(
        ended=status.ended,
        offered=status.requests,
        now_ns=status.now_ns,
        tokens=status.tokens,
        running=status.flying,
        waiting=0,
        kv_usage=0.0,
        split="",
        ttft_ms=status.ttft_ms,
        tbt_ms=status.tbt_ms,
    )


def _copy(column: array[int], start: int) -> IntArray:
    """A copy of the column from ``start`` on: a view would keep the array from growing."""
    values: IntArray = np.array(column[start:], dtype=np.int64)
    return values


class Follower:
    """The progress callback of one run: shows each snapshot on a terminal, if there is one."""

    def __init__(self, title: str, show: Callable[[RenderableType], None] | None = None) -> None:
        self.title, self._show = title, show
        self._read = ProgressReader()
        self._began = now_ns()
        self._told = show is not None
        self._source: Served | Status | None = None

    def __call__(self, source: Served | Status) -> bool:
        """Show a snapshot; without a terminal, print once that the run has begun. Whether there is
        a terminal.
        """
        if not self._told:
            print(f"{self.title}: started", file=sys.stderr, flush=True)
            self._told = True
        self._source = source
        if self._show is not None:
            now = snapshot_of(source) if isinstance(source, Status) else self._read(source)
            self._show(self._panel(now))
        return self._show is not None

    def summary(self) -> str:
        """The line printed at the end of the run."""
        if self._source is None:
            return self.title
        ended, offered = counts_of(self._source)
        return f"{self.title}: {ended:,} of {counted(offered, 'request')}, {self._pace()}"

    def _pace(self) -> str:
        assert self._source is not None
        wall = max(1e-9, (now_ns() - self._began) / NS_PER_S)
        if isinstance(self._source, Status):
            return f"{self._source.now_ns / NS_PER_S:,.1f} s"
        run = self._source.now_ns / NS_PER_S
        if not self._source.simulated:
            return f"{run:,.1f} s"
        return f"{run:,.1f} s simulated in {wall:,.1f} s ({run / wall:,.0f}x)"

    def _panel(self, now: ProgressSnapshot) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        text = f"{now.ended:,}/{now.offered:,} {self._pace()}"
        grid.add_row(ProgressLine(self.title, now.ended, now.offered, text))
        ttft = "-" if now.ttft_ms is None else f"{now.ttft_ms:,.0f} ms"
        tbt = "-" if now.tbt_ms is None else f"{now.tbt_ms:,.1f} ms"
        inside = f"waiting {now.waiting:,}  KV {100 * now.kv_usage:.0f} %  split {now.split}  "
        # A client does not see inside the server.
        inside = inside if now.split else ""
        grid.add_row(f"  running {now.running:,}  {inside}recent TTFT {ttft}  TBT {tbt}")
        return grid


@contextmanager
def follow(title: str, *, quiet: bool) -> Iterator[Follower | None]:
    """Show the progress of one run on stderr; yields None if ``quiet``."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        follower = Follower(title)
        yield follower
    else:
        with Live(console=progress_console(), auto_refresh=False, transient=True) as live:
            follower = Follower(title, lambda shown: live.update(shown, refresh=True))
            yield follower
    print(follower.summary(), file=sys.stderr, flush=True)
