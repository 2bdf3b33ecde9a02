"""Progress on stderr: a live panel on a terminal, else one line when a run ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nexusbench.cli._console import ProgressLine, counted, progress_console
from nexusbench.cli._progress import ProgressReader, Snapshot, snapshot_of
from nexusbench.core.clock import now_ns
from nexusbench.core.units import NS_PER_S
from nexusbench.endpoint.status import Status

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nexusbench.engine.engine import Engine


class Follower:
    """The callback of a run: keeps the last snapshot and shows it, if there is where."""

    def __init__(self, title: str, show: Callable[[RenderableType], None] | None = None) -> None:
        self.title, self._show = title, show
        self._read = ProgressReader()
        self._began = now_ns()
        self._told = show is not None
        self._simulated = False
        self.last: Snapshot | None = None

    def __call__(self, source: Engine | Status) -> bool:
        """Take a snapshot and show it; without a terminal, say once that the run has begun. Whether
        there is one.
        """
        if not self._told:
            print(f"{self.title}: started", file=sys.stderr, flush=True)
            self._told = True
        if isinstance(source, Status):
            self.last = snapshot_of(source)
        else:
            self._simulated = source.device.spec.simulated
            self.last = self._read(source)
        if self._show is not None:
            self._show(self._panel(self.last))
        return self._show is not None

    def summary(self) -> str:
        """One line at the end of the run."""
        if self.last is None:
            return self.title
        return (
            f"{self.title}: {self.last.ended:,} of {counted(self.last.offered, 'request')}, "
            f"{self._pace()}"
        )

    def _pace(self) -> str:
        assert self.last is not None
        wall = max(1e-9, (now_ns() - self._began) / NS_PER_S)
        run = self.last.now_ns / NS_PER_S
        if not self._simulated:
            return f"{run:,.1f} s"
        return f"{run:,.1f} s simulated in {wall:,.1f} s ({run / wall:,.0f}x)"

    def _panel(self, now: Snapshot) -> RenderableType:
        from rich.table import Table

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
    """Show the progress of one run on stderr; None where nothing is wanted."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        follower = Follower(title)
        yield follower
    else:
        from rich.live import Live

        with Live(console=progress_console(), auto_refresh=False, transient=True) as live:
            follower = Follower(title, lambda shown: live.update(shown, refresh=True))
            yield follower
    print(follower.summary(), file=sys.stderr, flush=True)
