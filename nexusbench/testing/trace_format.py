"""check_trace_format: the contract of a reader, on its own example and on what is wrong with it."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nexusbench.core.errors import InputError, UsageError
from nexusbench.testing._errors import ConformanceError, named
from nexusbench.workloads.base import Trace
from nexusbench.workloads.readers.base import Reader, readers
from nexusbench.workloads.trace import load_trace


def check_trace_format(name: str) -> None:
    """Read the ``sample`` of a trace format, plain and compressed, and damaged copies of it.

    Checked are: the format recognises its own sample and no other's; two readings are equal (I6);
    and each damaged copy is either read or refused with an InputError that names the file, whatever
    stands in it. Raises ConformanceError; UsageError if there is no such format.
    """
    cls: type[Reader] = readers.load(name)
    text = _sample(cls)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "example"
        with named("its sample"):
            whole = _read(file, text, name)
            if not whole.requests:
                raise ConformanceError("contract", f"'{name}' finds no request in its sample")
            if _read(file, text, name).requests != whole.requests:
                raise ConformanceError("I6", f"'{name}' reads one file in two ways")
            packed = _read(file, gzip.compress(text, mtime=0), name)
            if packed.requests != whole.requests:
                raise ConformanceError("contract", f"'{name}' reads gzip differently")
        with named("detection"):
            _check_detection(name, cls)
        for what, damaged in _damaged(text):
            with named(what):
                _check_refusal(file, damaged, name)


def _sample(cls: type[Reader]) -> bytes:
    return (cls.sample or cls.example).strip().encode() + b"\n"


def _read(file: Path, content: bytes, name: str) -> Trace:
    file.write_bytes(content)
    trace = load_trace(file)
    if trace.format != name:
        raise ConformanceError("contract", f"its sample is taken for '{trace.format}'")
    return trace


def _check_detection(name: str, cls: type[Reader]) -> None:
    """It does not claim what another format recognises as its own."""
    for other in readers.names():
        theirs: type[Reader] = readers.load(other)
        text = _sample(theirs)
        mine, own = cls().confidence(text), theirs().confidence(text)
        if other != name and mine >= own > 0:
            raise ConformanceError("contract", f"'{name}' claims the sample of '{other}'")


def _damaged(text: bytes) -> Iterator[tuple[str, bytes]]:
    """The example with one thing wrong at a time."""
    for share in (1, 2, 3):
        yield f"cut off after {share} quarters", text[: len(text) * share // 4]
    for position in range(0, len(text), max(1, len(text) // 40)):
        for junk in (b"-1", b"\xff", b"x", b"1e999", b'"', b"9" * 30):
            changed = text[:position] + junk + text[position + 1 :]
            yield f"{junk!r} at byte {position}", changed
    yield "twice the first line", text + text
    yield "blank lines between", text.replace(b"\n", b"\n\n")


def _check_refusal(file: Path, content: bytes, name: str) -> None:
    """Read or refused, and a refusal names the file."""
    file.write_bytes(content)
    try:
        load_trace(file, name)
    except InputError as error:
        if file.name not in str(error):
            raise ConformanceError("contract", f"does not name the file: {error}") from None
        if f"the reader of format '{name}'" in error.problem:
            raise ConformanceError("contract", error.problem) from None
    except UsageError as error:
        raise ConformanceError("contract", f"is no InputError: {error}") from None
