"""Capacities and advice over the ranges of contested constants, with made-up searches and runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from nexusbench.cli._capacity_screen import held_words
from nexusbench.cli.main import main
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import NexusbenchError
from nexusbench.core.specs import SimConstants
from nexusbench.experiments import advise_ranges, capacity_ranges
from nexusbench.experiments.advise import Advice, AdviceOutcome, AdviceRun, Question
from nexusbench.experiments.advise_ranges import advice_over_ranges, rivals, runs_over_ranges
from nexusbench.experiments.candidates import Candidate
from nexusbench.experiments.capacity import Capacity, CapacitySearch, capacity_of
from nexusbench.experiments.capacity_ranges import (
    CapacitiesOverRanges,
    capacities_over_ranges,
    searches,
)
from nexusbench.experiments.leads import DrawScore, Rated
from nexusbench.experiments.neutral import gpu_file
from nexusbench.experiments.ranges import ranged_gpu
from nexusbench.experiments.rate_search import FoundRate, SearchTask
from nexusbench.metrics.slo import parse_slo
from nexusbench.physics.gpus import load_gpu

SLO = parse_slo(["ttft:p99<2000"])
SEEDS = (0, 1, 2)
Rate = Callable[[str, SimConstants], float]


@pytest.fixture
def device(tmp_path: Path) -> str:
    """``turn_taking`` is 0.5 in use, of [0.25, 1]."""
    gpu = load_gpu("l20")
    gpu = msgspec.structs.replace(
        gpu, sim=msgspec.structs.replace(gpu.sim, turn_taking=0.5),
        ranges={"turn_taking": (0.25, 1.0)},
    )  # fmt: skip
    (tmp_path / "mine.toml").write_text(gpu_file(gpu))
    return f"sim:{tmp_path / 'mine.toml'}"


def constants(config: RunConfig) -> SimConstants:
    return load_gpu(config.device.removeprefix("sim:")).sim


def rate_at(config: RunConfig, rate: Rate, seed: int) -> FoundRate:
    """Give or take 1 % by draw of the arrivals."""
    kept = rate(config.scheduler, constants(config)) * (0.99 + 0.01 * seed)
    return FoundRate(
        seed=seed, step=0, kept=kept, broken_at=kept * 1.02, breaks=(), little=None, monotone=True,
        looks=(), simulated=True,
    )  # fmt: skip


def ranged(
    device: str, folder: Path, rate: Rate, monkeypatch: pytest.MonkeyPatch, count: int = 4
) -> tuple[list[Capacity], CapacitiesOverRanges, list[SearchTask]]:
    configs = tuple(
        RunConfig(trace="t", device=device, scheduler=name) for name in ("nexus", "vllm")
    )
    search = CapacitySearch(configs=configs, slo=SLO, seeds=SEEDS, cache=folder)
    found = [
        capacity_of(position, [rate_at(config, rate, seed) for seed in SEEDS])
        for position, config in enumerate(configs)
    ]
    asked = []

    def searched(task: SearchTask) -> FoundRate:
        asked.append(task)
        return rate_at(task.config, rate, task.config.seed)

    monkeypatch.setattr(capacity_ranges, "search_rate", searched)
    made = capacities_over_ranges(search, found, count, 1, lambda position, one: None)
    assert len(asked) == searches(search, count) == 2 * (2 * 3 + count)
    return found, made, asked


def test_a_capacity_and_a_lead_that_hold(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine, _), made, asked = ranged(
        device, tmp_path, lambda name, sim: 10.0 if name == "nexus" else 5.0, monkeypatch
    )
    assert [over.verdict for over in made.policies] == ["holds", "holds"]
    # A draw counts by what the constants alone change.
    assert made.policies[0].least == made.policies[0].most == pytest.approx(mine.rate)
    assert made.lead is not None
    assert (made.lead.best, made.lead.other, made.lead.over.verdict) == (0, 1, "holds")
    # Paired with the arrivals; one batch at a time is searched as it was.
    assert {task.config.seed for task in asked} == set(SEEDS)
    assert {task.config.device for task in asked if task.config.scheduler == "vllm"} == {device}
    assert device not in {t.config.device for t in asked if t.config.scheduler == "nexus"}


def test_a_capacity_that_is_one_in_use_alone_and_a_lead_that_turns(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rate(name: str, sim: SimConstants) -> float:
        return 15.0 - 10 * sim.turn_taking if name == "nexus" else 7.5

    (mine, other), made, _ = ranged(device, tmp_path, rate, monkeypatch)
    nexus, vllm = made.policies
    assert (nexus.verdict, vllm.verdict) == ("fails", "holds")
    assert (nexus.low, nexus.high) == pytest.approx((5.0, 12.5))
    below, above = nexus.hangs_on  # at both ends it leaves its interval
    assert mine.high is not None
    assert below.turns_at == pytest.approx(0.5 - (mine.high - mine.rate) / 10)
    assert above.turns_at == pytest.approx(0.5 + (mine.rate - mine.low) / 10)
    assert made.lead is not None
    (turn,) = made.lead.over.hangs_on
    assert (turn.constant, turn.turns_at) == ("turn_taking", pytest.approx(0.75))
    assert mine.rate - other.rate == pytest.approx(2.5)


def test_a_lead_that_is_not_sure_is_open(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, made, _ = ranged(
        device, tmp_path, lambda name, sim: 10.0 if name == "nexus" else 9.95, monkeypatch
    )
    assert made.lead is not None
    assert made.lead.over.verdict == "open"  # within a step of the search
    assert held_words(made.lead.over, "it is not sure in use") == "open, it is not sure in use"
    assert held_words(made.policies[0], "") == "holds over the range"


# Advice.


def rated(name: str, *points: float) -> Rated:
    scores = tuple(DrawScore(attained=value, strain=0.0, kept=True) for value in points)
    return Rated(Candidate(name, "whole", 512), scores, 1)


def advised(*final: Rated) -> Advice:
    return Advice(
        final=final, tied=0, alike=False, early=(), margin=None, failed=(), rounds=(),
        simulated=True,
    )  # fmt: skip


def judged(
    device: str, folder: Path, points: Rate, monkeypatch: pytest.MonkeyPatch, *,
    fails: str = "none",
) -> tuple[object, list[AdviceRun]]:  # fmt: skip
    config = RunConfig(trace="t", device=device)
    question = Question(
        config=config, slo=SLO, candidates=(), requests=40_000, seeds=SEEDS, cache=folder
    )
    names = ("nexus", "semi-pd", "bullet")
    here = load_gpu(device.removeprefix("sim:")).sim
    advice = advised(*(rated(name, *[points(name, here)] * 3) for name in names))
    runs = []

    def scored(run: AdviceRun) -> AdviceOutcome:
        runs.append(run)
        if run.config.scheduler == fails:
            return AdviceOutcome(None, "out of memory")
        value = points(run.config.scheduler, constants(run.config))
        noise = 0.01 * (run.config.seed % 3)
        return AdviceOutcome(DrawScore(attained=value + noise, strain=0.0, kept=True))

    monkeypatch.setattr(advise_ranges, "score_run", scored)
    over = advice_over_ranges(question, advice, 4, 1, lambda text, requests: None)
    assert len(runs) == runs_over_ranges(question, advice, 4) == 3 * (2 * 3 + 4)
    return over, runs


def test_advice_that_holds(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over, runs = judged(
        device, tmp_path, lambda name, sim: 90.0 if name == "nexus" else 80.0, monkeypatch
    )
    assert over.verdict == "holds"
    assert (over.low, over.draws) == pytest.approx((10.0, 10.0))
    # The same constants and the same arrivals for every candidate.
    asked = {}
    for run in runs:
        asked.setdefault(run.config.scheduler, []).append((run.config.device, run.config.seed))
    assert asked["nexus"] == asked["semi-pd"] == asked["bullet"]


def test_advice_that_another_beats_at_an_end(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def points(name: str, sim: SimConstants) -> float:
        return 80.0 + 40 * (sim.turn_taking - 0.5) if name == "bullet" else 90.0

    over, _ = judged(device, tmp_path, points, monkeypatch)
    (turn,) = over.hangs_on
    # Level in use with semi-pd, beaten by bullet from 0.75 on; 10 points behind at 1.
    assert (turn.constant, turn.end, turn.points) == ("turn_taking", 1.0, pytest.approx(-10.0))


def test_a_trifle_beats_no_advice(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, _ = judged(
        device, tmp_path, lambda name, sim: 90.0 if name == "nexus" else 90.05, monkeypatch
    )
    assert over.verdict == "holds"


def test_a_run_that_fails_is_named(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NexusbenchError, match=r"bullet.*at turn_taking = 0.25: out of memory"):
        judged(device, tmp_path, lambda name, sim: 90.0, monkeypatch, fails="bullet")


def test_rivals_are_the_runner_up_and_the_best_of_every_other_scheduler() -> None:
    a, b, c, d = rated("nexus", 3), rated("nexus", 2), rated("vllm", 1), rated("vllm", 0)
    assert rivals(advised(a, b, c, d)) == (b, c)
    assert rivals(advised(a)) == ()


@pytest.mark.parametrize("command", ["capacity", "advise"])
def test_mistakes_are_told_before_anything_runs(
    command: str, device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.jsonl").write_text(
        "".join(f'{{"timestamp": {i}, "input_length": 9, "output_length": 2}}\n' for i in range(9))
    )
    (tmp_path / "bare.toml").write_text(
        gpu_file(msgspec.structs.replace(ranged_gpu(device), ranges={}))
    )
    arguments = [command, str(tmp_path / "t.jsonl"), "--slo", "llama3.1-8b", "--device"]
    assert main([*arguments, device, "--over-ranges", "1"]) == 2
    assert "one draw says nothing of a range" in capsys.readouterr().err
    assert main([*arguments, f"sim:{tmp_path}/bare.toml", "--over-ranges", "2"]) == 2
    assert "has no [ranges]" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["capacity", "advise"])
def test_commands(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    (tmp_path / "t.jsonl").write_text(
        "".join(
            f'{{"timestamp": {60 * i}, "input_length": {300 + 97 * i % 900}, '
            '"output_length": 20}\n' for i in range(40)
        )
    )  # fmt: skip
    arguments = [
        command, str(tmp_path / "t.jsonl"), "--goodput", "ttft:200,tbt:40", "--seeds", "2",
        "--device", device, "--model", "qwen2.5-3b", "--scheduler", "nexus,vllm", "-j", "1",
        "--cache", str(tmp_path / "probes"), "--no-progress",
    ]  # fmt: skip
    arguments += ["--rate", "20", "--chunks", "512"] * (command == "advise")
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["over_ranges"] is None
    arguments += ["--over-ranges", "2"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["over_ranges"]
    verdicts = ("holds", "hangs", "fails", "open")
    if command == "capacity":
        assert len(found["draws"]) == len(found["ends"]) == 2
        assert all(one["verdict"] in verdicts for one in found["capacities"])
        assert found["lead"]["verdict"] in verdicts
    else:
        assert found["verdict"] in verdicts
    assert main(arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ("at the ends of the ranges" if command == "capacity" else "Over the ranges") in shown
