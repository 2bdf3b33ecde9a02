"""Text of an input file: plain or gzip (detected by content, not by name), checked and bounded.

A file is read piece by piece, so that what is no text, has no end or unpacks to far more than it
holds is refused in little time and memory.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.outputs import atomic_file

# Bounds of one input: bytes as stored, bytes of text, lines, bytes of one line.
MAX_STORED = 2 << 30
MAX_TEXT = 384 << 20
MAX_LINES = 1 << 24
MAX_LINE = 32 << 20

_PIECE = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# How files begin that hold a trace in a form to be unpacked or converted first.
_OTHER_FORMS = {
    b"PK\x03\x04": "a zip archive", b"\x28\xb5\x2f\xfd": "zstd data", b"BZh": "bzip2 data",
    b"\xfd7zXZ\x00": "xz data", b"PAR1": "a parquet file",
}  # fmt: skip
_TEXT_HINT = "A trace is JSON lines or CSV in UTF-8, plain or gzip"


class Source(msgspec.Struct, frozen=True):
    """A text file: ``text`` is UTF-8 without byte-order mark, lines end with a line feed;
    ``sha256`` is of the stored bytes.
    """

    path: Path
    text: bytes
    sha256: str


class TooLarge(InputError):
    """The text goes on beyond what is read of one file; nothing else is wrong with it."""


def shown(text: str, most: int = 40) -> str:
    """``text`` for a message: one line without control characters, cut to ``most`` characters."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: most + 1])
    return text if len(text) <= most else f"{text[: most - 3]}..."


class TextFile:
    """A file that is read once, from the beginning, in pieces of whole lines.

    Raises InputError for what is missing, unreadable, no file (a pipe, a device, a folder), too
    large, truncated, binary or no UTF-8; ``line`` counts the lines that were given out.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.line = 0
        self._stored = _StoredBytes(self.path)
        self._size = 0

    def __enter__(self) -> TextFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stored.file.close()

    def pieces(self) -> Iterator[bytes]:
        """The text, about a MiB at a time; each piece but the last ends with a line feed."""
        rest, carriage = b"", None
        for chunk in self._chunks():
            if carriage is None:
                self._check_form(chunk)
                chunk = chunk.removeprefix(_UTF8_MARK)
                # Only a file without any line feed has lines that end with a carriage return.
                carriage = b"\r" in chunk and b"\n" not in chunk
            if carriage:
                chunk = chunk.replace(b"\r", b"\n")
            end = chunk.rfind(b"\n") + 1
            if not end:
                rest += chunk
                self._check_line(rest)
                continue
            piece, rest = rest + chunk[:end], chunk[end:]
            yield self._checked(piece)
        if rest:
            yield self._checked(rest)

    def sha256(self) -> str:
        """Of the stored bytes, all of them."""
        while self._stored.read(_PIECE):
            pass
        return self._stored.digest.hexdigest()

    def _chunks(self) -> Iterator[bytes]:
        """The text in pieces, unpacked."""
        start = self._stored.peek()
        if not start:
            raise InputError("the file is empty", file=self.path, hint="Is the download complete?")
        packed = start.startswith(_GZIP_MAGIC)
        while chunk := self._unpacked() if packed else self._stored.read(_PIECE):
            self._size += len(chunk)
            if self._size > MAX_TEXT:
                what = f"{MAX_TEXT >> 20} MiB of text"
                raise self._too_large(f"unpacks to more than {what}" if packed else f"over {what}")
            yield chunk

    def _too_large(self, what: str) -> TooLarge:
        hint = "Cut the file, or serve its beginning with --limit N or --window START:END"
        return TooLarge(f"{what}, the most that is read", file=self.path, hint=hint)

    def _unpacked(self) -> bytes:
        hint = "Download it again"
        try:
            text: bytes = self._stored.gzip.read(_PIECE)
            return text
        except EOFError:
            problem = "the gzip data ends too early (truncated)"
        except gzip.BadGzipFile as error:
            problem = f"the gzip data is corrupt: {shown(str(error))}"
            if "Not a gzipped" in str(error):  # the first part was told by its first bytes
                problem = "something that is no gzip data follows the gzip data"
                hint += ", or keep only what gzip -dc FILE prints"
        except (OSError, zlib.error) as error:
            problem = f"the gzip data is corrupt: {shown(str(error), 80)}"
        raise InputError(problem, file=self.path, hint=hint)

    def _check_form(self, chunk: bytes) -> None:
        """Raises InputError for a file that begins as another known form does."""
        if chunk.startswith(_UTF16_MARKS):
            raise InputError(
                "this is UTF-16 or UTF-32, to be read as a binary file", file=self.path, line=1,
                hint="Convert it: iconv -f UTF-16 -t UTF-8 FILE",
            )  # fmt: skip
        for magic, form in _OTHER_FORMS.items():
            if chunk.startswith(magic):
                raise InputError(
                    f"this is a binary file, {form}", file=self.path, line=1, hint=_TEXT_HINT
                )

    def _check_line(self, line: bytes) -> None:
        """Raises InputError for a line that is too long, or one that is no text at all."""
        if len(line) > MAX_LINE:
            raise InputError(
                f"the line is longer than {MAX_LINE >> 20} MiB", file=self.path,
                line=self.line + 1, hint="A trace has one request a line",
            )  # fmt: skip
        self._check_text(line[-_PIECE:], whole=False)

    def _checked(self, piece: bytes) -> bytes:
        """The piece. Raises InputError at the first byte that no text file has."""
        self._check_line(piece[: piece.find(b"\n") + 1])
        self._check_text(piece, whole=True)
        self.line += piece.count(b"\n") + (not piece.endswith(b"\n"))
        if self.line > MAX_LINES:
            raise self._too_large(f"over {MAX_LINES:,} lines")
        return piece

    def _check_text(self, piece: bytes, *, whole: bool) -> None:
        zero = piece.find(b"\0")
        if zero >= 0:
            raise InputError(
                "this is a binary file, not text (it has a NUL byte)", file=self.path,
                line=self.line + piece.count(b"\n", 0, zero) + 1, hint=_TEXT_HINT,
            )  # fmt: skip
        if not whole or piece.isascii():
            return
        try:
            piece.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"byte 0x{piece[error.start]:02x} is not UTF-8 text", file=self.path,
                line=self.line + piece.count(b"\n", 0, error.start) + 1, hint=_TEXT_HINT,
            ) from None  # fmt: skip


class _StoredBytes:
    """The stored bytes, hashed as they are read; ``gzip`` reads the same, unpacked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = _open(path)
        self.digest = hashlib.sha256()
        self.gzip = gzip.GzipFile(fileobj=self, mode="rb")  # type: ignore[call-overload]

    def peek(self) -> bytes:
        """Some bytes from the beginning, which are still to be read."""
        try:
            return self.file.peek(len(_GZIP_MAGIC))
        except OSError as error:
            raise _unreadable(self.path, error) from None

    def read(self, size: int = -1) -> bytes:
        try:
            data = self.file.read(size)
        except OSError as error:
            raise _unreadable(self.path, error) from None
        self.digest.update(data)
        return data


