"""What a command runs in: its streams, its warnings and its signals.

Nothing printed controls the terminal, and a reader that has left, or a log that is full, ends no
run. SIGTERM and SIGHUP end a command as Ctrl-C does: in good order, with what was finished kept.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO, cast

from nexusbench.core.errors import Interrupted, NexusbenchError, Terminated
from nexusbench.core.printable import printable

# What a width may be: below, a table has a letter a line; above, a line of blanks has no end.
_LEAST, _MOST = 20, 2_000
# SIGHUP is not everywhere.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_AGAIN_S = 0.01


class Outlet:
    """A text stream in front of ``stream``, which drops control characters of what it is given.

    ``vital``: what does not arrive is an error, unless the reader has left (``| head``). What is
    said beside the results is not vital: a full log, or a terminal that is gone, costs the words.
    """

    def __init__(self, stream: TextIO, *, vital: bool) -> None:
        self._stream, self._vital = stream, vital
        # Rich's own name for the file that its consoles shall write to. What they write has been
        # cleaned (see _safe_console), and what is left controls the terminal on purpose.
        self.rich_proxied_file = _Passage(self)

    def write(self, text: str) -> int:
        """Print ``text``; only at its very beginning may it go back to the start of the line."""
        back = text[:1] == "\r"
        self.pass_on("\r" + printable(text[1:]) if back else printable(text))
        return len(text)

    def pass_on(self, text: str) -> None:
        """Print ``text`` as it is."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:
            self._fail(error)

    def flush(self) -> None:
        """What was printed has gone out when this returns."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _fail(self, error: OSError | ValueError) -> None:
        if self._vital and getattr(error, "errno", None) != errno.EPIPE:
            raise error
        silence(self._stream)


class _Passage:
    """The same stream for code that writes only what it was asked for."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def write(self, text: str) -> int:
        """Print ``text`` as it is."""
        self._outlet.pass_on(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outlet, name)


@contextmanager
def beside_results(faults: list[NexusbenchError]) -> Iterator[None]:
    """Write something beside the results: where that cannot be, it is added to ``faults`` and costs
    nothing else.
    """
    try:
        yield
    except NexusbenchError as error:
        faults.append(error)
    except OSError as error:
        place = error.filename or "an output"
        faults.append(NexusbenchError(f"cannot write {place}: {error.strerror or error}"))


def end_with(*faults: NexusbenchError | None) -> None:
    """End the command with the first that went wrong beside its results, which have been shown; no
    fault, no end.
    """
    for fault in faults:
        if fault is not None:
            sys.stdout.flush()
            raise fault


def silence(stream: TextIO) -> None:
    """Send what ``stream`` still holds, and all that follows, nowhere: the interpreter writes it
    once more when it ends.
    """
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def outlets() -> Iterator[None]:
    """Put both streams behind outlets, and let ``COLUMNS`` and ``LINES`` make sense."""
    for name in ("COLUMNS", "LINES"):
        _tame(name)
    before = sys.stdout, sys.stderr
    if not isinstance(sys.stdout, Outlet):
        sys.stdout = cast(TextIO, Outlet(sys.stdout, vital=True))
    if not isinstance(sys.stderr, Outlet):
        sys.stderr = cast(TextIO, Outlet(sys.stderr, vital=False))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _tame(name: str) -> None:
    """A size of the terminal that is no number above 0 says nothing; one that is tiny or huge is
    moved to where tables can still be read. Shells, cron and containers set all of these.
    """
    value = os.environ.get(name)
    if value is None:
        return
    if not (value.isascii() and value.isdigit() and int(value[:9])):
        del os.environ[name]
    elif name == "COLUMNS":
        os.environ[name] = str(min(max(int(value[:9]), _LEAST), _MOST))


def open_closed_streams() -> None:
    """Give the three standard streams a place where the caller has closed them (``>&-``).

    Without one the next file that is opened would be it, results and all, and Python would print
    errors among the results.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


class _ToStderr(logging.Handler):
    """Prints a warning the first time it comes."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """``WARNING: ...``, wherever stderr is now; a closed one loses it."""
        text = record.getMessage()
        if text not in self._told:
            self._told.add(text)
            with suppress(OSError, ValueError, AttributeError):
                print(f"WARNING: {text}", file=sys.stderr)


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """While a command runs."""
    handler, log = _ToStderr(), logging.getLogger("nexusbench")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class Heard:
    """What came while a command ran; ``number`` is the signal's, 0 for none."""

    number = 0

    def code(self, code: int) -> int:
        """The exit code: of an interrupted command, the one that names the signal."""
        return 128 + self.number if self.number and code == Interrupted.exit_code else code


@contextmanager
def heeding_signals() -> Iterator[Heard]:
    """Let the signals raise Terminated, which is a KeyboardInterrupt.

    A signal that is ignored (nohup) stays so; one that a caller handles is the caller's.
    """
    heard = Heard()

    def on_signal(number: int, frame: FrameType | None) -> None:
        heard.number = number
        raise Terminated(number)

    ours: list[int] = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, on_signal)
    hook = sys.unraisablehook

    def on_unraisable(lost: sys.UnraisableHookArgs) -> None:
        # It came while an object was let go of, where Python drops what is raised: ask again.
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            hook(lost)
            return
        number = heard.number or signal.SIGINT
        again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    sys.unraisablehook = on_unraisable
    try:
        yield heard
    finally:
        sys.unraisablehook = hook
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
