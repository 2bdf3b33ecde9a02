"""``nexusbench``, ``python -m nexusbench``: Ctrl-C is one line and exit code 130 from here on."""

from __future__ import annotations

import os
import signal
from types import FrameType


def entry() -> None:
    """The console script. Importing the command line takes a tenth of a second or more, in which
    Ctrl-C would show the traceback of whatever was being imported.
    """
    # Ctrl-C stays ignored where the shell set that (nohup, a job in the background).
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default:
        signal.signal(signal.SIGINT, _leave)
    from nexusbench.cli.outlet import open_closed_streams

    open_closed_streams()
    from nexusbench.cli.main import entry as run

    if default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: an exception could be swallowed by an import that tries something else then."""
    os.write(2, b"error: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    entry()
