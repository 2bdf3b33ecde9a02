"""The reader seam: a format recognises its text and turns it into requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import msgspec

from nexusbench.core.registry import Registry
from nexusbench.core.units import NS_PER_MS
from nexusbench.workloads.base import TraceRequest
from nexusbench.workloads.source import Source

__all__ = ["Parsed", "Reader", "readers"]


class Parsed(msgspec.Struct):
    """What a reader found: requests in file order with arrivals on the file's own clock (ns).

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

    ``time_field`` and the other ``_field`` names are the file's own words in error messages,
    ``unit`` says what the times mean, ``example`` is the start of such a file, and ``sample`` a
    small one with requests, where ``example`` is but a header line. A reader checks each line for
    itself; order, duplicate ids and rebasing to zero are checked once for all formats.
    """

    time_field: ClassVar[str]
    id_field: ClassVar[str] = "id"
    tenant_field: ClassVar[str] = "tenant"
    session_field: ClassVar[str] = "session"
    unit: ClassVar[str]
    example: ClassVar[str]
    sample: ClassVar[str] = ""
    source: ClassVar[str] = ""

    @abstractmethod
    def confidence(self, text: bytes) -> int:
        """How surely ``text`` (a whole file, not empty) is of this format; 0 is no, highest wins.

        1: any file of this kind (JSON lines); 2: fields of exactly this format; more: a special
        case of another format.
        """

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
