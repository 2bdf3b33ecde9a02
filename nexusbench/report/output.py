"""Files that are whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from nexusbench.core.errors import UsageError
from nexusbench.core.outputs import check_replaceable


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it takes its place when the block ends well, and leaves nothing otherwise.

    Raises UsageError if it cannot be written there, or the disk is full.
    """
    check_replaceable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        # Files that are read within the block raise their own, named errors.
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}. Choose another file"
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse a place that cannot be written before long work begins. Raises UsageError."""
    check_replaceable(path)
    parent = path.parent
    if not parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {parent}. Make it first")
    if not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write {path}: no permission. Choose another folder")
