"""Bytes of an input file: plain or gzip (told by content, not by name), checked to be text."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.outputs import atomic_file

_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"


class Source(msgspec.Struct, frozen=True):
    """A text file: ``text`` is UTF-8 without byte-order mark, ``sha256`` is of the stored bytes."""

    path: Path
    text: bytes
    sha256: str


def read_source(path: str | os.PathLike[str]) -> Source:
    """Read a text file, plain or gzip.

    Raises InputError for a missing, unreadable, empty, truncated, binary or non-UTF-8 file.
    """
    path = Path(path)
    raw = _read_bytes(path)
    if not raw:
        raise InputError("the file is empty", file=path, hint="Is the download complete?")
    text = _decompress(raw, path) if raw.startswith(_GZIP_MAGIC) else raw
    text = text.removeprefix(_UTF8_MARK)
    if not text.strip():
        raise InputError(
            "the file holds nothing but white space", file=path, hint="Is the download complete?"
        )
    _check_text(text, path)
    return Source(path, text, hashlib.sha256(raw).hexdigest())


def write_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` so that ``path`` holds either all of it or what it held before.

    Raises UsageError if the folder cannot be written to, or ``path`` is a device or a pipe;
    NexusbenchError where the disk is full or broken.
    """
    with atomic_file(Path(path), "Choose a folder that you may write to") as file:
        file.write(content)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError("no such file", file=path, hint="Check the path") from None
    except IsADirectoryError:
        raise InputError("this is a folder", file=path, hint="Name one file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read: {reason}", file=path, hint="Check the path") from None


def _decompress(raw: bytes, path: Path) -> bytes:
    try:
        return gzip.decompress(raw)
    except EOFError:
        raise InputError(
            "the gzip data ends too early (truncated)", file=path, hint="Download it again"
        ) from None
    except (OSError, zlib.error) as error:
        raise InputError(
            f"the gzip data is corrupt: {error}", file=path, hint="Download it again"
        ) from None


def _check_text(text: bytes, path: Path) -> None:
    """Raises InputError at the first byte that no UTF-8 text file has."""
    zero = text.find(b"\0")
    if zero >= 0:
        raise InputError(
            "this is a binary file, not text",
            file=path,
            line=text.count(b"\n", 0, zero) + 1,
            hint="A trace is JSON lines or CSV in UTF-8, plain or gzip",
        )
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"byte 0x{text[error.start]:02x} is not UTF-8 text",
            file=path,
            line=text.count(b"\n", 0, error.start) + 1,
            hint="A trace is JSON lines or CSV in UTF-8, plain or gzip",
        ) from None
