"""Traces from files and back: format detected, order checked, first arrival at zero."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.units import NS_PER_MS, NS_PER_S
from nexusbench.workloads.base import Trace
from nexusbench.workloads.checks import clock, parse
from nexusbench.workloads.readers.base import Parsed, Reader, detect, open_reader
from nexusbench.workloads.readers.native import NativeLine
from nexusbench.workloads.source import read_source, write_atomic

__all__ = ["conversation_ids", "load_trace", "prefix_ids", "span_text", "write_trace"]

# As milliseconds these would be a first request 12 days to 3 years after the start; as seconds
# since 1970 they are 2001 to 5138.
_EPOCH_SECONDS = (1e9, 1e11)


def load_trace(path: str | os.PathLike[str], format: str | None = None) -> Trace:
    """Read a trace, plain or gzip, in any format of ``readers/`` (detected unless named).

    Arrivals are ns from the first one. ``notes`` name format, unit, size, span, ties and the time
    that became zero. Raises InputError that names file, line and field of the first fault, and
    UsageError for a ``format`` that there is not.
    """
    source = read_source(path)
    name, reader, notes = chosen(source.text, source.path, format)
    parsed = parse(reader, name, source)
    return made(parsed, reader, name, source.path, source.sha256, notes)


def chosen(text: bytes, path: Path, format: str | None) -> tuple[str, Reader, list[str]]:
    """Name and reader of ``format``, or of the one that ``text`` is in, and notes on that."""
    return detect(text, path) if format is None else (format, open_reader(format), [])


def made(
    parsed: Parsed, reader: Reader, name: str, path: Path, sha256: str, notes: list[str]
) -> Trace:
    """The trace of a reader's requests, from its first arrival on. Raises InputError for times in
    another unit than the format's.
    """
    first = parsed.requests[0].arrival_ns
    if reader.unit.endswith(" ms") and _EPOCH_SECONDS[0] <= first / NS_PER_MS < _EPOCH_SECONDS[1]:
        raise InputError(
            f"{first / NS_PER_MS:.0f} looks like seconds since 1970; this format has {reader.unit}",
            file=path,
            line=parsed.lines[0],
            field=reader.time_field,
            hint="Multiply by 1000",
        )
    for request in parsed.requests:
        request.arrival_ns -= first
    notes = [_summary(name, reader.unit, parsed), *notes, *parsed.notes]
    if first:
        notes.append(f"first arrival, {clock(reader, first)} in the file, is time 0")
    return Trace(
        name=_stem(path),
        requests=parsed.requests,
        hash_block=parsed.hash_block,
        format=name,
        sha256=sha256,
        notes=notes,
        concurrency=parsed.concurrency,
    )


def write_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write ``trace`` as native JSON lines (plain text), all of it or nothing.

    Nanoseconds survive. ``max_tokens`` and notes are no part of a trace file. Raises UsageError if
    the file cannot be written.
    """
    write_atomic(path, native_lines(trace))


def native_lines(trace: Trace) -> bytes:
    """``trace`` as native JSON lines."""
    numbered = all(request.id == str(index) for index, request in enumerate(trace.requests))
    block: int | None = trace.hash_block
    concurrency = trace.concurrency
    lines: list[bytes] = []
    for request in trace.requests:
        timed = not (request.follows or trace.concurrency)
        line = NativeLine(
            timestamp=_milliseconds(request.arrival_ns) if timed else None,
            input_length=request.prompt_tokens,
            output_length=request.output_tokens,
            hash_ids=request.hash_ids,
            hash_block=block if request.hash_ids else None,
            token_ids=request.token_ids,
            id=None if numbered else request.id,
            tenant=request.tenant,
            concurrency=concurrency or None,
            session=request.session or None,
            turn=request.turn if request.session else None,
            think_time=_milliseconds(request.think_ns) or None,
            timeout=_milliseconds(request.timeout_ns) or None,
            cancel_after=_milliseconds(request.cancel_after_ns) or None,
        )
        block, concurrency = None if request.hash_ids else block, 0
        lines.append(msgspec.json.encode(line, enc_hook=list))
    return b"\n".join(lines) + b"\n"


