"""What surrounds a command: its streams, warnings and signals.

Printed text cannot control the terminal. A closed pipe or a full log does not end a run. SIGTERM
and SIGHUP end a command as Ctrl-C does, and finished runs are kept.
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
from types import CodeType, FrameType
from typing import Any, TextIO, cast

from nexusbench.core.clock import sleep
from nexusbench.core.errors import Interrupted, NexusbenchError, Terminated
from nexusbench.core.printable import printable

# Limits of the width, columns: below, a table has one letter per line; above, lines are padding.
_LEAST, _MOST = 20, 2_000
# Windows has no SIGHUP.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_LOOK_S = 0.001


class Outlet:
    """A text stream in front of ``stream`` that drops control characters.

    ``vital``: a failed write is an error, except on a closed pipe (``| head``). On a stream that is
    not vital (stderr) the text is lost instead.
    """

    def __init__(self, stream: TextIO, *, vital: bool) -> None:
        self._stream, self._vital = stream, vital
        # Rich's own name for the file that its consoles shall write to. What they write has been
        # cleaned (see SafeConsole), and what is left controls the terminal on purpose.
        self.rich_proxied_file = _Passage(self)

    def write(self, text: str) -> int:
        """Print ``text``; a carriage return is allowed as its first character only."""
        back = text[:1] == "\r"
        self.pass_on("\r" + printable(text[1:]) if back else printable(text))
        return len(text)

    def pass_on(self, text: str) -> None:
        """Print ``text`` unchanged."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:
            self._fail(error)

    def flush(self) -> None:
        """Flush the stream."""
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
    """The same stream without cleaning, for Rich's consoles."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def write(self, text: str) -> int:
        """Print ``text`` unchanged."""
        self._outlet.pass_on(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outlet, name)


@contextmanager
def beside_results(faults: list[NexusbenchError]) -> Iterator[None]:
    """Write a file in addition to the results: an error is appended to ``faults`` instead of
    raised.
    """
    try:
        yield
    except NexusbenchError as error:
        faults.append(error)
    except OSError as error:
        place = error.filename or "an output"
        faults.append(NexusbenchError(f"cannot write {place}: {error.strerror or error}"))


def end_with(*faults: NexusbenchError | None) -> None:
    """Raise the first fault, after the results have been shown; nothing if there is none."""
    for fault in faults:
        if fault is not None:
            sys.stdout.flush()
            raise fault


def silence(stream: TextIO) -> None:
    """Redirect ``stream`` to the null device, including what it has buffered: the interpreter
    flushes it again at exit.
    """
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def outlets() -> Iterator[None]:
    """Put both streams behind outlets, and correct unusable values of ``COLUMNS`` and ``LINES``."""
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
    """Remove a terminal size that is no positive number and limit its range: shells, cron and
    containers set all of these.
    """
    value = os.environ.get(name)
    if value is None:
        return
    if not (value.isascii() and value.isdigit() and int(value[:9])):
        del os.environ[name]
    elif name == "COLUMNS":
        os.environ[name] = str(min(max(int(value[:9]), _LEAST), _MOST))


def open_closed_streams() -> None:
    """Open the null device for each standard stream that the caller has closed (``>&-``).

    Otherwise the next file to be opened would get its number, and Python would print errors into
    it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


class _ToStderr(logging.Handler):
    """Prints each warning once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print ``WARNING: ...`` to the present stderr; lost if that is closed."""
        text = record.getMessage()
        if text not in self._told:
            self._told.add(text)
            with suppress(OSError, ValueError, AttributeError):
                print(f"WARNING: {text}", file=sys.stderr)


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Print the package's logged warnings while a command runs."""
    handler, log = _ToStderr(), logging.getLogger("nexusbench")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class Heard:
    """The signal received while a command ran; ``number`` 0 for none."""

    number = 0

    def code(self, code: int) -> int:
        """The exit code; for an interrupted command the one of its signal."""
        return 128 + self.number if self.number and code == Interrupted.exit_code else code


@contextmanager
def heeding_signals() -> Iterator[Heard]:
    """Make the signals raise Terminated, which is a KeyboardInterrupt.

    A signal that is ignored (nohup) or handled by a caller is left alone.
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
        # Raised in a finaliser, where Python drops exceptions: ask for the end once more.
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            hook(lost)
            return
        threading.Thread(
            target=ask_again, args=(heard.number or signal.SIGINT,), daemon=True
        ).start()

    def ask_again(number: int) -> None:
        # What is raised in the hook itself is dropped too: wait until the main thread has left it.
        while _runs(on_unraisable.__code__):
            sleep(_LOOK_S)
        os.kill(os.getpid(), number)

    sys.unraisablehook = on_unraisable
    try:
        yield heard
    finally:
        sys.unraisablehook = hook
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _runs(code: CodeType) -> bool:
    """Whether the main thread is inside a call of ``code``."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None
