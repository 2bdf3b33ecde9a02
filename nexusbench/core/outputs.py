"""Where results may be written, and files that are whole or not there.

A file is written beside its place and renamed, which removes what was there: over a device such as
``/dev/null``, which root may do, that would leave a plain file there for every other program of the
machine.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from nexusbench.core.errors import NexusbenchError, UsageError

# What no other place on the same disk would mend, and the caller did not ask for.
FAULTS_OF_A_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE,
)  # fmt: skip


def check_replaceable(path: Path) -> None:
    """Refuse what is there and no file: a device, a pipe, a folder. Raises UsageError."""
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder. Name a file")
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot write {path}: it is a device or a pipe. Name a file")


def check_writable(path: Path) -> None:
    """Refuse a place that cannot be written before long work begins. Raises UsageError."""
    check_replaceable(path)
    parent = path.parent
    if not parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {parent}. Make it first")
    if not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write {path}: no permission. Choose another folder")


def not_written(path: Path, error: OSError, hint: str) -> NexusbenchError:
    """The error for ``path``: a usage error where asking for another place mends it, none where the
    disk is full or broken.
    """
    text = f"cannot write {path}: {error.strerror or error}. {hint}"
    return NexusbenchError(text) if error.errno in FAULTS_OF_A_DISK else UsageError(text)


def make_folder(path: Path) -> None:
    """Make the folder that results will go to, before long work begins. Raises UsageError, or
    NexusbenchError where the disk is full or broken.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        text = f"{path}: cannot be made: {error.strerror}. Choose another -o"
        kind = NexusbenchError if error.errno in FAULTS_OF_A_DISK else UsageError
        raise kind(text) from None


@contextmanager
def atomic_file(path: Path, hint: str = "Choose another file") -> Iterator[BinaryIO]:
    """A file to write; it takes its place when the block ends well, and leaves nothing otherwise.

    Raises UsageError if it cannot be written there, NexusbenchError if the disk is full or broken;
    ``hint`` is the end of the message.
    """
    check_replaceable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        # Files that are read within the block raise their own, named errors.
        raise not_written(path, error, hint) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_synced(path: Path, data: bytes) -> None:
    """Write in one step, and on the disk before anything that refers to it. Raises as
    :func:`atomic_file` does.
    """
    with atomic_file(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
