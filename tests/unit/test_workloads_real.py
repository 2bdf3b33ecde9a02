"""The public traces themselves: counts, statistics, and how fast they load."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from nexusbench.workloads import transform
from nexusbench.workloads.trace import load_trace, prefix_ids

DATA = os.environ.get("NEXUSBENCH_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="NEXUSBENCH_DATA names no folder of real traces")
AZURE = "azure-2023-conv.csv.gz"
MOONCAKE = "mooncake-conversation.jsonl.gz"


def path_of(name: str) -> Path:
    path = Path(DATA or "") / "traces" / name
    if not path.exists():
        pytest.skip(f"$NEXUSBENCH_DATA/traces/{name} is not there")
    return path


# Computed from the published files: n, span (s), and mean, P50, P90, P99, max of input and output.
FACTS = [
    (AZURE, 19_366, 3502, (1155, 1020, 2734, 4142, 14050), (211, 129, 424, 601, 1000)),
    (MOONCAKE, 12_031, 3537, (12035, 6909, 27367, 85400, 126195), (343, 350, 597, 1119, 2000)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count", "span", "prompts", "outputs"), FACTS)
def test_real_trace_has_its_known_statistics(
    name: str, count: int, span: int, prompts: tuple[int, ...], outputs: tuple[int, ...]
) -> None:
    trace = load_trace(path_of(name))
    requests = trace.requests
    assert len(requests) == count
    assert requests[0].arrival_ns == 0
    assert requests[-1].arrival_ns / 1e9 == pytest.approx(span, abs=0.6)
    for values, known in (
        (np.array([r.prompt_tokens for r in requests]), prompts),
        (np.array([r.output_tokens for r in requests]), outputs),
    ):
        got = [values.mean(), *np.percentile(values, [50, 90, 99]), values.max()]
        assert got == pytest.approx(known, abs=0.51)


def test_azure_notes_and_precision() -> None:
    trace = load_trace(path_of(AZURE))
    assert trace.notes == [
        "format azure, wall-clock timestamps, 19,366 requests, 58.4 min",
        "first arrival, 2023-11-16 18:15:46.680590000 UTC in the file, is time 0",
    ]
    assert trace.requests[1].arrival_ns == 4_314_579_000


@pytest.mark.slow
def test_mooncake_notes_ties_and_prefixes() -> None:
    trace = load_trace(path_of(MOONCAKE))
    assert trace.notes == [
        "format mooncake, timestamps in ms, 12,031 requests, 58.9 min, 90 % of arrivals tie"
    ]
    assert len({r.arrival_ns for r in trace.requests}) == 1_180
    seen: set[int] = set()
    hits = total = 0
    for chain in prefix_ids(trace, 16):
        hits += len(seen.intersection(chain))
        total += len(chain)
        seen.update(chain)
    assert hits / total == pytest.approx(0.366, abs=0.001)
    fits = [r for r in trace.requests if r.prompt_tokens + r.output_tokens <= 8192]
    assert len(fits) / len(trace.requests) == pytest.approx(0.537, abs=0.001)
    assert len(transform.fit_context(trace, 8192, "skip").requests) == len(fits)


@pytest.mark.slow
def test_mooncake_ties_spread_out() -> None:
    trace = transform.spread_ties(load_trace(path_of(MOONCAKE)), "uniform", 0)
    times = np.array([r.arrival_ns for r in trace.requests])
    assert len(set(times.tolist())) == len(times)
    gaps = np.diff(times)
    # As the file stands the coefficient of variation of the gaps is 3.03, an artefact of its clock.
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seconds"), [(AZURE, 0.3), (MOONCAKE, 0.5)])
def test_loading_is_fast(name: str, seconds: float) -> None:
    path = path_of(name)
    took = []
    for _ in range(5):
        start = time.process_time()
        load_trace(path)
        took.append(time.process_time() - start)
    assert min(took) < seconds
