"""Progress of a profiling sweep on stderr: a live line on a terminal, else one line every 30 s."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from nexusbench.cli._console import ProgressLine, counted, progress_console
from nexusbench.profiling.sweep import Progress, SweepOutcome

_EVERY_S = 30.0  # between two lines where there is no terminal
_REFRESH_S = 0.1
# Counted in the summary instead of one warning each.
_COMMON = ("wide interval", "samples discarded")


class Watcher:
    """The progress callback of a sweep and of the fits after it."""

    def __init__(self, title: str, show: Callable[[RenderableType], None] | None) -> None:
        self._title, self._show = title, show
        self._told: set[str] = set()
        self._shown_s = 0.0 if show is None else -1.0

    def __call__(self, now: Progress) -> None:
        """Called after every point."""
        for warning in now.warnings:
            kind = warning.partition(":")[0]
            if kind not in self._told and not any(common in warning for common in _COMMON):
                self._told.add(kind)
                print(f"WARNING: {warning}", file=sys.stderr, flush=True)
        wait = _EVERY_S if self._show is None else _REFRESH_S
        if now.elapsed_s - self._shown_s < wait:
            return
        self._shown_s = now.elapsed_s
        if self._show is None:
            print(f"{self._title}: {_state(now)}", file=sys.stderr, flush=True)
        else:
            self._show(self._bar(now))

    def fitting(self, name: str) -> None:
        """Called before the fit of a cost model."""
        if self._show is not None:
            self._show(Text(f"{self._title}  fitting cost model {name}"))

    def finished(self, outcome: SweepOutcome) -> None:
        """The line printed at the end."""
        kept = f", {outcome.kept:,} kept from before" if outcome.kept else ""
        print(
            f"{self._title}: {counted(outcome.measured, 'point')} measured in "
            f"{outcome.seconds:,.1f} s{kept}",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def _bar(self, now: Progress) -> RenderableType:
        text = f"{_state(now, short=True)} {now.setting.kind}"
        return ProgressLine(self._title, now.done, now.most, text)


def _state(now: Progress, *, short: bool = False) -> str:
    bound = "≤" if short else "at most"
    text = f"{now.done:,} of {bound} {now.most:,} points"
    if now.left_s is not None:
        text += f", {bound} {_duration(now.left_s)} left"
    return text


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 6000 else f"{whole / 3600:.1f} h"


@contextmanager
def watch(title: str, *, quiet: bool) -> Iterator[Watcher | None]:
    """Show a sweep's progress on stderr; yields None if ``quiet``."""
    if quiet:
        yield None
    elif not sys.stderr.isatty():
        yield Watcher(title, None)
    else:
        with Live(console=progress_console(), auto_refresh=False, transient=True) as live:
            yield Watcher(title, lambda shown: live.update(shown, refresh=True))