def read_source(path: str | os.PathLike[str]) -> Source:
    """Read a text file, plain or gzip, whole.

    Raises InputError for a missing, unreadable, empty, truncated, binary or non-UTF-8 file, and
    for one that is larger than the bounds of this module.
    """
    with TextFile(path) as file:
        text = b"".join(file.pieces())
        if not text or text.isspace():
            raise white_space(file.path)
        return Source(file.path, text, file.sha256())


def white_space(path: Path) -> InputError:
    """The error of a file without anything to read."""
    return InputError(
        "the file holds nothing but white space", file=path, hint="Is the download complete?"
    )


def stored_sha256(path: str | os.PathLike[str]) -> str:
    """The hash of a file's stored bytes. Raises InputError if it cannot be read."""
    with TextFile(path) as file:
        return file.sha256()


def write_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` so that ``path`` holds either all of it or what it held before.

    Raises UsageError if the folder cannot be written to, or ``path`` is a device or a pipe;
    NexusbenchError where the disk is full or broken.
    """
    with atomic_file(Path(path), "Choose a folder that you may write to") as file:
        file.write(content)


def check_not_input(output: Path, *inputs: Path) -> None:
    """Refuse to write over what is read, by whatever name (a link, another case): UsageError."""
    for path in inputs:
        try:
            same = output.samefile(path)
        except OSError:
            continue
        if same:
            raise UsageError(
                f"cannot write {output}: it is the same file as {path}, which is read. Choose "
                "another name for what is written"
            )


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"cannot read: {reason}", file=path, hint="Check the path")


def _open(path: Path) -> io.BufferedReader:
    """A regular file of at most MAX_STORED bytes; a pipe is refused, not waited for."""
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise InputError("no such file", file=path, hint="Check the path") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    found = os.fstat(number)
    problem = hint = ""
    if stat.S_ISDIR(found.st_mode):
        problem, hint = "this is a folder", "Name one file in it"
    elif not stat.S_ISREG(found.st_mode):
        problem = "this is a pipe or a device, not a file"
        hint = "Save what it gives to a file first"
    elif found.st_size > MAX_STORED:
        problem = f"{found.st_size:,} bytes, and at most {MAX_STORED:,} are read"
        hint = "Cut the file"
    if problem:
        os.close(number)
        raise InputError(problem, file=path, hint=hint)
    return io.BufferedReader(io.FileIO(number, "rb"), _PIECE)
