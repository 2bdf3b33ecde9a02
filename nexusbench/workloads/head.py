"""The beginning of a trace: a large file is read only as far as a limit or a window needs.

A first part is read as if it were the whole file. Where it holds enough, of the other lines only
the times are looked at: if they are in order and change nothing that was read, the requests are
those that reading everything gives. Else everything is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec

from nexusbench.core.errors import NexusbenchError
from nexusbench.core.units import NS_PER_S
from nexusbench.workloads.base import Trace
from nexusbench.workloads.checks import checked_skim, parse
from nexusbench.workloads.readers.base import Parsed, Reader
from nexusbench.workloads.source import Source, TextFile, TooLarge
from nexusbench.workloads.trace import chosen, load_trace, made

__all__ = ["load_head"]

# Each part that is tried is so much larger than the one before, which was not enough.
_GROWTH = 4


class _Part(msgspec.Struct):
    """The first lines of a file as read."""

    name: str
    reader: Reader
    parsed: Parsed
    notes: list[str]


def load_head(
    path: str | os.PathLike[str],
    *,
    limit: int | None = None,
    window: tuple[float, float | None] | None = None,
    format: str | None = None,
) -> Trace:
    """The first requests of a trace, as many as it takes to have the first ``limit`` of the
    ``window`` (seconds from the first arrival); the whole trace where the beginning does
    not suffice.

    ``Trace.whole`` and a note say which. Faults of later lines other than in their times, or in the
    text itself, are not seen. Raises as ``load_trace`` does.
    """
    if limit is not None or (window is not None and window[1] is not None):
        with TextFile(path) as file:
            trace = _head(file, limit, window, format)
        if trace is not None:
            return trace
    return load_trace(path, format)


def _head(
    file: TextFile,
    limit: int | None,
    window: tuple[float, float | None] | None,
    format: str | None,
) -> Trace | None:
    """The beginning, None where the whole file has to be read."""
    pieces, parts = file.pieces(), list[bytes]()
    size = want = 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size < want:
            continue
        want = _GROWTH * size
        text = b"".join(parts)
        part, line = _read(text, file, format), file.line
        count = None if part is None else _enough(part.parsed, limit, window)
        if part is None or count is None:
            continue
        told = _look_ahead(part, pieces, file)
        if told is None:
            return None
        requests, lines = part.parsed.requests[:count], part.parsed.lines[:count]
        cut = msgspec.structs.replace(part.parsed, requests=requests, lines=lines)
        part.notes.append(f"read up to line {line:,}, {told}")
        trace = made(cut, part.reader, part.name, file.path, file.sha256(), part.notes)
        return msgspec.structs.replace(trace, whole=False)
    return None


def _read(text: bytes, file: TextFile, format: str | None) -> _Part | None:
    """A part of the file read by itself; None for a fault, which may be due to the cut."""
    try:
        name, reader, notes = chosen(text, file.path, format)
        return _Part(name, reader, parse(reader, name, Source(file.path, text, "")), notes)
    except NexusbenchError:
        return None


def _enough(
    parsed: Parsed, limit: int | None, window: tuple[float, float | None] | None
) -> int | None:
    """How many of the requests the limit and the window take, none of them from later lines; None
    if later lines may have more.
    """
    requests = parsed.requests
    start, end = window if window is not None else (0.0, None)
    low = requests[0].arrival_ns + start * NS_PER_S
    high = None if end is None else requests[0].arrival_ns + end * NS_PER_S
    taken = 0
    for count, request in enumerate(requests, 1):
        if high is not None and request.arrival_ns >= high:
            return count
        taken += request.arrival_ns >= low
        if taken == limit:
            return count
    return None


def _look_ahead(part: _Part, pieces: Iterator[bytes], file: TextFile) -> str | None:
    """Look at the times of the other lines: in words, how far they are in order. None if there are
    no other lines, or one of them matters.
    """
    last = part.parsed.requests[-1].arrival_ns
    begin = file.line
    try:
        for piece in pieces:
            found = checked_skim(part.reader, piece, last)
            if found is None:
                return None
            last = found
    except TooLarge:
        return f"only the order of times looked at up to line {file.line:,}, no further"
    if file.line == begin:
        return None
    return f"of the other {file.line - begin:,} lines only the order of times looked at"
