"""Traffic shaped after public traces: the specs keep what they say, and what the traces say."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import msgspec
import numpy as np
import pytest

from nexusbench.workloads.base import Trace
from nexusbench.workloads.generate import make_trace
from nexusbench.workloads.spec import load_spec
from nexusbench.workloads.trace import load_trace
from tests.examples import sample

FOLDER = Path(__file__).parents[2] / "workloads" / "when-it-pays"
DATA = os.environ.get("NEXUSBENCH_DATA")
SHAPED = {
    "azure-chat": "azure-2023-conv.csv.gz",
    "mooncake-chat": "mooncake-conversation.jsonl.gz",
}
# Mean, P50, P90, P99 of prompts and answers, as the specs' comments state them.
STATED = {
    "azure-chat": ((1155, 1020, 2734, 4142), (211, 129, 424, 601)),
    "mooncake-chat": ((12035, 6909, 27367, 85400), (343, 350, 597, 1119)),
}


def shaped(name: str, requests: int = 2000) -> Trace:
    spec = load_spec(FOLDER / f"{name}.toml")
    plan = msgspec.structs.replace(spec.workload, num_requests=requests)
    return make_trace(msgspec.structs.replace(spec, workload=plan))


def lengths(trace: Trace) -> tuple[list[float], list[float]]:
    found = []
    for field in ("prompt_tokens", "output_tokens"):
        values = np.array([getattr(request, field) for request in trace.requests])
        found.append([float(values.mean()), *np.percentile(values, [50, 90, 99]).tolist()])
    return found[0], found[1]


def dispersion(trace: Trace, window_s: float) -> float:
    """Variance over mean of arrivals in windows: the mean over pieces of ten minutes."""
    times = np.array([request.arrival_ns for request in trace.requests]) / 1e9
    found = []
    for start in range(0, int(times[-1]) - 600 + 1, 300):
        inside = times[(times >= start) & (times < start + 600)] - start
        counts = np.bincount((inside // window_s).astype(int), minlength=int(600 // window_s))
        counts = counts[: int(600 // window_s)]
        found.append(counts.var() / counts.mean())
    return float(np.mean(found))


def reused(trace: Trace, tokens: int) -> float:
    """Share of prompt tokens in a prefix cache of ``tokens`` that drops the least recently used."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = total = 0
    for request in trace.requests:
        known = 0
        for block in request.hash_ids:
            if block not in cache:
                break
            known += 1
        hits += min(known * trace.hash_block, request.prompt_tokens - 1)
        total += request.prompt_tokens
        for block in request.hash_ids:
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > tokens // trace.hash_block:
            cache.popitem(last=False)
    return hits / total


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.slow
def test_specs_have_the_quantiles_that_they_state(name: str) -> None:
    for got, stated in zip(lengths(shaped(name)), STATED[name], strict=True):
        assert got == pytest.approx(stated, rel=0.06)


@pytest.mark.slow
def test_azure_answers_hang_on_the_quarter_of_the_prompt() -> None:
    trace = shaped("azure-chat")
    means = {
        tenant: np.mean([r.output_tokens for r in trace.requests if r.tenant == tenant])
        for tenant in ("q1", "q2", "q3", "q4")
    }
    assert means["q3"] > 2 * max(means["q1"], means["q2"], means["q4"])


def test_mooncake_shares_one_block() -> None:
    trace = shaped("mooncake-chat")
    assert reused(trace, 200_000) == pytest.approx(0.043, abs=0.002)
    assert reused(trace, 10**9) == pytest.approx(reused(trace, 200_000), abs=0.001)


def real(name: str) -> Trace:
    if not DATA:
        pytest.skip("NEXUSBENCH_DATA names no folder of real traces")
    path = Path(DATA) / "traces" / SHAPED[name]
    if not path.exists():
        pytest.skip(f"$NEXUSBENCH_DATA/traces/{SHAPED[name]} is not there")
    return load_trace(path)


@pytest.mark.parametrize("name", sample(SHAPED, 2))
def test_lengths_follow_the_trace(name: str) -> None:
    for got, known in zip(lengths(shaped(name)), lengths(real(name)), strict=True):
        assert got == pytest.approx(known, rel=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "window"), [("azure-chat", 9), ("mooncake-chat", 30)])
def test_burstiness_follows_the_trace(name: str, window: int) -> None:
    spec = load_spec(FOLDER / f"{name}.toml")
    cv = spec.arrivals.cv  # type: ignore[attr-defined]
    assert cv**2 == pytest.approx(dispersion(real(name), window), rel=0.06)


@pytest.mark.slow
def test_a_cache_of_one_gpu_reuses_only_what_the_spec_shares() -> None:
    trace = real("mooncake-chat")
    assert reused(trace, 200_000) == pytest.approx(
        reused(shaped("mooncake-chat"), 200_000), abs=0.003
    )
    assert reused(trace, 10**9) > 0.35
