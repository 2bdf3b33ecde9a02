"""The package's logged warnings on stderr, each once in a command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


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
