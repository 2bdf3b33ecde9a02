"""Progress of many runs on one line of stderr: how many are done, and the estimated time left."""

from __future__ import annotations

import sys

from nexusbench.core.clock import now_ns
from nexusbench.core.units import NS_PER_S

# Interval between lines: a log file gets fewer than a terminal, which is overwritten in place.
_LOG_NS = 5 * NS_PER_S
_SCREEN_NS = NS_PER_S // 10


class Countdown:
    """Counts to ``total``; the estimate is based on ``weight`` units of work; ``quiet`` prints
    nothing.
    """

    def __init__(
        self, title: str, total: int, *, weight: int | None = None, quiet: bool = False
    ) -> None:
        self._title, self._total, self._quiet = title, total, quiet
        self._weight = total if weight is None else weight
        self._done = self._worked = 0
        self._began = self._told = now_ns()
        self._screen = sys.stderr.isatty()
        self._width = 0

    def step(self, what: str = "", weight: int = 1) -> None:
        """Count one more, of ``weight`` units of work; ``what`` names it or its result."""
        self._done += 1
        self._worked += weight
        every = _SCREEN_NS if self._screen else _LOG_NS
        if not self._quiet and now_ns() - self._told >= every:
            self._show(self._line(what))
            self._told = now_ns()

    def end(self, text: str = "") -> None:
        """Print a last line: what was done, and how long it took."""
        if not self._quiet:
            seconds = (now_ns() - self._began) / NS_PER_S
            self._show(f"{self._title}: {text or self._done} in {duration(seconds)}", last=True)

    def _line(self, what: str) -> str:
        # More steps may turn up than were planned: the total grows with them.
        line = f"{self._title}: {self._done:,} of {max(self._done, self._total):,}"
        # The duration of steps beyond the plan is unknown.
        if 0 < self._worked < self._weight:
            passed = (now_ns() - self._began) / NS_PER_S
            left = passed / self._worked * (self._weight - self._worked)
            line += f", about {duration(left)} left"
        return f"{line}  {what}".rstrip()

    def _show(self, line: str, *, last: bool = False) -> None:
        if self._screen:
            # Blanks overwrite the rest of a longer previous line.
            print(f"\r{line:<{self._width}}", end="\n" if last else "", file=sys.stderr, flush=True)
            self._width = 0 if last else len(line)
        else:
            print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A duration as text: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
