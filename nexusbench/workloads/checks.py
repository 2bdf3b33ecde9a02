"""Checks of the requests that a reader gives, shipped or plug-in: once, for all formats."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nexusbench.core.errors import InputError, NexusbenchError
from nexusbench.core.units import ceil_div
from nexusbench.workloads.base import MAX_HASH_ID, MAX_TOKENS, TraceRequest
from nexusbench.workloads.readers.base import Parsed, Reader, is_foreign, told
from nexusbench.workloads.source import Source, shown

__all__ = ["MAX_SPAN_NS", "checked_skim", "clock", "parse"]

# Arrivals stay below 146 years, so that sums of times fit 63 bits.
MAX_SPAN_NS = 2**62
_MAX_NS = 2**70  # on the file's own clock, to the year 9999 and beyond
_MOST_LETTERS = 1024
_WHOLE = {int}
_NOTHING = ("", (), "", 0, False, 0, 0, 0)


def parse(reader: Reader, name: str, source: Source) -> Parsed:
    """The requests that ``reader`` finds in ``source``, checked.

    Raises InputError that names file, line and field of the first fault of the file, or the reader
    where it gives requests that no file can hold.
    """
    parsed = _asked(reader, name, source)
    _check_form(parsed, name, source.path)
    _check_requests(parsed, reader, name, source.path)
    _check_order(parsed, reader, source.path)
    _check_ids(parsed, reader, source.path)
    return parsed


def checked_skim(reader: Reader, piece: bytes, after: int) -> int | None:
    """:meth:`Reader.skim`, None where it breaks down: then the whole file is read."""
    try:
        last = reader.skim(piece, after)
    except Exception:
        return None
    return last if type(last) is int and last >= after else None


def clock(reader: Reader, ns: int) -> str:
    """An arrival as the file would print it; in ns where the reader fails."""
    try:
        return shown(reader.clock(ns), 80)
    except Exception:
        return f"{ns:,} ns"


def _asked(reader: Reader, name: str, source: Source) -> Parsed:
    try:
        return reader.read(source)
    except NexusbenchError:
        raise
    except (Exception, SystemExit) as error:
        if not is_foreign(reader):
            raise
        raise InputError(
            f"the reader of format '{name}' broke down: {told(error)}", file=source.path,
            hint="Correct that plug-in, or convert the file to native JSON lines",
        ) from error  # fmt: skip


def _fault(name: str, path: Path, problem: str, line: int | None = None) -> InputError:
    """The error for a value that no file can hold: a fault of the reader."""
    return InputError(
        f"the reader of format '{name}' gives {problem}", file=path, line=line,
        hint="Correct that plug-in: docs/workloads.md says what a reader may give",
    )  # fmt: skip


def _check_form(parsed: Any, name: str, path: Path) -> None:
    """Lists and numbers where they belong, before anything is gone through."""
    if type(parsed) is not Parsed:
        raise _fault(name, path, f"{_kind(parsed)}, not a Parsed")
    for field, kind in (("requests", list), ("lines", list), ("notes", list)):
        value = getattr(parsed, field)
        if type(value) is not kind:
            # A generator may have no end, so it is not gone through.
            raise _fault(name, path, f"{_kind(value)} as {field}, not a list")
    for field, least, most in (("hash_block", 1, MAX_TOKENS), ("concurrency", 0, MAX_TOKENS)):
        value = getattr(parsed, field)
        if type(value) is not int or not least <= value <= most:
            raise _fault(name, path, f"{field} {shown(repr(value))}, not {least} to {most:,}")
    if len(parsed.lines) != len(parsed.requests):
        counts = f"{len(parsed.lines):,} lines for {len(parsed.requests):,} requests"
        raise _fault(name, path, counts)
    if any(type(line) is not int or line < 1 for line in parsed.lines):
        raise _fault(name, path, "a line that is no whole number of 1 or more")
    if any(type(note) is not str for note in parsed.notes):
        raise _fault(name, path, "a note that is no text")
    if not parsed.requests:
        found = f": {'; '.join(parsed.notes)}" if parsed.notes else ""
        raise InputError(
            f"there are no requests{found}", file=path, hint="Is the download complete?"
        )


def _check_requests(parsed: Parsed, reader: Reader, name: str, path: Path) -> None:
    begun: set[str] = set()
    for request, line in zip(parsed.requests, parsed.lines, strict=True):
        if type(request) is not TraceRequest:
            raise _fault(name, path, f"{_kind(request)}, not a TraceRequest", line)
        if parsed.concurrency or not _is_plain(request):
            for problem in _problems(request, parsed, begun):
                raise _fault(name, path, f"a request with {problem}", line)
            _check_text(request.id, reader.id_field, path, line)
            _check_text(request.tenant, reader.tenant_field, path, line)
            _check_text(request.session, reader.session_field, path, line)
            if request.session:
                begun.add(request.session)


def _is_plain(request: TraceRequest) -> bool:
    """A lone request without anything that needs a closer look, as most are."""
    others = (
        request.tenant, request.hash_ids, request.session, request.turn, request.follows,
        request.think_ns, request.timeout_ns, request.cancel_after_ns,
    )  # fmt: skip
    return (
        type(request.id) is str
        and 1 <= len(request.id) <= _MOST_LETTERS
        and request.id.isprintable()
        and type(request.arrival_ns) is type(request.prompt_tokens) is int
        and type(request.output_tokens) is type(request.line) is int
        and 0 <= request.line < _MAX_NS
        and 0 < request.arrival_ns < _MAX_NS
        and 1 <= request.prompt_tokens <= MAX_TOKENS
        and 1 <= request.output_tokens <= MAX_TOKENS
        and request.token_ids is None
        and others == _NOTHING
    )


def _problems(request: TraceRequest, parsed: Parsed, begun: set[str]) -> Iterator[str]:
    """Impossible values of one request, in words."""
    for field in ("id", "tenant", "session"):
        if type(getattr(request, field)) is not str:
            yield f"{field} {shown(repr(getattr(request, field)))}, which is no text"
            return
    if not request.id:
        yield "an empty id"
    for field in ("prompt_tokens", "output_tokens"):
        value = getattr(request, field)
        if type(value) is not int or not 1 <= value <= MAX_TOKENS:
            yield f"{field} {shown(repr(value))}, not 1 to {MAX_TOKENS:,}"
            return
    for field in ("arrival_ns", "think_ns", "timeout_ns", "cancel_after_ns", "turn", "line"):
        value = getattr(request, field)
        if type(value) is not int or not 0 <= value < _MAX_NS:
            yield f"{field} {shown(repr(value))}, not a whole number from 0 on"
            return
    if type(request.follows) is not bool or (request.follows and request.session not in begun):
        yield "follows, though no turn of its session is before it"
    if parsed.concurrency and request.arrival_ns:
        yield "an arrival, though its file is a closed loop"
    ids, tokens = request.hash_ids, request.token_ids
    if ids != ():
        if type(ids) is not tuple or set(map(type, ids)) != _WHOLE:
            yield "hash_ids that are no tuple of whole numbers"
        elif min(ids) < 0 or max(ids) > MAX_HASH_ID:
            yield "a hash id that is no number of 64 bits"
        elif len(ids) != ceil_div(request.prompt_tokens, parsed.hash_block):
            yield f"{len(ids):,} hash ids, not one for each {parsed.hash_block} prompt tokens"
    if tokens is not None and (
        not isinstance(tokens, array) or len(tokens) != request.prompt_tokens or min(tokens) < 0
    ):
        yield "token_ids that are no array of one id for each prompt token"


def _check_text(text: str, field: str, path: Path, line: int) -> None:
    """Raises InputError for a name that no file could hold. Control characters are not refused:
    screens and folder names leave them out.
    """
    problem = ""
    if len(text) > _MOST_LETTERS:
        problem = f"longer than {_MOST_LETTERS:,} characters"
    elif not text.isprintable():
        half = next((letter for letter in text if 0xD800 <= ord(letter) < 0xE000), "")
        if half:
            problem = f"'{shown(text)}' has U+{ord(half):04X}, half of a character"
    if problem:
        hint = "Use letters, digits and signs"
        raise InputError(problem, file=path, line=line, field=field, hint=hint)


def _check_order(parsed: Parsed, reader: Reader, path: Path) -> None:
    """Time that does not go back, and comes to an end."""
    requests, lines = parsed.requests, parsed.lines
    # What follows another request has no time of its own.
    timed = [index for index, request in enumerate(requests) if not request.follows]
    for before, after in itertools.pairwise(timed):
        if requests[after].arrival_ns < requests[before].arrival_ns:
            raise InputError(
                f"time goes back from {clock(reader, requests[before].arrival_ns)} in line "
                f"{lines[before]} to {clock(reader, requests[after].arrival_ns)}",
                file=path,
                line=lines[after],
                field=reader.time_field,
                hint="Sort the file by time",
            )
    if requests[timed[-1]].arrival_ns - requests[0].arrival_ns > MAX_SPAN_NS:
        raise InputError(
            "is more than 146 years after the first",
            file=path,
            line=lines[timed[-1]],
            field=reader.time_field,
            hint="Check the unit",
        )


def _check_ids(parsed: Parsed, reader: Reader, path: Path) -> None:
    """An id of its own for each request."""
    if len({request.id for request in parsed.requests}) == len(parsed.requests):
        return
    seen: dict[str, int] = {}
    for request, line in zip(parsed.requests, parsed.lines, strict=True):
        if request.id in seen:
            raise InputError(
                f"'{shown(request.id)}' is the id of line {seen[request.id]} too",
                file=path,
                line=line,
                field=reader.id_field,
                hint="Give every request an id of its own, or none an id",
            )
        seen[request.id] = line


def _kind(value: object) -> str:
    return f"a {shown(type(value).__name__)}"
