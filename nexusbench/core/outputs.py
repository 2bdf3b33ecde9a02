"""Where results may be written: a file takes its place by a rename, which removes what was there.

Renaming over a device such as ``/dev/null``, which root may do, would leave a plain file there for
every other program of the machine.
"""

from __future__ import annotations

from pathlib import Path

from nexusbench.core.errors import UsageError


def check_replaceable(path: Path) -> None:
    """Refuse what is there and no file: a device, a pipe, a folder. Raises UsageError."""
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder. Name a file")
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot write {path}: it is a device or a pipe. Name a file")


def make_folder(path: Path) -> None:
    """Make the folder that results will go to, before long work begins. Raises UsageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be made: {error.strerror}. Choose another -o") from None
