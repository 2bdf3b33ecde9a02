"""Probes, verdicts and the search over rates, on made-up probes and on small simulated runs."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.experiments import rate_search
from nexusbench.experiments.capacity import (
    CapacitySearch,
    check_search,
    find_capacities,
    weak_bounds,
)
from nexusbench.experiments.judging import attained, judge, strain
from nexusbench.experiments.probe import Probe, find_probe, run_probe, statistic
from nexusbench.experiments.rate_search import SearchTask, lattice_rate, lattice_step, search_rate
from nexusbench.experiments.store import Store
from nexusbench.metrics.slo import STATISTICS, parse_slo
from nexusbench.serving.runner import run
from tests.examples import slow

INF, NAN = math.inf, math.nan


def make_trace(path: Path, count: int = 60, prompt: int = 1500, output: int = 12) -> Path:
    rng = random.Random(5)
    rows = [
        {
            "timestamp": 100 * index,
            "input_length": rng.randint(prompt // 2, 2 * prompt),
            "output_length": rng.randint(1, 2 * output),
        }
        for index in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    trace = make_trace(tmp_path / "t.jsonl")
    return RunConfig(
        trace=str(trace), device="sim:l20", model="qwen2.5-3b", scheduler="vllm",
        request_rate=8.0, burstiness=1.0, seed=1,
    )  # fmt: skip


def made_up(**changes: Any) -> Probe:
    values = dict.fromkeys(("queueing", "tpot", "e2e", "own_gap"), [1.0] * 4)
    base: dict[str, Any] = {
        "rate": 1.0, "seed": 0, "complete": True, "ttft": [1.0, 2.0, 3.0, 4.0], **values,
        "gaps": dict.fromkeys(STATISTICS, 5.0), "little": (1.0, 1.0, 1.0), "throughput": 1.0,
        "ended": 4,
    }  # fmt: skip
    return Probe(**{**base, **changes})


def test_statistics_are_those_of_the_summary(config: RunConfig) -> None:
    probe = run_probe(config, None)
    metrics = run(config).summary.metrics
    for key, tag in (("ttft", "ttft"), ("e2e", "e2e"), ("tpot", "tpot"), ("tbt", "tbt"),
                     ("queueing", "ttft_queueing")):  # fmt: skip
        for name in ("mean", "p50", "p99"):
            value = getattr(metrics[tag], name)
            above, below = (parse_slo([f"{key}:{name}<{value * f}"]) for f in (1.001, 0.999))
            assert judge(probe, above).outcome == "kept", (key, name)
            assert judge(probe, below).outcome == "broken", (key, name)


def test_attainment_is_that_of_the_summary(config: RunConfig) -> None:
    bounds = {"ttft": 300.0, "tbt": 60.0, "tpot": 40.0}
    asked = RunConfig(**{**_fields(config), "goodput": bounds})
    slo = parse_slo([f"{key}:{limit}" for key, limit in bounds.items()])
    value = run(asked).summary.metrics["attainment"].value
    assert 5 < value < 95
    assert attained(run_probe(config, None), slo) == pytest.approx(value)


def _fields(config: RunConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in RunConfig.__struct_fields__}


def test_what_does_not_finish_is_infinitely_late(config: RunConfig) -> None:
    # Half of the requests are too long for the model and are rejected.
    probe = run_probe(RunConfig(**{**_fields(config), "max_model_len": 1500}), None)
    share = sum(value == INF for value in probe.ttft) / len(probe.ttft)
    assert 0.2 < share < 0.9
    assert probe.gaps["p99"] == INF
    for bound in ("ttft:p99<9e9", "tbt:p99<9e9", "e2e:mean<9e9", "tpot:p99<9e9"):
        assert judge(probe, parse_slo([bound])).broken[0].value is None
    assert attained(probe, parse_slo(["ttft:9e9"])) == pytest.approx(100 * (1 - share))


def test_percentiles_next_to_infinity() -> None:
    import numpy as np

    values = np.array([1.0, 2.0, INF])
    assert statistic(values, "p50") == 2.0
    assert statistic(values, "p90") == INF
    assert statistic(np.array([]), "p99") == 0.0


def test_one_token_answers_have_no_gaps() -> None:
    slo = parse_slo(["tpot:p99<2"])
    assert judge(made_up(tpot=[NAN, 1.0, 1.0, 1.0]), slo).outcome == "kept"
    assert attained(made_up(own_gap=[NAN, 1, 1, 9]), parse_slo(["tbt:5"])) == 75


def test_the_worst_bound_comes_first() -> None:
    verdict = judge(made_up(), parse_slo(["ttft:max<2,tbt:p99<1"]))
    assert [b.bound for b in verdict.broken] == ["tbt:p99<1", "ttft:max<2"]
    share = judge(made_up(), parse_slo(["ttft:2,e2e:5"]))
    assert share.broken[0].bound == "ttft:2"
    assert (share.broken[0].value, share.broken[0].limit) == (50, 90)
    assert judge(made_up(), parse_slo(["ttft:2"], share=50)).outcome == "kept"


def test_strain() -> None:
    assert strain(made_up(), {"ttft": 4.0}) == pytest.approx((0.25 + 0.5 + 0.75 + 1) / 4)
    assert strain(made_up(ttft=[INF] * 4), {"ttft": 4.0}) == 2.0


@pytest.mark.slow
def test_a_lost_run_is_stopped_and_never_judged_otherwise(config: RunConfig) -> None:
    for text in (
        "ttft:p99<200",
        "tbt:p99<30",
        "e2e:mean<500",
        "ttft:200,tbt:40",
        "queueing:p50<20",
    ):
        slo = parse_slo([text])
        whole = run_probe(config, None)
        part = run_probe(config, None, lambda p, slo=slo: judge(p, slo).outcome == "broken")
        assert judge(whole, slo).outcome == "broken", text
        assert judge(part, slo).outcome == "broken", text
        for key in ("ttft", "queueing", "e2e", "tpot"):
            pairs = zip(getattr(part, key), getattr(whole, key), strict=True)
            assert all(math.isnan(a) or a <= b + 1e-9 for a, b in pairs), (text, key)


def test_a_hopeless_run_is_stopped_early(config: RunConfig, tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "long.jsonl", 60, output=100)
    overloaded = {**_fields(config), "request_rate": 60.0, "trace": str(trace)}
    slo = parse_slo(["ttft:p99<200"])
    part = run_probe(RunConfig(**overloaded), None, lambda p: judge(p, slo).outcome == "broken")
    assert not part.complete
    assert part.ended < 30


def test_a_bound_on_gaps_is_not_kept_by_answers_that_never_came(tmp_path: Path) -> None:
    """Answers of one token have no gap: those that were turned away must not pass for it."""
    trace = tmp_path / "t.jsonl"
    lines = (
        {"timestamp": 100 * i, "input_length": 900 if i % 2 else 90, "output_length": 1}
        for i in range(20)
    )
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = RunConfig(trace=str(trace), device="sim:l20", model="qwen2.5-3b", max_model_len=500)
    probe = run_probe(config, None)
    for text in ("tbt:p99<100", "tbt:mean<100", "tbt:100", "tpot:p99<100", "ttft:p99<9000"):
        assert judge(probe, parse_slo([text])).outcome == "broken", text


def test_probes_serve_other_slos(config: RunConfig, tmp_path: Path) -> None:
    store = Store(tmp_path / "probes", ".probe")
    overloaded = RunConfig(**{**_fields(config), "request_rate": 60.0})
    strict, loose = parse_slo(["ttft:p99<100"]), parse_slo(["ttft:p99<100000"])
    run_probe(overloaded, store, lambda p: judge(p, strict).outcome == "broken")
    part = find_probe(overloaded, store)
    assert part is not None
    assert judge(part, strict).outcome == "broken"
    assert judge(part, loose).outcome == "open"  # has to run again
    run_probe(overloaded, store)
    whole = find_probe(overloaded, store)
    assert whole is not None
    assert judge(whole, loose).outcome == "kept"


def test_littles_law_tells_a_growing_queue(config: RunConfig) -> None:
    number, rate, stay = run_probe(
        RunConfig(**{**_fields(config), "request_rate": 1.0}), None
    ).little
    assert number == pytest.approx(rate * stay, rel=0.1)
    number, rate, stay = run_probe(
        RunConfig(**{**_fields(config), "request_rate": 60.0}), None
    ).little
    assert number > 1.3 * rate * stay


def test_the_lattice() -> None:
    assert lattice_rate(0, 1.02) == 1.0
    assert lattice_step(lattice_rate(-77, 1.02), 1.02) == -77
    assert all(lattice_rate(k, 1.02) < lattice_rate(k + 1, 1.02) for k in range(-300, 300))


def search_of(threshold: float, monkeypatch: pytest.MonkeyPatch, near: int, **changes: Any) -> Any:
    """A search over made-up probes that keep the SLO up to a rate."""
    count = 0

    def fake(config: RunConfig, store: object, lost: object = None) -> Probe:
        nonlocal count
        count += 1
        rate = config.request_rate or 0.0
        ttft = [1.0 if rate <= threshold else 9.0] * 4
        return made_up(
            rate=rate, ttft=ttft, throughput=min(rate, changes.get("most", INF)),
            e2e=[1000.0] * 4,
        )  # fmt: skip

    monkeypatch.setattr(rate_search, "run_probe", fake)
    task = SearchTask(
        config=RunConfig(trace="t"), slo=parse_slo(["ttft:p99<5"]), ratio=1.02, near=near,
        hinted=changes.get("hinted", False), cache=None,
    )  # fmt: skip
    return search_rate(task), count


@pytest.mark.parametrize("hinted", [False, True])
@pytest.mark.parametrize("near", [-200, *slow(-3, 2), 0, 180])
@pytest.mark.parametrize("threshold", [0.07, *slow(0.98, 1.5), 1.0, 30.0])
def test_the_search_ends_at_the_step(
    threshold: float, near: int, hinted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, count = search_of(threshold, monkeypatch, near, hinted=hinted)
    assert found.kept <= threshold < found.broken_at
    assert found.broken_at == lattice_rate(found.step + 1, 1.02)
    assert found.monotone
    assert count <= 22


def test_no_rate_keeps_it_and_no_rate_breaks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = search_of(0.0, monkeypatch, 0)
    assert (found.kept, found.little) == (0.0, None)
    assert found.broken_at < 0.05
    found, _ = search_of(INF, monkeypatch, 0, most=4.0)
    assert found.broken_at is None
    assert found.kept > 8


def test_weak_percentiles_are_told() -> None:
    slo = parse_slo(["ttft:p99<1,tpot:p90<1,tbt:p99<1,e2e:mean<1"])
    assert weak_bounds(slo, 600) == ["ttft:p99<1"]
    assert weak_bounds(slo, 1000) == []


def test_a_closed_loop_has_no_rate(tmp_path: Path) -> None:
    path = tmp_path / "closed.jsonl"
    row = '{"input_length": 9, "output_length": 2'
    path.write_text(f'{row}, "concurrency": 2}}\n' + f"{row}}}\n" * 3)
    search = CapacitySearch(
        configs=(RunConfig(trace=str(path)),), slo=parse_slo(["ttft:1"]), seeds=(0,)
    )
    with pytest.raises(UsageError, match="closed loop"):
        check_search(search)


def _at(config: RunConfig, seed: int, step: int, ratio: float) -> RunConfig:
    rate = lattice_rate(step, ratio)
    return RunConfig(**{**_fields(config), "seed": seed, "request_rate": rate})


@pytest.mark.slow
def test_capacity_agrees_with_a_brute_force_grid(tmp_path: Path) -> None:
    """Three schedulers, every rate of a grid in full, nothing stopped and nothing remembered."""
    trace = make_trace(tmp_path / "t.jsonl", 60)
    slo = parse_slo(["ttft:p90<400,tbt:p99<120"])
    configs = tuple(
        RunConfig(
            trace=str(trace), device="sim:l20", model="qwen2.5-3b", scheduler=name, burstiness=1.0
        )
        for name in ("nexus", "vllm", "sglang")
    )
    search = CapacitySearch(
        configs=configs, slo=slo, seeds=(0, 1, 2), precision=6.0, cache=tmp_path / "probes"
    )
    results = find_capacities(search, jobs=1)
    for config, found in zip(configs, results, strict=True):
        lowest = []
        middle = lattice_step(found.rate, search.ratio)
        for one in found.found:
            kept = {
                step: judge(run_probe(_at(config, one.seed, step, search.ratio), None), slo).outcome
                == "kept"
                for step in range(middle - 7, middle + 8)
            }
            # A draw can break the SLO at a rate below one that keeps it; the search ends at one
            # such place, the grid's answer is the lowest.
            assert kept[one.step]
            assert not kept[one.step + 1]
            lowest.append(lattice_rate(min(s for s in kept if not kept[s]) - 1, search.ratio))
        assert found.high is not None
        assert found.low <= sum(lowest) / len(lowest) <= found.high
        assert found.breaks
    again = find_capacities(search, jobs=1)
    assert [one.rate for one in again] == [one.rate for one in results]
    assert all(one.probes_kept == one.probes for one in again)
