"""SIGTERM and SIGHUP end a command as Ctrl-C does: in good order, with what was finished kept."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nexusbench.core.errors import Interrupted, Terminated

# SIGHUP is not everywhere.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

_AGAIN_S = 0.01


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
