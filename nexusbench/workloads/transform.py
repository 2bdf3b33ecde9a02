"""Pure changes of a trace: each returns a new one with a note that says what was done.

Order and identity of requests are kept; after each, the first arrival is at 0. Arrivals are those
of lone requests and of first turns: a turn that follows another goes where its session goes. A
closed loop has no arrivals to change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import copy
from itertools import pairwise
from typing import Literal

import msgspec

from nexusbench.core.errors import UsageError
from nexusbench.core.units import NS_PER_S, ceil_div
from nexusbench.workloads.base import (
    MAX_TOKENS,
    Trace,
    TraceRequest,
    check_number,
    check_span,
    check_window,
)
from nexusbench.workloads.streams import stream
from nexusbench.workloads.trace import span_text

__all__ = [
    "bounds", "burstiness", "closed_loop", "fit_context", "limit", "parse_window",
    "quantize_arrivals", "rate", "speed", "spread_ties", "window",
]  # fmt: skip

Ties = Literal["none", "uniform"]
ContextPolicy = Literal["reject", "skip", "clip", "error"]


def speed(trace: Trace, factor: float) -> Trace:
    """Replay ``factor`` times as fast (2: half the time between arrivals, and to think).

    Timeouts stay as they are. Raises UsageError.
    """
    check_number("speed", factor)
    _check_open(trace, "speed")
    times = [request.arrival_ns / factor for request in _timed(trace)]
    note = f"replayed {factor:g} times as fast"
    longest = max([request.think_ns for request in trace.requests], default=0) / factor
    check_span(max(*times, longest), note)
    moved = _moved(trace, map(round, times), note)
    for request in moved.requests:
        request.think_ns = round(request.think_ns / factor)
    return moved


def rate(trace: Trace, req_per_s: float) -> Trace:
    """Stretch time evenly to a mean rate of ``req_per_s``.

    The mean rate is (n - 1) / span, the inverse of the mean gap between arrivals: the last request
    opens no gap of its own. Raises UsageError if there is no gap to stretch.
    """
    check_number("rate", req_per_s)
    _check_open(trace, "rate")
    timed = _timed(trace)
    span = timed[-1].arrival_ns
    if not span:
        raise UsageError(
            f"rate: all {len(timed)} requests of '{trace.name}' arrive at once, so there "
            "is no time between them to stretch. Draw arrivals with burstiness 1 (Poisson) instead"
        )
    have = (len(timed) - 1) * NS_PER_S / span
    factor = req_per_s / have
    times = [request.arrival_ns / factor for request in timed]
    what = "requests/s" if len(timed) == len(trace.requests) else "first turns/s"
    note = f"rescaled from {have:.3g} to {req_per_s:g} {what} (mean, (n-1)/span)"
    check_span(times[-1], note)
    return _moved(trace, map(round, times), note)


def burstiness(trace: Trace, req_per_s: float, shape: float, seed: int) -> Trace:
    """Replace the arrivals by a gamma renewal process of mean rate ``req_per_s``.

    ``shape`` has the meaning of vLLM's ``--burstiness``: gaps are gamma with this shape and mean
    1/rate; 1 is Poisson, less is burstier (coefficient of variation 1/sqrt(shape)). The rate holds
    on average, not for each draw. Raises UsageError for a rate or shape that is not positive.
    """
    check_number("rate", req_per_s)
    check_number("burstiness", shape, 1e-4, 1e6)
    _check_open(trace, "burstiness")
    count = len(_timed(trace)) - 1
    gaps = stream(seed, "burstiness").gamma(shape, 1 / (req_per_s * shape), count)
    now = 0.0
    times = [0.0]
    for gap in gaps.tolist():
        now += gap
        times.append(now * NS_PER_S)
    kind = "Poisson" if shape == 1 else f"gamma (shape {shape:g})"
    note = f"arrivals redrawn: {kind}, {req_per_s:g} requests/s, seed {seed}"
    check_span(now * NS_PER_S, note)
    return _moved(trace, map(round, times), note)


def limit(trace: Trace, n: int) -> Trace:
    """The first ``n`` requests (all, if there are fewer). Raises UsageError for n < 1."""
    if n < 1:
        raise UsageError(f"limit {n} leaves no request. Choose 1 or more")
    total = len(trace.requests)
    if not trace.whole and n <= total:
        return _noted(trace, trace.requests[:n], f"first {n:,} requests, the file goes on")
    if n >= total:
        return _noted(trace, trace.requests, f"limit {n:,} not reached: {total:,} requests")
    return _noted(trace, trace.requests[:n], f"first {n:,} of {total:,} requests")


def parse_window(text: str) -> tuple[float, float | None]:
    """``60:120`` as seconds (60.0, 120.0); either side may be empty. Raises UsageError."""
    start_text, colon, end_text = text.partition(":")
    try:
        start = float(start_text) if start_text.strip() else 0.0
        end = float(end_text) if end_text.strip() else None
    except ValueError:
        colon = ""
        start, end = 0.0, None
    if not colon:
        raise UsageError(f"window '{text}' is not START:END. Write seconds, as in 60:120 or 60:")
    check_window(start, end)
    return start, end


def window(trace: Trace, start_s: float, end_s: float | None = None) -> Trace:
    """The requests that arrive in [start_s, end_s) seconds of trace time, the first again at 0.

    ``end_s`` None is the end of the trace. Turns that follow others are kept with the first of
    their session. Raises UsageError if none do.
    """
    check_window(start_s, end_s)
    _check_open(trace, "window")
    low = start_s * NS_PER_S
    high = math.inf if end_s is None else end_s * NS_PER_S
    kept = [request for request in trace.requests if low <= request.arrival_ns < high]
    end = "end" if end_s is None else f"{end_s:g}"
    if not kept:
        raise UsageError(
            f"window {start_s:g}:{end} s holds no request: '{trace.name}' lasts "
            f"{trace.requests[-1].arrival_ns / NS_PER_S:g} s. Choose another window"
        )
    note = f"window {start_s:g} to {end} s: {len(kept):,} of {len(trace.requests):,} requests"
    if not trace.whole:
        note = f"window {start_s:g} to {end} s: {len(kept):,} requests, the file goes on"
    return _noted(trace, _rebased(kept), note)


def spread_ties(trace: Trace, how: Ties, seed: int) -> Trace:
    """Spread requests that share a timestamp until the next one, for traces with coarse clocks.

    ``uniform``: their arrivals are uniform over [t, next), in the order of the trace; the last
    group gets the median distance of timestamps; the very first request stays at 0, and requests
    that tie with none stay where they are. ``none`` only notes the ties. Raises UsageError for
    another word.
    """
    if how not in ("none", "uniform"):
        raise UsageError(f"spread-ties '{how}' is unknown. Choose none or uniform")
    if how == "uniform":
        _check_open(trace, "spread-ties")
    timed = _timed(trace)
    groups = _groups(timed)
    ties = sum(len(group) for group in groups if len(group) > 1)
    share = f"{ties:,} of {len(timed):,} requests share a timestamp"
    if how == "none" or not ties:
        return _noted(
            trace, trace.requests, f"{share}; replayed as they are" if ties else "no ties"
        )
    starts = [group[0].arrival_ns for group in groups]
    if len(starts) == 1:
        return _noted(trace, trace.requests, f"{share}, and there is no other: not spread")
    distances = sorted(after - before for before, after in pairwise(starts))
    ends = [*starts[1:], starts[-1] + distances[len(distances) // 2]]
    rng = stream(seed, "spread-ties")
    arrivals: list[int] = []
    for group, start, end in zip(groups, starts, ends, strict=True):
        if len(group) == 1:
            arrivals.append(start)
        else:
            # Integers, so that [start, end) holds exactly.
            arrivals.extend(sorted(rng.integers(start, end, len(group)).tolist()))
    arrivals[0] = 0
    note = f"{share}; spread uniformly until the next timestamp, seed {seed}"
    return _moved(trace, arrivals, note)


def quantize_arrivals(trace: Trace, seconds: float) -> Trace:
    """Round every arrival up to a multiple of ``seconds``, as load generators that tick do.

    llm-bench, which made the workloads of the Nexus paper, rounds up to whole seconds by default:
    the requests of a second arrive together at its end. Raises UsageError unless positive.
    """
    check_number("quantize-arrivals", seconds)
    _check_open(trace, "quantize-arrivals")
    tick = max(1, round(seconds * NS_PER_S))
    timed = _timed(trace)
    arrivals = [ceil_div(request.arrival_ns, tick) * tick for request in timed]
    moments = len(set(arrivals))
    note = f"arrivals rounded up to {seconds:g} s: {len(timed):,} requests at {moments:,} moments"
    check_span(arrivals[-1], note)
    return _moved(trace, arrivals, note)


def closed_loop(trace: Trace, users: int) -> Trace:
    """The same requests in the same order, sent by ``users`` users: timestamps are given up.

    Each user sends the next request, or begins the next session, when the last one has ended; turns
    of a session follow one another, timestamps or not. Raises UsageError for less than one user.
    """
    if users < 1:
        raise UsageError(f"concurrency {users} is impossible. Choose 1 or more")
    if users > MAX_TOKENS:
        raise UsageError(f"concurrency {users} is too extreme. Choose at most {MAX_TOKENS:,}")
    requests = [_at(request, 0) for request in trace.requests]
    begun: set[str] = set()
    for request in requests:
        request.follows = request.session in begun
        if request.session:
            begun.add(request.session)
    note = f"closed loop of {users:,} users; timestamps are ignored"
    return msgspec.structs.replace(_noted(trace, requests, note), concurrency=users)


def bounds(trace: Trace, max_tokens: Literal["trace"] | int | None = None) -> Trace:
    """Set the output bound that a policy may see (``TraceRequest.max_tokens``).

    An int N: N for each request, longer outputs are clipped to N. ``"trace"``: each request's true
    length, an oracle, labelled as such. None: the smallest power of two that is not below the
    longest output, a cap as a server would set it, which reveals no single length.
    Raises UsageError for N < 1 or another word.
    """
    requests = trace.requests
    if max_tokens == "trace":
        told = [copy(request) for request in requests]
        for request in told:
            request.max_tokens = request.output_tokens
        note = "ORACLE: max_tokens is each request's true output length"
        return msgspec.structs.replace(_noted(trace, told, note), oracle_max_tokens=True)
    if max_tokens is None:
        longest = max(request.output_tokens for request in requests)
        cap = 1 << (longest - 1).bit_length()
        note = f"max_tokens {cap:,} for all (power of two from the longest output, {longest:,})"
    elif isinstance(max_tokens, int) and 1 <= max_tokens <= MAX_TOKENS:
        cap = max_tokens
        clipped = sum(request.output_tokens > cap for request in requests)
        note = f"max_tokens {cap:,} for all: {clipped:,} of {len(requests):,} outputs clipped"
    else:
        raise UsageError(
            f"max-tokens '{max_tokens}' is no bound. Give 1 to {MAX_TOKENS:,}, or 'trace'"
        )
    capped = [copy(request) for request in requests]
    for request in capped:
        request.max_tokens, request.output_tokens = cap, min(request.output_tokens, cap)
    return msgspec.structs.replace(_noted(trace, capped, note), oracle_max_tokens=False)


def fit_context(trace: Trace, max_model_len: int, policy: ContextPolicy = "reject") -> Trace:
    """Handle requests whose prompt + output exceeds ``max_model_len`` tokens.

    ``reject``: they stay, for the engine to reject (only counted). ``skip``: dropped. ``clip``: the
    prompt is cut at its end so that the request fits exactly, hash ids and tokens beyond the cut
    go; an output that leaves no room for one prompt token cannot be helped so and is dropped.
    ``error``: refused.
    What follows a dropped turn is dropped too.
    Raises UsageError for ``error`` with such requests, if none is left, or for another word.
    """
    requests = trace.requests
    over = [r for r in requests if r.prompt_tokens + r.output_tokens > max_model_len]
    note = (
        f"context {max_model_len:,} tokens: {len(over):,} of {len(requests):,} requests exceed it"
    )
    if policy == "error" and over:
        raise UsageError(
            f"{note}, the first is '{over[0].id}' with {over[0].prompt_tokens:,} + "
            f"{over[0].output_tokens:,} tokens. Choose the policy reject, skip or clip"
        )
    if policy in ("reject", "error"):
        note += "; kept, the engine rejects them" if over else ""
        return _noted(trace, requests, note)
    if policy not in ("skip", "clip"):
        raise UsageError(
            f"context policy '{policy}' is unknown. Choose reject, skip, clip or error"
        )
    kept: list[TraceRequest] = []
    clipped = 0
    broken: set[str] = set()  # sessions that lost a turn
    for request in requests:
        room = max_model_len - request.output_tokens
        if request.follows and request.session in broken:
            continue
        if request.prompt_tokens <= room:
            kept.append(request)
        elif policy == "clip" and room >= 1:
            short = copy(request)
            short.prompt_tokens = room
            short.hash_ids = request.hash_ids[: ceil_div(room, trace.hash_block)]
            short.token_ids = None if request.token_ids is None else request.token_ids[:room]
            kept.append(short)
            clipped += 1
        elif request.session:
            broken.add(request.session)
    if not kept:
        raise UsageError(f"{note}, and none would be left. Choose a longer context")
    skipped = len(requests) - len(kept)
    done = [f"prompts clipped: {clipped:,}"] if clipped else []
    done += [f"requests skipped: {skipped:,}"] if skipped else []
    return _noted(trace, _rebased(kept), "; ".join([note, *done]))


def _at(request: TraceRequest, arrival_ns: int) -> TraceRequest:
    """A copy that arrives at another time."""
    moved = copy(request)
    moved.arrival_ns = arrival_ns
    return moved


def _noted(trace: Trace, requests: list[TraceRequest], note: str) -> Trace:
    return msgspec.structs.replace(trace, requests=list(requests), notes=[*trace.notes, note])


def _timed(trace: Trace) -> list[TraceRequest]:
    """The requests that have an arrival of their own."""
    return [request for request in trace.requests if not request.follows]


def _check_open(trace: Trace, name: str) -> None:
    if trace.concurrency:
        raise UsageError(
            f"{name}: '{trace.name}' is a closed loop of {trace.concurrency} users, whose arrivals "
            "follow from the run. Change the concurrency instead"
        )


def _moved(trace: Trace, arrivals: Iterable[int], note: str) -> Trace:
    """The same requests at other times; the note includes the new span."""
    requests: list[TraceRequest] = []
    begun: dict[str, int] = {}
    times = iter(arrivals)
    last = 0
    for request in trace.requests:
        if request.follows:
            requests.append(_at(request, begun[request.session]))
            continue
        last = next(times)
        requests.append(_at(request, last))
        if request.session:
            begun[request.session] = last
    return _noted(trace, requests, f"{note}; now {span_text(last)}")


def _rebased(requests: list[TraceRequest]) -> list[TraceRequest]:
    first = requests[0].arrival_ns
    return [_at(request, request.arrival_ns - first) for request in requests]


def _groups(requests: list[TraceRequest]) -> list[list[TraceRequest]]:
    """Runs of equal arrival."""
    groups: list[list[TraceRequest]] = []
    for request in requests:
        if groups and groups[-1][0].arrival_ns == request.arrival_ns:
            groups[-1].append(request)
        else:
            groups.append([request])
    return groups
