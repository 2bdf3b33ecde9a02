"""SIGTERM and SIGHUP end a command as Ctrl-C does: in good order, with what was finished kept."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType

from nexusbench.core.clock import sleep
from nexusbench.core.errors import Interrupted, Terminated

# SIGHUP is not everywhere.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

_LOOK_S = 0.001


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
