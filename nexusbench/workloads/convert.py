"""A trace in another format: all fields that the format can hold, and notes on the others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec

from nexusbench.core.errors import UsageError
from nexusbench.core.registry import did_you_mean
from nexusbench.core.units import NS_PER_MS, NS_PER_S, ceil_div
from nexusbench.workloads.base import Trace
from nexusbench.workloads.trace import native_lines, prefix_ids

__all__ = ["FORMATS", "convert"]

_MOONCAKE_BLOCK = 512
_MOST_FRESH = 20_000_000  # hash ids made up for prompts that have none
_TICK_NS = 100  # Azure's seventh fraction digit
# Azure's files have wall-clock times; a trace has none, so it gets the first moment there is.
_EPOCH = datetime(1970, 1, 1)

Converted = tuple[bytes, list[str]]


def convert(trace: Trace, target: str) -> Converted:
    """``trace`` as a file of format ``target``, and sentences about what was dropped or changed.

    Raises UsageError for an unknown format, and for one without the arrivals of the trace.
    """
    if target not in FORMATS:
        raise UsageError(f"cannot write format '{target}'. {did_you_mean(target, list(FORMATS))}")
    return FORMATS[target](trace)


def _native(trace: Trace) -> Converted:
    return native_lines(trace), []


def _mooncake(trace: Trace) -> Converted:
    _check_times(trace, "mooncake")
    dropped = _dropped(trace, ("id", "tenant", "session", "timeout", "cancellation", "token id"))
    if _MOONCAKE_BLOCK % trace.hash_block and any(r.hash_ids for r in trace.requests):
        raise UsageError(
            f"mooncake has a hash id per {_MOONCAKE_BLOCK} tokens, no multiple of this trace's "
            f"{trace.hash_block}. Convert to native"
        )
    per_id = max(1, _MOONCAKE_BLOCK // trace.hash_block)
    lines, fresh, rounded = [], 0, 0
    chains = prefix_ids(trace, 1)
    names = max((chain[-1] for chain in chains if chain), default=-1) + 1
    for request, chain in zip(trace.requests, chains, strict=True):
        # A prefix's last name stands for all of it, so it names the block that it ends.
        ids = [*chain[per_id - 1 :: per_id], *(chain[-1:] if len(chain) % per_id else ())]
        if not chain:
            count = ceil_div(request.prompt_tokens, _MOONCAKE_BLOCK)
            if fresh + count > _MOST_FRESH:
                raise UsageError(
                    f"'{trace.name}' has prompts of so many tokens without hash ids that mooncake "
                    f"would need more than {_MOST_FRESH:,} of them. Convert to native"
                )
            ids = list(range(names + fresh, names + fresh + count))
            fresh += count
        rounded += request.arrival_ns % NS_PER_MS > 0
        lines.append(
            msgspec.json.encode(
                {
                    "timestamp": round(request.arrival_ns / NS_PER_MS),
                    "input_length": request.prompt_tokens,
                    "output_length": request.output_tokens,
                    "hash_ids": ids,
                }
            )
        )
    if rounded:
        dropped.append(f"{rounded:,} timestamps rounded to whole milliseconds")
    if fresh:
        dropped.append("prompts without hash ids got ids of their own: they share nothing")
    if per_id > 1 and any(chains):
        dropped.append(f"{per_id} hash blocks of {trace.hash_block} tokens became one of 512")
    return b"\n".join(lines) + b"\n", dropped


def _azure(trace: Trace) -> Converted:
    _check_times(trace, "azure")
    unknown = ("hash id", "id", "tenant", "session", "timeout", "cancellation", "token id")
    dropped = _dropped(trace, unknown)
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    rounded = 0
    for request in trace.requests:
        ticks, rest = divmod(request.arrival_ns, _TICK_NS)
        rounded += rest > 0
        seconds, fraction = divmod(ticks, NS_PER_S // _TICK_NS)
        moment = _EPOCH + timedelta(seconds=seconds)
        rows.append(
            f"{moment:%Y-%m-%d %H:%M:%S}.{fraction:07d},"
            f"{request.prompt_tokens},{request.output_tokens}"
        )
    if rounded:
        dropped.append(f"{rounded:,} timestamps cut to {_TICK_NS} ns")
    return ("\r\n".join(rows) + "\r\n").encode(), dropped


def _check_times(trace: Trace, target: str) -> None:
    following = sum(request.follows for request in trace.requests)
    if trace.concurrency or following:
        what = (
            f"a closed loop of {trace.concurrency:,} users"
            if trace.concurrency
            else f"{following:,} turns that wait for an earlier one"
        )
        raise UsageError(
            f"'{trace.name}' has {what}, and {target} has only fixed times. Convert to native"
        )


def _dropped(trace: Trace, unknown: tuple[str, ...]) -> list[str]:
    """A note for each of the ``unknown`` things that the trace has."""
    counts = {
        "hash id": sum(bool(r.hash_ids) for r in trace.requests),
        "id": sum(r.id != str(index) for index, r in enumerate(trace.requests)),
        "tenant": sum(bool(r.tenant) for r in trace.requests),
        "session": sum(bool(r.session) for r in trace.requests),
        "timeout": sum(r.timeout_ns > 0 for r in trace.requests),
        "cancellation": sum(r.cancel_after_ns > 0 for r in trace.requests),
        "token id": sum(r.token_ids is not None for r in trace.requests),
    }
    return [f"{name}s of {counts[name]:,} requests dropped" for name in unknown if counts[name]]


FORMATS: dict[str, Callable[[Trace], Converted]] = {
    "native": _native,
    "mooncake": _mooncake,
    "azure": _azure,
}
