"""What is in a trace, in numbers: rates, burstiness, lengths, shared prefixes, sessions."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from nexusbench.core.units import NS_PER_S
from nexusbench.workloads.base import Trace, TraceRequest
from nexusbench.workloads.trace import conversation_ids, prefix_ids

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]

__all__ = ["IDC_SECONDS", "describe_trace", "histogram", "prefix_ceiling"]

IDC_SECONDS = (1, 10, 60)
QUANTILES = (50, 90, 95, 99)
# An index of dispersion from fewer windows than this would be noise.
_LEAST_WINDOWS = 10


def describe_trace(trace: Trace) -> dict[str, Any]:
    """Every figure of ``nexusbench trace show``, JSON-ready; None where a trace has no such thing.

    Rates and gaps are of arrivals that have a time of their own; rate is (n - 1) / span.
    """
    requests = trace.requests
    prompts = [request.prompt_tokens for request in requests]
    outputs = [request.output_tokens for request in requests]
    timed = [] if trace.concurrency else [r.arrival_ns for r in requests if not r.follows]
    return {
        "name": trace.name,
        "format": trace.format,
        "sha256": trace.sha256,
        "notes": trace.notes,
        "requests": len(requests),
        "concurrency": trace.concurrency or None,
        "arrivals": _arrivals(timed) if timed else None,
        "input_tokens": _lengths(prompts),
        "output_tokens": _lengths(outputs),
        "input_per_output": sum(prompts) / sum(outputs),
        "prefixes": prefix_ceiling(trace),
        "sessions": _sessions(requests),
        "patience": _patience(requests),
        "token_ids": _token_ids(requests),
        "tenants": dict(Counter(r.tenant for r in requests if r.tenant).most_common()),
    }


def _token_ids(requests: list[TraceRequest]) -> dict[str, int] | None:
    """The largest token id, where prompts are in the trace."""
    largest = [max(request.token_ids) for request in requests if request.token_ids]
    return {"largest": max(largest)} if largest else None


def prefix_ceiling(trace: Trace) -> dict[str, Any] | None:
    """Share of the prompt that a cache without limits would have seen before, in percent.

    ``blocks``: of hash blocks, as published for such traces. ``tokens``: of prompt tokens, in whole
    blocks and at least one token short of the prompt, as an engine can use it. Answers are kept
    too, for the next turn. None without hash ids.
    """
    if not any(request.hash_ids for request in trace.requests):
        return None
    seen: set[int] = set()
    total = hits = reused = 0
    chains = zip(trace.requests, prefix_ids(trace, 1), conversation_ids(trace, 1), strict=True)
    for request, chain, (kept, _) in chains:
        # A name stands for all before it too, so what was seen comes first.
        known = sum(name in seen for name in chain)
        seen.update(chain, kept)
        total, hits = total + len(chain), hits + known
        whole = min(known, (request.prompt_tokens - 1) // trace.hash_block)
        reused += whole * trace.hash_block
    return {
        "hash_block": trace.hash_block,
        "blocks": 100 * hits / total,
        "tokens": 100 * reused / sum(request.prompt_tokens for request in trace.requests),
    }


def histogram(values: list[int]) -> list[tuple[int, int, int]]:
    """Counts of numbers of 1 or more in bins that double: (from, to, how many), empty ends left
    out.
    """
    bins = Counter((value - 1).bit_length() for value in values)
    low, high = min(bins), max(bins)
    return [((1 << b >> 1) + 1 if b else 1, 1 << b, bins[b]) for b in range(low, high + 1)]


def _arrivals(times: list[int]) -> dict[str, Any]:
    import numpy as np

    span = (times[-1] - times[0]) / NS_PER_S
    gaps = np.diff(np.asarray(times)) / NS_PER_S
    bursty = len(gaps) > 1 and gaps.mean() > 0
    return {
        "n": len(times),
        "span_s": span,
        "rate": (len(times) - 1) / span if span else None,
        "gap_cv": float(gaps.std() / gaps.mean()) if bursty else None,
        "dispersion": {f"{window}s": _dispersion(times, window) for window in IDC_SECONDS},
        "tied": len(times) - len(set(times)),
    }


def _dispersion(times: list[int], seconds: int) -> float | None:
    """Variance over mean of the arrivals in whole windows; 1 is Poisson. None for a short trace."""
    import numpy as np

    windows = (times[-1] - times[0]) // (seconds * NS_PER_S)
    if windows < _LEAST_WINDOWS:
        return None
    number = (np.asarray(times) - times[0]) // (seconds * NS_PER_S)
    counts = np.bincount(number[number < windows], minlength=windows)
    return float(counts.var() / counts.mean())


def _lengths(values: list[int]) -> dict[str, float]:
    import numpy as np

    shown = np.percentile(values, QUANTILES).tolist()
    return {
        "mean": float(np.mean(values)),
        **{f"p{q}": value for q, value in zip(QUANTILES, shown, strict=True)},
        "min": min(values),
        "max": max(values),
    }


def _sessions(requests: list[TraceRequest]) -> dict[str, Any] | None:
    sizes = Counter(request.session for request in requests if request.session)
    if not sizes:
        return None
    thinks = [request.think_ns / NS_PER_S for request in requests if request.follows]
    return {
        "sessions": len(sizes),
        "turns_mean": sum(sizes.values()) / len(sizes),
        "turns_max": max(sizes.values()),
        "following": len(thinks),
        "think_s_mean": sum(thinks) / len(thinks) if thinks else None,
    }


def _patience(requests: list[TraceRequest]) -> dict[str, Any] | None:
    timeouts = [r.timeout_ns / NS_PER_S for r in requests if r.timeout_ns]
    cancels = [r.cancel_after_ns / NS_PER_S for r in requests if r.cancel_after_ns]
    if not timeouts and not cancels:
        return None
    return {
        "timeouts": len(timeouts),
        "timeout_s_mean": sum(timeouts) / len(timeouts) if timeouts else None,
        "cancellations": len(cancels),
        "cancel_after_s_mean": sum(cancels) / len(cancels) if cancels else None,
    }
