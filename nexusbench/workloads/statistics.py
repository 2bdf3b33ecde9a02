"""Figures of a trace: rates, burstiness, lengths, shared prefixes, sessions."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from nexusbench.core.units import NS_PER_S
from nexusbench.workloads.base import Trace, TraceRequest
from nexusbench.workloads.trace import conversation_ids, prefix_ids

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]

__all__ = ["IDC_SECONDS", "describe_trace", "histogram", "prefix_ceiling"]

IDC_SECONDS = (1, 10, 60)
# An index of dispersion from fewer windows than this would be noise.
_LEAST_WINDOWS = 10
_MOST_WINDOWS = 10_000_000


class ArrivalFigures(msgspec.Struct, frozen=True):
    """Arrivals that have a time of their own: ``n`` in ``span_s`` seconds, ``rate`` per second
    ((n - 1) / span), the coefficient of variation of the gaps, the index of dispersion by window,
    and how many are ``tied``.
    """

    n: int
    span_s: float
    rate: float | None
    gap_cv: float | None
    dispersion: dict[str, float | None]
    tied: int


class LengthFigures(msgspec.Struct, frozen=True):
    """Tokens a request."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    min: int
    max: int


class PrefixFigures(msgspec.Struct, frozen=True):
    """Shares that :func:`prefix_ceiling` gives, percent."""

    hash_block: int
    blocks: float
    tokens: float


class SessionFigures(msgspec.Struct, frozen=True):
    """Conversations, their turns, and how many turns follow the end of another, after how long."""

    sessions: int
    turns_mean: float
    turns_max: int
    following: int
    think_s_mean: float | None


class PatienceFigures(msgspec.Struct, frozen=True):
    """Requests with a timeout or a cancellation, and the mean seconds until then."""

    timeouts: int
    timeout_s_mean: float | None
    cancellations: int
    cancel_after_s_mean: float | None


class TokenIdFigures(msgspec.Struct, frozen=True):
    """The largest token id of the prompts."""

    largest: int


class TraceFigures(msgspec.Struct, frozen=True):
    """Every figure of ``nexusbench trace show``; None where a trace has no such thing."""

    name: str
    format: str
    sha256: str
    notes: list[str]
    requests: int
    concurrency: int | None
    arrivals: ArrivalFigures | None
    input_tokens: LengthFigures
    output_tokens: LengthFigures
    input_per_output: float
    prefixes: PrefixFigures | None
    sessions: SessionFigures | None
    patience: PatienceFigures | None
    token_ids: TokenIdFigures | None
    tenants: dict[str, int]  # requests of each, the largest first


def describe_trace(trace: Trace) -> TraceFigures:
    """All figures of a trace."""
    requests = trace.requests
    prompts = [request.prompt_tokens for request in requests]
    outputs = [request.output_tokens for request in requests]
    timed = [] if trace.concurrency else [r.arrival_ns for r in requests if not r.follows]
    largest = [max(request.token_ids) for request in requests if request.token_ids]
    return TraceFigures(
        name=trace.name,
        format=trace.format,
        sha256=trace.sha256,
        notes=trace.notes,
        requests=len(requests),
        concurrency=trace.concurrency or None,
        arrivals=_arrivals(timed) if timed else None,
        input_tokens=_lengths(prompts),
        output_tokens=_lengths(outputs),
        input_per_output=sum(prompts) / sum(outputs),
        prefixes=prefix_ceiling(trace),
        sessions=_sessions(requests),
        patience=_patience(requests),
        token_ids=TokenIdFigures(max(largest)) if largest else None,
        tenants=dict(Counter(r.tenant for r in requests if r.tenant).most_common()),
    )


def prefix_ceiling(trace: Trace) -> PrefixFigures | None:
    """Share of the prompt that a cache without limits would have seen before, in percent.

    ``blocks``: of hash blocks, as published for such traces. ``tokens``: of prompt tokens, the most
    that a run of all requests can find, whatever its block size and the order that it serves them
    in. None without hash ids.
    """
    if not any(request.hash_ids for request in trace.requests):
        return None
    seen: set[int] = set()
    total = hits = 0
    chains = prefix_ids(trace, 1)
    kept = conversation_ids(trace, 1)
    for chain, (names, _) in zip(chains, kept, strict=True):
        # A name stands for all blocks before it too, so hits are at the begin of a chain.
        total, hits = total + len(chain), hits + sum(name in seen for name in chain)
        seen.update(chain, names)
    prompts = sum(request.prompt_tokens for request in trace.requests)
    return PrefixFigures(
        hash_block=trace.hash_block,
        blocks=100 * hits / total,
        tokens=100 * (prompts - _least_computed(trace, kept)) / prompts,
    )


