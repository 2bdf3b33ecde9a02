"""``nexusbench capacity`` and ``nexusbench advise`` on small traces."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from commandline import Outcome

from nexusbench.core.config import RunConfig
from nexusbench.experiments.advise import Question, advise, plan_rounds, scored_slo
from nexusbench.experiments.candidates import Candidate, find_candidates
from nexusbench.experiments.judging import attained, strain
from nexusbench.experiments.leads import DrawScore, Rated, lead
from nexusbench.experiments.probe import run_probe
from nexusbench.metrics.slo import parse_slo
from tests.examples import slow
from tests.unit.test_rate_search import make_trace

Call = Callable[..., Outcome]
WHERE = ("--device", "sim:l20", "--model", "qwen2.5-3b", "--jobs", "1")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return make_trace(tmp_path / "t.jsonl", 40)


@pytest.mark.slow
def test_capacity_says_rate_interval_and_what_breaks(call: Call, trace: Path) -> None:
    arguments = (
        "capacity", trace, *WHERE, "--goodput", "ttft:p90<400", "tbt:p99:120", "--scheduler",
        "nexus,vllm:order=spf", "--seeds", 2, "--precision", 10,
    )  # fmt: skip
    done = call(*arguments)
    assert done.code == 0, done.err
    for word in ("SIMULATED", "ttft:p90<400,tbt:p99<120", "vllm:order=spf", "95 % interval", "X·R"):
        assert word in done.out, word
    document = json.loads(call(*arguments, "--json").out)
    assert document["simulated"] is True
    one, two = document["capacities"]
    assert (one["label"], two["label"]) == ("nexus", "vllm:order=spf")
    for found in (one, two):
        assert found["low"] <= found["rate"] <= found["high"]
        assert sum(found["breaks"].values()) == 2
        assert found["probes_kept"] == found["probes"]  # the second call ran nothing
        assert {"number", "rate", "stay", "deviation", "held"} <= set(found["little"])
        for seed in found["found"]:
            assert seed["kept"] < seed["broken_at"]


@pytest.mark.slow
def test_another_slo_starts_from_what_is_known(call: Call, trace: Path) -> None:
    flags = (*WHERE, "--seeds", 1, "--precision", 10, "--json")
    call("capacity", trace, "--goodput", "ttft:p90<4000", *flags)
    stricter = json.loads(call("capacity", trace, "--goodput", "ttft:p90<400", *flags).out)
    assert stricter["capacities"][0]["probes_kept"] > 0


@pytest.mark.slow
def test_presets_and_attainment(call: Call, trace: Path) -> None:
    flags = (*WHERE, "--slo", "sarathi", "--seeds", 1, "--precision", 20, "--json")
    assert "Sarathi-Serve" in json.loads(call("capacity", trace, *flags).out)["slo"]["source"]
    flags = (*WHERE, "--slo", "vllm-ci", "--attainment", 95, "--seeds", 1, "--json")
    share = json.loads(call("capacity", trace, *flags).out)
    assert share["slo"]["share"] == 95
    assert "attained" in share["capacities"][0]["found"][0]["looks"][0]["values"]


def test_capacity_says_on_how_many_gpus(call: Call, trace: Path) -> None:
    done = call(
        "capacity", trace, *WHERE, "-tp", 2, "-dp", 2, "--scheduler", "vllm", "--goodput",
        "ttft:p90<4000", "--seeds", 1, "--precision", 50, "--limit", 10,
    )  # fmt: skip
    assert done.code == 0, done.err
    where = "qwen2.5-3b, --tensor-parallel-size 2, --data-parallel-size 2 SLO"
    assert where in " ".join(done.out.split())


def test_capacity_warns_of_pipeline_stages_as_serve_trace_does(call: Call, trace: Path) -> None:
    done = call(
        "capacity", trace, *WHERE, "-pp", 2, "--scheduler", "vllm", "--goodput", "ttft:p90<4000",
        "--seeds", 1, "--precision", 50, "--limit", 10, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert any("pipeline stages: NOT VALIDATED" in said for said in json.loads(done.out)["caveats"])


def test_data_types_reach_the_device_of_a_capacity(call: Call, trace: Path) -> None:
    few = ("--scheduler", "vllm", "--goodput", "ttft:p90<4000", "--seeds", 1, "--precision", 50)
    arguments = ("capacity", trace, *WHERE, *few, "--limit", 10)
    types = ("--dtype", "float16", "--quantization", "fp8", "--kv-cache-dtype", "fp8")
    done = call(*arguments, *types)
    assert done.code == 0, done.err
    shown = " ".join(done.out.split())
    where = "qwen2.5-3b, --dtype float16, --quantization fp8, --kv-cache-dtype fp8 WARNING"
    assert where in shown
    assert "--kv-cache-dtype fp8: keys and values are kept in fp8" in shown
    document = json.loads(call(*arguments, *types, "--json").out)
    (found,) = document["capacities"]
    asked = [found["config"][name] for name in ("dtype", "quantization", "kv_cache_dtype")]
    assert asked == ["float16", "fp8", "fp8"]
    assert any("keys and values are kept in fp8" in said for said in document["caveats"])
    (plain,) = json.loads(call(*arguments, "--json").out)["capacities"]
    first, other = (one["found"][0]["looks"][0]["values"] for one in (found, plain))
    assert first.keys() == other.keys()
    assert all(first[key] < other[key] for key in first)  # smaller weights are read faster


def test_advise_repeats_data_types_where_they_can_be(call: Call, trace: Path) -> None:
    done = call(
        "advise", trace, *WHERE, "--scheduler", "vllm", "--chunks", 512, "--goodput", "ttft:4000",
        "--seeds", 1, "--limit", 10, "--rate", 2, "--dtype", "float16", "--quantization", "fp8",
        "--kv-cache-dtype", "fp8", "--swap-space", 2, "--engine", "ideal", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads(done.out)
    config = document["config"]
    assert (config["dtype"], config["quantization"], config["kv_cache_dtype"]) == (
        "float16", "fp8", "fp8",
    )  # fmt: skip
    (simulated, *_), (real, *_) = document["verify"].values()
    for flag in ("--quantization fp8", "--kv-cache-dtype fp8", "--swap-space 2", "--engine ideal"):
        assert flag in simulated
        assert flag.split()[0] not in real
    assert "--dtype float16" in simulated
    assert "--dtype float16" in real
    assert call(*shlex.split(simulated)[1:], "--no-save").code == 0
    left_out = "without --swap-space, --quantization, --kv-cache-dtype: it refuses them"
    assert f"on the real GPU ({left_out})" in document["verify"]


@pytest.mark.parametrize("command", ["capacity", "advise", "serve-trace"])
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--dtype", "float32"), "--dtype float32: simulated devices have no kernels"),
        (("--quantization", "awq"), "qwen2.5-3b has plain weights, and only fp8 is made of those"),
        (("--kv-cache-dtype", "int8"), "--kv-cache-dtype int8 is unknown"),
    ],
)
def test_data_types_are_refused_alike(
    call: Call, trace: Path, command: str, flags: tuple[str, ...], sentence: str
) -> None:
    jobs = () if command == "serve-trace" else ("--jobs", "1")
    done = call(command, trace, *WHERE[:4], *jobs, "--goodput", "ttft:1000", *flags)
    assert done.code == 2, done.out
    assert sentence in " ".join(done.err.split())
    assert done.out == ""


@pytest.mark.slow
def test_an_slo_that_nothing_keeps(call: Call, trace: Path) -> None:
    done = call("capacity", trace, *WHERE, "--goodput", "ttft:p50:1", "--seeds", 1)
    assert done.code == 0
    assert " none " in done.out
    assert "not even requests that come one by one" in done.out.replace("\n", " ")


@pytest.mark.parametrize("command", ["capacity", "advise"])
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ((), "give the SLO"),
        (("--goodput", "ttft:1", "--slo", "sarathi"), "one of them"),
        (("--slo", "lama2-70b"), "Did you mean 'llama2-70b'"),
        (("--goodput", "ttft:p99<x"), "ttft:p99<x"),
        (("--goodput", "ttft:1", "--scheduler", "nexsus"), "Did you mean 'nexus'"),
        (("--goodput", "ttft:1", "--attainment", "0"), "above 0"),
    ],
)
def test_refusals(
    call: Call, trace: Path, command: str, flags: tuple[str, ...], sentence: str
) -> None:
    done = call(command, trace, *WHERE, *flags)
    assert done.code == 2, done.out
    assert sentence in done.err
    assert done.out == ""


def test_refusals_of_advise(call: Call, trace: Path) -> None:
    for flags, sentence in (
        (("--goodput", "ttft:1", "--chunks", "512,x"), "--chunks"),
        (("--goodput", "queueing:p50<9"), "bounds the queue only"),
        (("--goodput", "ttft:1", "--scheduler", "vllm", "--partitioner", "nexus"), "can serve"),
    ):
        done = call("advise", trace, *WHERE, *flags)
        assert done.code == 2
        assert sentence in done.err


def test_serve_trace_says_where_statistics_are_judged(call: Call, trace: Path) -> None:
    done = call("serve-trace", trace, "--goodput", "ttft:p99<500")
    assert done.code == 2
    assert "nexusbench capacity" in done.err
    assert (
        call("serve-trace", trace, *WHERE[:4], "--goodput", "ttft:500", "tbt:50", "--no-save").code
        == 0
    )


def test_list_slos(call: Call) -> None:
    done = call("list", "slos")
    assert "llama3.1-8b-interactive" in done.out
    assert "mlperf.conf" in done.out


def test_candidates_follow_from_the_registries() -> None:
    found, skipped = find_candidates(chunks=(512,))
    names = {(c.scheduler, c.partitioner) for c in found}
    assert ("nexus", "nexus") in names
    assert ("nexus:order=fcfs", "fixed:prefill=70") in names
    assert ("vllm", "whole") in names
    assert ("vllm", "nexus") not in names
    assert ("semi-pd", "semi-pd") in names
    assert ("semi-pd", "fixed") not in names  # what nexus with it says already
    asked, _ = find_candidates(["semi-pd"], ["fixed"], chunks=(512,))
    assert [(c.scheduler, c.partitioner) for c in asked] == [("semi-pd", "fixed")]
    assert ("vllm:order=fcfs", "whole") not in names  # the same as vllm
    assert len(names) == len(found)
    assert not skipped


def test_effort_is_kept_to() -> None:
    question = Question(
        config=RunConfig(trace="t"), slo=parse_slo(["ttft:1"]), candidates=(), requests=600,
        seeds=(0, 1, 2), effort=18_000,
    )  # fmt: skip
    rounds = plan_rounds(70, question)
    assert rounds[-1] == (20, 600, 3)
    assert sum(size * length * draws for size, length, draws in rounds[:-1]) <= 18_000
    assert plan_rounds(5, question) == [(5, 600, 3)]


@pytest.mark.slow
def test_advise_ends_with_commands_that_give_what_it_says(call: Call, trace: Path) -> None:
    arguments = (
        "advise", trace, *WHERE, "--goodput", "ttft:p90<300,tbt:60", "--rate", 3, "--seeds", 2,
        "--chunks", "256,1024,2048", "--effort", 500, "--scheduler", "nexus,vllm,sglang",
        "--partitioner", "nexus,whole",
    )  # fmt: skip
    done = call(*arguments)
    assert done.code == 0, done.err
    assert "on the real GPU:" in done.out
    assert "--device cuda" in done.out
    for title in ("within, %", "bounds used, %", "score", "SLO kept"):
        assert title in done.out
    document = json.loads(call(*arguments, "--json").out)
    assert document["advice"]["chunk"] in (256, 1024, 2048)
    families = {one["scheduler"].partition(":")[0] for one in document["final"]}
    assert families == {"nexus", "vllm", "sglang"}
    (command, *_) = document["verify"]["simulated, on sim:l20"]
    run = call(*shlex.split(command)[1:], "--json", "--no-save")
    assert run.code == 0, run.err
    over = json.loads(run.out)["over_seeds"]
    first = next(iter(over.values()))["attainment"]["value"]["mean"]
    assert first == pytest.approx(document["final"][0]["attained"])


def score_of(config: RunConfig, candidate: Candidate, slo: Any, seeds: range) -> Rated:
    single = scored_slo(slo)
    probes = [
        run_probe(msgspec.structs.replace(candidate.apply(config), seed=seed), None)
        for seed in seeds
    ]
    scores = [
        DrawScore(attained(probe, single), strain(probe, single.per_request()), kept=False)
        for probe in probes
    ]
    return Rated(candidate, tuple(scores), 0)


USUAL = ("nexus", "nexus:order=fcfs", "vllm", "vllm:order=spf", "sglang", "sglang:order=spf")


@pytest.mark.slow
@pytest.mark.parametrize("asked", [USUAL, ()], ids=["three schedulers", "all"])
def test_advise_picks_the_winner_of_the_whole_grid_on_unseen_draws(
    tmp_path: Path, asked: tuple[str, ...]
) -> None:
    trace = make_trace(tmp_path / "t.jsonl", 80)
    candidates, _ = find_candidates(asked, chunks=(256, 2048))
    slo = parse_slo(["ttft:400,tbt:40"])
    config = RunConfig(
        trace=str(trace), device="sim:l20", model="qwen2.5-3b", request_rate=4.0, burstiness=1.0,
        goodput=scored_slo(slo).per_request(),
    )  # fmt: skip
    question = Question(
        config=config, slo=slo, candidates=tuple(candidates), requests=80, seeds=(0, 1, 2, 3),
        most_draws=16, effort=4800,
    )  # fmt: skip
    advice = advise(question, jobs=1)
    grid = sorted(
        (score_of(config, c, slo, range(50, 54)) for c in candidates), key=lambda one: -one.points
    )
    advised = next(one for one in grid if one.candidate == advice.final[0].candidate)
    if lead(grid[0], grid[1], 80).sure or not advice.tied:
        assert advised is grid[0], (advice, grid[:3])
    else:
        # Nobody leads for sure: the best of these draws is among those that it calls a tie.
        tie = [one.candidate for one in advice.final[: advice.tied + 1]]
        assert grid[0].candidate in tie, (advice, grid[:3])
        assert not lead(grid[0], advised, 80).sure


@pytest.mark.slow
def test_auto_is_called_by_the_name_of_the_gpu(
    call: Call, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate is of one GPU; ``auto`` is another on the next machine."""
    monkeypatch.setattr("nexusbench.cli._slo_asked.resolve_device", lambda name: "sim:h100")
    flags = ("--model", "qwen2.5-3b", "--jobs", "1", "--seeds", 1, "--goodput", "ttft:400")
    arguments = ("capacity", trace, *flags, "--scheduler", "vllm", "--precision", 50)
    assert "sim:h100, qwen2.5-3b" in call(*arguments).out
    (found,) = json.loads(call(*arguments, "--json").out)["capacities"]
    assert found["config"]["device"] == "sim:h100"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["capacity", *slow("advise")])
def test_tables_keep_to_the_terminal(
    call: Call, trace: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    flags = [*WHERE, "--goodput", "ttft:400", "tbt:p99:120", "--seeds", 1, "--limit", 10]
    flags += ["--chunks", "512"] if command == "advise" else ["--precision", 50]
    done = call(command, trace, *flags, "--scheduler", "nexus,vllm:order=spf")
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if str(trace) not in line]
    assert max(map(len, lines)) <= 80