def _milliseconds(ns: int) -> float:
    """Whole milliseconds as an int, so that they print as one."""
    whole, rest = divmod(ns, NS_PER_MS)
    return whole + rest / NS_PER_MS if rest else whole


def prefix_ids(trace: Trace, block_size: int) -> list[tuple[int, ...]]:
    """For each request one number per hash id, equal only where all hash ids before are equal too.

    Hash ids of some traces name a block's content alone; a KV block can be shared only if all
    before it is the same too. Numbers are 0, 1, 2 ... in order of first use. ``block_size`` is the
    KV cache's, in tokens. Raises InputError if the hash block is not a multiple of it.
    """
    if trace.hash_block % block_size and any(request.hash_ids for request in trace.requests):
        raise InputError(
            f"trace '{trace.name}' has a hash id per {trace.hash_block} tokens, no multiple of the "
            f"KV block of {block_size} tokens",
            field="hash_block",
            hint="Choose a block size that divides it",
        )
    numbers: dict[tuple[int, int], int] = {}
    chains: list[tuple[int, ...]] = []
    for request in trace.requests:
        parent = -1
        chain: list[int] = []
        for hash_id in request.hash_ids:
            parent = numbers.setdefault((parent, hash_id), len(numbers))
            chain.append(parent)
        chains.append(tuple(chain))
    return chains


def conversation_ids(trace: Trace, block_size: int) -> list[tuple[tuple[int, ...], int]]:
    """The numbers of :func:`prefix_ids`, and how many leading tokens of prompt and answer they name
    (0: the prompt alone, of a request without a session).

    Where the next turn of a session goes on from a prompt and its answer, that turn's numbers name
    the answer too, in whole hash blocks, so that an engine which keeps the answer can share it.
    """
    requests, block = trace.requests, trace.hash_block
    if not any(request.hash_ids for request in requests):
        return [((), 0)] * len(requests)
    chains = prefix_ids(trace, block_size)
    named: list[tuple[tuple[int, ...], int]] = [(chain, 0) for chain in chains]
    following: dict[str, int] = {}
    for index in range(len(requests) - 1, -1, -1):
        request, chain = requests[index], chains[index]
        if not request.session:
            continue
        after = following.get(request.session)
        following[request.session] = index
        if not chain:
            continue
        named[index] = (chain, request.prompt_tokens)
        own, length = request.prompt_tokens // block, request.prompt_tokens + request.output_tokens
        whole = length // block
        if after is not None and requests[after].prompt_tokens >= length and whole > own:
            ahead = chains[after]
            if ahead[:own] == chain[:own]:
                named[index] = (ahead[:whole], whole * block)
    return named


def span_text(ns: int) -> str:
    """A duration for people: ``58.9 min`` from two minutes on, else seconds."""
    seconds = ns / NS_PER_S
    return f"{seconds / 60:,.1f} min" if seconds >= 120 else f"{seconds:.4g} s"


def _summary(name: str, unit: str, parsed: Parsed) -> str:
    arrivals = [request.arrival_ns for request in parsed.requests if not request.follows]
    parts = [f"format {name}", unit, f"{len(parsed.requests):,} requests"]
    if parsed.concurrency:
        return ", ".join([*parts, f"closed loop of {parsed.concurrency:,} users"])
    parts.append(span_text(arrivals[-1]))
    ties = len(arrivals) - len(set(arrivals))
    if ties:
        parts.append(f"{100 * ties / len(arrivals):.2g} % of arrivals tie")
    return ", ".join(parts)


def _stem(path: Path) -> str:
    """The file name without ``.gz`` and without one more ending."""
    name = path.name.removesuffix(".gz")
    return Path(name).stem or name
