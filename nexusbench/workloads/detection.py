"""Which format a trace is in: every reader is asked, the surest one is taken."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from nexusbench.core.errors import InputError, NexusbenchError, UsageError
from nexusbench.core.registry import did_you_mean
from nexusbench.workloads.readers.base import Reader, readers
from nexusbench.workloads.source import shown

__all__ = ["detect", "is_foreign", "open_reader", "told"]

_DECLARED = ("time_field", "id_field", "tenant_field", "session_field", "unit", "example")


def detect(text: bytes, path: Path) -> tuple[str, Reader, list[str]]:
    """Name and reader of the format that knows ``text`` best, and notes on readers that broke down.

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
    """Whether the reader is a plug-in, whose faults are not ours."""
    return not type(reader).__module__.startswith("nexusbench.")


def told(error: BaseException) -> str:
    """An error in one line, with the place it was raised at unless it says so itself."""
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
    """What to write instead of ``start``: the formats of its kind, JSON lines or columns."""
    json = start.startswith("{")
    alike = [
        f"{name} starts with {example}"
        for name, example in examples.items()
        if example.startswith("{") == json
    ]
    what = "fields" if json else "columns"
    hint = f"Known: {'; '.join(alike)}. Name your {what} as one of these"
    return hint if json else f"{hint}, or write lines such as {examples.get('native', '{}')}"
