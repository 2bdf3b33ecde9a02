"""Step functions over a run's time, against a count made the slow way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nexusbench.core.config import RunConfig
from nexusbench.metrics.occupancy import (
    StepFunction,
    at_edges,
    kv_over_time,
    queue_over_time,
    sms_at_work,
    split_over_time,
)
from nexusbench.metrics.run_events import RunEvents
from nexusbench.serving.runner import run
from tests.examples import slow
from tests.unit.test_metrics import Log

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["nexus", *slow("vllm")])
def events(request: pytest.FixtureRequest) -> RunEvents:
    config = RunConfig(
        trace=str(ROOT / "workloads" / "mixed.jsonl"), scheduler=request.param, limit=120,
        request_rate=6.0, kv_blocks=2200,
    )  # fmt: skip
    return run(config).events


@pytest.mark.slow
def test_queue_counts_what_the_log_says(events: RunEvents) -> None:
    queue = queue_over_time(events)
    assert np.all(np.diff(queue.times) > 0)
    tables = events.tables
    assert len(tables["preempted"]["time"]), "without preemptions this tests little"
    for time in queue.times[:: max(1, len(queue.times) // 60)].tolist():
        waiting = running = 0
        for request in range(events.num_requests):

            def count(name: str, request: int = request, time: int = time) -> int:
                rows = tables[name]["request"] == request
                return int((tables[name]["time"][rows] <= time).sum())

            ended = count("ended")
            inside = count("admitted") - count("preempted")
            running += inside * (1 - ended)
            waiting += (count("arrived") - inside) * (1 - ended)
        at = int(np.searchsorted(queue.times, time))
        assert (queue.waiting[at], queue.running[at]) == (waiting, running)
    assert queue.waiting[-1] == queue.running[-1] == 0


@pytest.mark.slow
def test_sms_at_work_are_the_metrics(events: RunEvents) -> None:
    end = int(events.all_launches.end.max())
    for code, name in enumerate(events.facts.partitions):
        coarse = sms_at_work(events, code, np.array([0, end]))
        fine = sms_at_work(events, code, np.linspace(0, end, 51).astype(np.int64))
        assert fine.mean() == pytest.approx(coarse[0], rel=1e-3)
        mine = events.tables["submitted"]["partition"][events.all_launches.row] == code
        sms = events.tables["submitted"]["sms"][events.all_launches.row]
        time = events.all_launches.end - events.all_launches.start
        assert coarse[0] == pytest.approx(int((sms * time)[mine].sum()) / end), name


def test_kv_is_empty_when_nobody_runs(events: RunEvents) -> None:
    kv = kv_over_time(events)
    assert kv.values[-1] == 0
    assert kv.values.max() == events.tables["submitted"]["kv_used"].max()
    assert np.all(np.diff(kv.times) > 0)
    assert len(split_over_time(events).times) == len(events.tables["repartitioned"]["time"])


def test_sms_at_work_are_a_mean_over_each_interval() -> None:
    """100 SMs from 2 to 10 ms, 40 from 20 to 24 ms; of another partition nothing counts."""
    log = Log()
    log.request(0)
    log.step(0, 2, 10, sms=100)
    log.step(1, 4, 12, sms=60, partition=1)
    log.step(2, 20, 24, sms=40)
    edges = np.array([0, 4, 8, 16, 22, 32]) * 1_000_000
    found = sms_at_work(log.run(), 0, edges)
    assert found.tolist() == pytest.approx([50, 100, 25, 40 * 2 / 6, 40 * 2 / 10])


def test_at_edges() -> None:
    steps = StepFunction(np.array([10, 20, 25, 40]), np.array([1, 5, 2, 3]))
    edges = np.array([0, 10, 20, 30, 35, 50, 60])
    assert at_edges(steps, edges).tolist() == [0, 1, 5, 2, 3, 3]
    assert at_edges(steps, edges, np.minimum).tolist() == [0, 1, 2, 2, 2, 3]
    empty = np.zeros(0, dtype=np.int64)
    assert at_edges(StepFunction(empty, empty), edges).tolist() == [0] * 6
