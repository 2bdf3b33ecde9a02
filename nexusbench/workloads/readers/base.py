"""Trace formats: the base class of readers, and detection of the format of a text."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import msgspec

from nexusbench.core.errors import InputError, NexusbenchError, UsageError
from nexusbench.core.registry import Registry, did_you_mean
from nexusbench.core.units import NS_PER_MS
from nexusbench.workloads.base import TraceRequest
from nexusbench.workloads.readers._csv import header_of
from nexusbench.workloads.source import Source, shown

_DECLARED = ("time_field", "id_field", "tenant_field", "session_field", "unit", "example")


class Signature(msgspec.Struct, frozen=True):
    """Data by which a format is recognised.

    JSON lines: all ``fields`` occur in the text, and none of ``without``. Columns: the header names
    ``at_least`` of ``columns`` (upper or lower case), so that an error can name the others.
    ``sure`` is the confidence, see :meth:`Reader.confidence`.
    """

    sure: int
    fields: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    at_least: int = 0

    def confidence(self, text: bytes) -> int:
        """``sure``, or 0 for another text. A JSON array counts as JSON lines: the error that
        follows says how to convert it.
        """
        json = text.lstrip()[:1] in (b"{", b"[")
        if json == bool(self.columns):
            return 0
        if json:
            found = all(_names(text, self.fields)) and not self.excludes(text)
        else:
            cells = [name.lower() for name in header_of(text).names]
            found = sum(column.lower() in cells for column in self.columns) >= self.at_least
        return self.sure if found else 0

    def excludes(self, text: bytes) -> bool:
        """Whether a field occurs that no file of the format has."""
        return any(_names(text, self.without))


def _names(text: bytes, fields: tuple[str, ...]) -> Iterator[bool]:
    return (b'"%b"' % field.encode() in text for field in fields)


class Parsed(msgspec.Struct):
    """The result of a reader: requests in file order with arrivals on the file's own clock (ns).

    ``lines`` holds the 1-based line of each request, so that later checks can name it; ``notes``
    are facts of this file that a reader of the results must see.
    """

    requests: list[TraceRequest]
    lines: list[int]
    hash_block: int = 512
    notes: list[str] = []
    concurrency: int = 0


class Reader(ABC):
    """A trace format: subclass it in a file of its own in this folder.

    ``signature`` is what it is recognised by, ``time_field`` and the other ``_field`` names are
    the file's own words in error messages, ``unit`` says what the times mean, ``example`` is the
    start of such a file, and ``sample`` a small one with requests, where ``example`` is but a
    header line. A reader checks each line for itself; order, duplicate ids and rebasing to zero are
    checked once for all formats.
    """

    signature: ClassVar[Signature | None] = None
    time_field: ClassVar[str]
    id_field: ClassVar[str] = "id"
    tenant_field: ClassVar[str] = "tenant"
    session_field: ClassVar[str] = "session"
    unit: ClassVar[str]
    example: ClassVar[str]
    sample: ClassVar[str] = ""
    source: ClassVar[str] = ""

    def confidence(self, text: bytes) -> int:
        """How surely ``text`` (a whole file, not empty) is of this format; 0 is no, highest wins.

        1: any file of this kind (JSON lines); 2: fields of exactly this format; more: a special
        case of another format. Override it where a signature does not tell.
        """
        if self.signature is None:
            raise UsageError(f"{type(self).__name__} has neither a signature nor a confidence")
        return self.signature.confidence(text)

    @abstractmethod
    def read(self, source: Source) -> Parsed:
        """All requests. Raises InputError that names file, line and field of the first fault."""

    def skim(self, piece: bytes, after: int) -> int | None:
        """The last arrival of ``piece``, lines further on in a file whose beginning is enough.

        ``after`` is the last arrival before. None means that the whole file must be read: an
        arrival goes back or cannot be told, or these lines change what the ones before mean.
        A format that does not say how (the default) is always read whole.
        """
        return None

    def clock(self, ns: int) -> str:
        """An arrival as the file would print it."""
        return f"{ns / NS_PER_MS:,.15g} ms"


readers = Registry("nexusbench.workloads.readers", "trace format", "Reader")


def detect(text: bytes, path: Path) -> tuple[str, Reader, list[str]]:
    """Name and reader of the format with the highest confidence for ``text``, and notes on
    readers that failed.

    Raises InputError if none or several do.
    """
    loaded: dict[str, Reader] = {}
    scores: dict[str, int] = {}
    notes: list[str] = []
    for name in readers.names():
        try:
            reader = _opened(name)
            scores[name] = _confidence(reader, text)
            loaded[name] = reader
        except (Exception, SystemExit) as error:
            # One broken plug-in must not keep the others from reading their formats.
            notes.append(f"trace format '{name}' cannot be used: {told(error)}")
    best = max(scores.values(), default=0)
    names = [name for name, score in scores.items() if score == best]
    if best == 0:
        lead = text[: len(text) - len(text.lstrip())]
        start = text[len(lead) :][:160].decode(errors="replace").split("\n")[0].strip()
        broken = "".join(f". {note}" for note in notes)
        raise InputError(
            f"no known trace format starts with '{shown(start)}'",
            file=path,
            line=lead.count(b"\n") + 1,
            hint=_closest(start, {name: loaded[name].example for name in names}) + broken,
        )
    if len(names) > 1:
        raise InputError(
            f"could be of the formats {' or '.join(names)}", file=path, hint="Name the format"
        )
    return names[0], loaded[names[0]], notes


def open_reader(name: str) -> Reader:
    """The reader called ``name``. Raises UsageError if there is none, or it breaks down."""
    if name not in readers.names():
        raise UsageError(f"no trace format called '{name}'. {did_you_mean(name, readers.names())}")
    try:
        return _opened(name)
    except (Exception, SystemExit) as error:
        raise UsageError(f"trace format '{name}' cannot be used: {told(error)}") from error


def is_foreign(reader: Reader) -> bool:
    """Whether the reader is a plug-in from outside the package."""
    return not type(reader).__module__.startswith("nexusbench.")


def told(error: BaseException) -> str:
    """An error in one line; with file and line of the code unless it is a NexusbenchError."""
    if isinstance(error, NexusbenchError):
        return shown(str(error), 200)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = ""
    if trace is not None:
        place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
    return shown(f"{type(error).__name__}: {error}", 160) + place


def _opened(name: str) -> Reader:
    reader = readers.load(name)()
    if not isinstance(reader, Reader):
        raise UsageError(f"{shown(type(reader).__name__)} is no Reader")
    for attribute in _DECLARED:
        if type(getattr(reader, attribute, None)) is not str:
            raise UsageError(f"{type(reader).__name__} does not say its {attribute}")
    return reader


def _confidence(reader: Reader, text: bytes) -> int:
    score = reader.confidence(text)
    if type(score) is not int or not 0 <= score <= sys.maxsize:
        raise UsageError(f"confidence is {shown(repr(score))}, not a whole number of 0 or more")
    return score


def _closest(start: str, examples: Mapping[str, str]) -> str:
    """A hint for a file that begins with ``start``: the formats of its kind, JSON or columns."""
    json = start.startswith("{")
    alike = [
        f"{name} starts with {example}"
        for name, example in examples.items()
        if example.startswith("{") == json
    ]
    what = "fields" if json else "columns"
    hint = f"Known: {'; '.join(alike)}. Name your {what} as one of these"
    return hint if json else f"{hint}, or write lines such as {examples.get('native', '{}')}"