def _least_computed(trace: Trace, kept: list[tuple[tuple[int, ...], int]]) -> int:
    """Prompt tokens that every run computes: each different one at least once, unless an answer
    that a session goes on from has it already, and the last of each prompt always, since its logits
    are needed (as vLLM does).

    Served in another order than the trace's, a run can find more than one in that order does.
    """
    block = trace.hash_block
    reach: dict[int, int] = {}  # name of a block -> how many of its tokens prompts have
    given: dict[int, int] = {}  # name -> from which token on an answer has it
    ends: Counter[tuple[int, int]] = Counter()
    unnamed = 0
    for request, (names, named) in zip(trace.requests, kept, strict=True):
        prompt = request.prompt_tokens
        if not names:
            unnamed += prompt
            continue
        for place, name in enumerate(names):
            begin = place * block
            if begin < prompt:
                reach[name] = max(reach.get(name, 0), min(block, prompt - begin))
            if named > max(prompt, begin):
                given[name] = min(given.get(name, block), max(0, prompt - begin))
        last = prompt - 1
        ends[names[last // block], last % block] += 1
    first = sum(min(tokens, given.get(name, tokens)) for name, tokens in reach.items())
    again = sum(count - (place < given.get(name, block)) for (name, place), count in ends.items())
    return unnamed + first + again


def histogram(values: list[int]) -> list[tuple[int, int, int]]:
    """Counts of numbers of 1 or more in bins that double: (from, to, how many), empty ends left
    out.
    """
    bins = Counter((value - 1).bit_length() for value in values)
    low, high = min(bins), max(bins)
    return [((1 << b >> 1) + 1 if b else 1, 1 << b, bins[b]) for b in range(low, high + 1)]


def _arrivals(times: list[int]) -> ArrivalFigures:
    import numpy as np

    span = (times[-1] - times[0]) / NS_PER_S
    gaps = np.diff(np.asarray(times)) / NS_PER_S
    bursty = len(gaps) > 1 and gaps.mean() > 0
    return ArrivalFigures(
        n=len(times),
        span_s=span,
        rate=(len(times) - 1) / span if span else None,
        gap_cv=float(gaps.std() / gaps.mean()) if bursty else None,
        dispersion={f"{window}s": _dispersion(times, window) for window in IDC_SECONDS},
        tied=len(times) - len(set(times)),
    )


def _dispersion(times: list[int], seconds: int) -> float | None:
    """Variance over mean of the arrivals in whole windows; 1 is Poisson. None for a short trace."""
    import numpy as np

    windows = (times[-1] - times[0]) // (seconds * NS_PER_S)
    if windows < _LEAST_WINDOWS:
        return None
    number = (np.asarray(times) - times[0]) // (seconds * NS_PER_S)
    if windows > _MOST_WINDOWS:
        # Years of windows, nearly all of them empty, without a place for each.
        _, filled = np.unique(number[number < windows], return_counts=True)
        mean = float(filled.sum()) / windows
        return float((filled.astype(float) ** 2).sum()) / windows / mean - mean if mean else None
    counts = np.bincount(number[number < windows], minlength=windows)
    return float(counts.var() / counts.mean())


def _lengths(values: list[int]) -> LengthFigures:
    import numpy as np

    p50, p90, p95, p99 = np.percentile(values, (50, 90, 95, 99)).tolist()
    return LengthFigures(float(np.mean(values)), p50, p90, p95, p99, min(values), max(values))


def _sessions(requests: list[TraceRequest]) -> SessionFigures | None:
    sizes = Counter(request.session for request in requests if request.session)
    if not sizes:
        return None
    thinks = [request.think_ns / NS_PER_S for request in requests if request.follows]
    return SessionFigures(
        sessions=len(sizes),
        turns_mean=sum(sizes.values()) / len(sizes),
        turns_max=max(sizes.values()),
        following=len(thinks),
        think_s_mean=_mean(thinks),
    )


def _patience(requests: list[TraceRequest]) -> PatienceFigures | None:
    timeouts = [r.timeout_ns / NS_PER_S for r in requests if r.timeout_ns]
    cancels = [r.cancel_after_ns / NS_PER_S for r in requests if r.cancel_after_ns]
    if not timeouts and not cancels:
        return None
    return PatienceFigures(len(timeouts), _mean(timeouts), len(cancels), _mean(cancels))


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
