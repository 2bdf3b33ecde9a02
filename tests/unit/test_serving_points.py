"""Measured closed-loop points: read, refused, replayed, scored, kept."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nexusbench.cli.validate import app
from nexusbench.core.errors import InputError, UsageError
from nexusbench.experiments.fidelity import serving_peer, serving_runs
from nexusbench.experiments.fidelity.deployment import Deployment, Refused, deployment_of
from nexusbench.experiments.fidelity.serving_configs import (
    ServingPlan,
    config_of,
    engine_of,
    model_of,
)
from nexusbench.experiments.fidelity.serving_contradictions import contradicted
from nexusbench.experiments.fidelity.serving_peer import PeerEstimate
from nexusbench.experiments.fidelity.serving_runs import ServingResult, ServingRun, replay_points
from nexusbench.experiments.fidelity.serving_scores import validate_points
from nexusbench.experiments.fidelity.serving_table import COLUMNS, chosen, read_points
from nexusbench.serving.runner import run

ROW: dict[str, Any] = {
    "backend": "vllm", "backend_version": "0.19.0", "model_path": "Qwen/Qwen3-4B",
    "system": "h100_sxm", "precision": "", "mode": "agg", "isl": 200, "osl": 8,
    "gemm_quant_mode": "", "moe_quant_mode": "", "batch_size": 2, "tp_size": 1, "pp_size": 1,
    "attention_dp_size": "", "moe_tp_size": 0, "moe_ep_size": 0, "silicon_ttft_ms": 20.0,
    "silicon_tpot_ms": 5.0,
}  # fmt: skip


def table(path: Path, *rows: dict[str, Any]) -> Path:
    lines = [",".join(COLUMNS)]
    lines += [",".join(str((ROW | row)[key]) for key in COLUMNS) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def points(tmp_path: Path, *rows: dict[str, Any]) -> Any:
    return read_points(table(tmp_path / "points.csv", *rows))


def test_a_point_is_read_and_what_a_table_leaves_open_is_1(tmp_path: Path) -> None:
    (point,) = points(tmp_path, {"tp_size": 4, "attention_dp_size": 0})
    assert (point.line, point.model, point.name) == (2, "Qwen/Qwen3-4B", "Qwen3-4B")
    assert (point.users, point.tp, point.dp, point.moe_ep) == (2, 4, 1, 1)
    assert (point.ttft_ms, point.tpot_ms) == (20.0, 5.0)


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("isl", 0, "whole number from 1"), ("osl", "8.5", "whole number"),
        ("batch_size", "many", "not a finite number"), ("tp_size", "", "is missing"),
        ("silicon_ttft_ms", 0, "no time in ms above 0"), ("silicon_tpot_ms", "nan", "finite"),
        ("silicon_tpot_ms", -5, "no time"), ("attention_dp_size", 5000, "from 0 to 4,096"),
        ("system", " ", "is empty"), ("model_path", "x" * 300, "at most 200"),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_line_and_column(
    column: str, value: object, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=problem) as fault:
        points(tmp_path, {}, {column: value})
    assert (fault.value.line, fault.value.field) == (3, column)


def test_a_table_without_a_column_or_without_points_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text(",".join(COLUMNS[1:]) + "\n")
    with pytest.raises(InputError, match="is missing"):
        read_points(path)
    with pytest.raises(InputError, match="holds no points"):
        points(tmp_path)


def test_a_line_that_ends_early_and_a_column_twice_are_refused(tmp_path: Path) -> None:
    order = [key for key in COLUMNS if key != "moe_ep_size"]
    cells = ",".join(str(ROW[key]) for key in order)
    path = tmp_path / "points.csv"
    path.write_text(",".join([*order, "moe_ep_size"]) + f"\n{cells}\n")
    with pytest.raises(InputError, match="field 'moe_ep_size': is missing"):
        read_points(path)
    path.write_text(",".join([*COLUMNS, "tp_size"]) + f"\n{cells},1,8\n")
    with pytest.raises(InputError, match="field 'tp_size': stands in the header twice"):
        read_points(path)


def test_points_are_chosen_by_model_and_column(tmp_path: Path) -> None:
    every = points(tmp_path, {}, {"tp_size": 2}, {"model_path": "a/B", "osl": 9})
    assert [p.line for p in chosen(every, "qwen3-4b", [])] == [2, 3]
    assert [p.line for p in chosen(every, None, ["tp_size=1", "osl=9"])] == [4]
    with pytest.raises(UsageError, match="no point is of it"):
        chosen(every, "qwen3-5b", [])
    with pytest.raises(UsageError, match="--only takes COLUMN=VALUE"):
        chosen(every, None, ["speed=1"])
    with pytest.raises(UsageError, match="no point is left"):
        chosen(every, None, ["tp_size=8"])


@pytest.mark.parametrize(
    ("degrees", "spread"),
    [
        ((8, 1, 8, 1), (8, 1, False, 2)),
        ((4, 1, 1, 4), (4, 1, True, 2)),
        ((1, 4, 4, 1), (1, 4, False, 8)),
        ((1, 4, 1, 4), (1, 4, True, 8)),
        ((2, 4, 1, 8), (2, 4, True, 8)),
        # Multiplied once too often: N GPUs each.
        ((64, 1, 8, 8), (8, 1, True, 2)),
        ((4, 1, 2, 2), (2, 1, True, 2)),
        ((1, 16, 4, 4), (1, 4, True, 32)),
        ((4, 4, 1, 16), (1, 4, True, 8)),
    ],
)
def test_degrees_of_a_table(
    degrees: tuple[int, ...], spread: tuple[int, int, bool, int], tmp_path: Path
) -> None:
    columns = ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    (point,) = points(tmp_path, dict(zip(columns, degrees, strict=True)))
    assert deployment_of(point) == Deployment(*spread)
    staged = dict(zip(columns, degrees, strict=True)) | {"pp_size": 3}
    assert deployment_of(points(tmp_path, staged)[0]) == Deployment(*spread, 3)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"system": "z9_sxm"}, "no simulated GPU"),
        ({"backend": "abacus"}, "no engine of it"),
        ({"model_path": "a/B-7B"}, "no description of it"),
        ({"precision": "fp6"}, "Qwen3-4B"),
        ({"moe_ep_size": 2}, "experts dealt out to 2 GPUs and divided by 1, on 1"),
        ({"tp_size": 2, "moe_ep_size": 2}, "qwen3-4b has no experts"),
        ({"mode": "disagg"}, "only aggregated"),
        ({"osl": 1}, "no time per output token"),
        ({"tp_size": 7}, "can be split"),
        ({"isl": 50_000}, "context"),
        ({"batch_size": 50_000, "osl": 2000}, "more than 100,000,000 tokens"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_its_reason(
    row: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (point,) = points(tmp_path, row)
    with pytest.raises(Refused, match=reason):
        config_of(point, ServingPlan())


@pytest.mark.parametrize(
    ("backend", "version", "engine"),
    [
        ("vllm", "0.19.0", "vllm-0.19"), ("vllm", "0.11.2", "vllm-0.12"),
        ("vllm", "0.14.0", "vllm-0.19"), ("vllm", "0.13.0", "vllm-0.12"),
        ("vllm", "0.18.0", "vllm-0.19"), ("vllm", "", "vllm-0.19"),
        ("vllm", "nightly-5b8c", "vllm-0.19"), ("sglang", "0.5.9", "sglang-0.5"),
        ("trtllm", "1.2.0rc2", "trtllm-1.2"), ("trtllm", "1.0.0rc3", "trtllm-1.0"),
        # Asynchronous from 0.14 on, though 0.12 is nearer.
        ("vllm", "0.15.1", "vllm-0.19"),
    ],
)  # fmt: skip
def test_the_engine_that_stands_for_a_version(
    backend: str, version: str, engine: str, tmp_path: Path
) -> None:
    (point,) = points(tmp_path, {"backend": backend, "backend_version": version})
    assert engine_of(point) == engine


def test_a_point_is_a_run_with_its_engine_and_rules(tmp_path: Path) -> None:
    (point,) = points(tmp_path, {"backend": "sglang", "tp_size": 2})
    config = config_of(point, ServingPlan())
    assert (config.device, config.model, config.engine) == ("sim:h100", "qwen3-4b", "sglang-0.5")
    assert (config.scheduler, config.max_num_batched_tokens) == ("sglang", None)
    assert (config.concurrency, config.tensor_parallel_size) == (2, 2)
    asked = config_of(point, ServingPlan(engine="ideal"))
    assert (asked.engine, asked.scheduler) == ("ideal", "sglang")
    (point,) = points(tmp_path, {})
    assert config_of(point, ServingPlan()).max_num_batched_tokens == 1702
    assert config_of(point, ServingPlan(budget=512)).max_num_batched_tokens == 512


def test_a_model_in_another_precision_is_one_of_the_same_layers(tmp_path: Path) -> None:
    (point,) = points(
        tmp_path,
        {"model_path": "deepseek-ai/DeepSeek-R1", "precision": "fp4", "system": "b200_sxm"},
    )
    assert model_of(point, None) == ("deepseek-v3.1-nvfp4", {})
    (point,) = points(tmp_path, {"model_path": "MiniMaxAI/MiniMax-M2.5", "precision": "int4"})
    with pytest.raises(Refused, match=r"MiniMax-M2\.5 in int4"):
        model_of(point, None)


def test_lengths_and_budget_are_those_of_the_runner_that_measured(tmp_path: Path) -> None:
    own, inferencex = points(tmp_path, {}, {"attention_dp_size": 1})
    for point, ratio, budget in ((own, 1.0, 1702), (inferencex, 0.8, 8192)):
        assert ServingPlan().range_of(point) == ratio
        assert ServingPlan(range_ratio=0.5).range_of(point) == 0.5
        assert config_of(point, ServingPlan()).max_num_batched_tokens == budget


def test_servers_of_inferencex_start_as_its_scripts_do(tmp_path: Path) -> None:
    inferencex = {"attention_dp_size": 1}
    for backend, row, budget in (
        ("trtllm", {}, 8192), ("trtllm", {"isl": 9000}, 9002), ("sglang", {}, 16_384),
        ("vllm", {"isl": 9000}, 8192),
    ):  # fmt: skip
        (point,) = points(tmp_path, {"backend": backend} | row | inferencex)
        assert ServingPlan().budget_of(point) == budget
    (point,) = points(tmp_path, {"backend": "trtllm"})
    assert ServingPlan().budget_of(point) == 1702
    # Blackwell: fewer looks for requests, and the keys and values of a quantised model in fp8.
    for system, users, rules in (
        ("b200_sxm", 15, "sglang:receive_interval=10"),
        ("b200_sxm", 16, "sglang:receive_interval=30"),
        ("h200_sxm", 16, "sglang"),
    ):
        row = {"backend": "sglang", "batch_size": users, "system": system}
        (point,) = points(tmp_path, row | inferencex)
        assert config_of(point, ServingPlan()).scheduler == rules
    for system, precision, other, kept in (
        ("b300_sxm", "fp8", inferencex, "fp8"),
        ("h200_sxm", "fp8", inferencex, None),
        ("b300_sxm", "", inferencex, None),
        ("b300_sxm", "fp8", {}, None),
    ):
        (point,) = points(tmp_path, {"system": system, "precision": precision} | other)
        assert config_of(point, ServingPlan()).kv_cache_dtype == kept


def test_a_description_is_found_by_name_and_precision(tmp_path: Path) -> None:
    own = json.loads((Path(serving_runs.__file__).parents[2] / "data/models/qwen3-4b.json")
                     .read_text())  # fmt: skip
    folder = tmp_path / "configs" / "Qwen--Qwen3-4B-Base"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(own))
    (point,) = points(tmp_path, {"model_path": "Qwen/Qwen3-4B-Base"})
    found, _ = model_of(point, tmp_path / "configs")
    assert found == str(folder / "config.json")
    (point,) = points(tmp_path, {"model_path": "meta-llama/Llama-3.1-8B-Instruct"})
    assert model_of(point, tmp_path / "configs") == ("llama-3.1-8b", {})
    with pytest.raises(UsageError, match="holds no OWNER--NAME"):
        model_of(point, folder)


def test_of_several_descriptions_in_a_precision_the_one_with_the_tables_scales(
    tmp_path: Path,
) -> None:
    own = json.loads((Path(serving_runs.__file__).parents[2] / "data/models/qwen3-4b.json")
                     .read_text())  # fmt: skip
    for name, group in (("a--Qwen3-4B-INT4", 128), ("b--Qwen3-4B-INT4", 64)):
        folder = tmp_path / "configs" / name
        folder.mkdir(parents=True)
        quantised = {"quant_method": "awq", "bits": 4, "group_size": group}
        (folder / "config.json").write_text(json.dumps(own | {"quantization_config": quantised}))
    for kind, name in (("int4_g128", "a--Qwen3-4B-INT4"), ("int4_g64", "b--Qwen3-4B-INT4")):
        (point,) = points(tmp_path, {"precision": "int4", "gemm_quant_mode": kind})
        found, _ = model_of(point, tmp_path / "configs")
        assert Path(found).parent.name == name


def test_the_same_point_runs_once_and_a_kept_one_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counted(config: Any) -> Any:
        asked.append(config)
        return run(config)

    monkeypatch.setattr(serving_runs, "run", counted)
    some = points(tmp_path, {}, {"silicon_tpot_ms": 6.0}, {"osl": 9}, {"system": "z9"})
    plan = ServingPlan(rounds=3)
    first = replay_points(some, plan, tmp_path / "kept", jobs=1)
    assert len(asked) == 2
    assert [bool(result.refused) for result in first] == [False, False, False, True]
    again = replay_points(some, plan, tmp_path / "kept", jobs=1)
    assert len(asked) == 2
    assert [result.run for result in again] == [result.run for result in first]
    replay_points(some, plan, tmp_path / "kept", jobs=1, fresh=True)
    assert len(asked) == 4
    replay_points(some, ServingPlan(rounds=2), tmp_path / "kept", jobs=1)
    assert len(asked) == 6


def test_lines_that_a_table_contradicts_are_told_by_their_measurements_alone(
    tmp_path: Path,
) -> None:
    def lines(*rows: tuple[int, float]) -> list[int]:
        made = [{"batch_size": users, "silicon_tpot_ms": tpot} for users, tpot in rows]
        return sorted(contradicted(points(tmp_path, *made)))

    # Equal settings, whatever the order; and more users that get tokens faster.
    assert lines((4, 5.0), (4, 6.6)) == lines((4, 6.6), (4, 5.0)) == [2, 3]
    assert lines((4, 6.6), (8, 5.0)) == lines((8, 5.0), (4, 6.6)) == [2, 3]
    # As lines scatter, and as more users are slower.
    assert lines((4, 5.0), (4, 6.4)) == lines((4, 5.0), (8, 50.0)) == []
    # A line between the two is fine with both; one beyond is not with the slow one.
    assert lines((1, 5.0), (1, 6.6), (2, 5.8)) == [2, 3]
    assert lines((1, 9.0), (2, 9.5), (4, 6.0), (8, 20.0)) == [2, 3, 4]
    # What differs in a setting, or in TTFT alone, is no contradiction.
    for other in (
        {"isl": 201},
        {"tp_size": 2},
        {"backend_version": "0.18.0"},
        {"precision": "fp8"},
    ):
        assert not contradicted(points(tmp_path, {}, {"silicon_tpot_ms": 50.0} | other))
    assert not contradicted(points(tmp_path, {}, {"silicon_ttft_ms": 900.0}))


def test_contradicted_lines_are_refused_with_the_reason_and_not_run(tmp_path: Path) -> None:
    some = points(tmp_path, {}, {"silicon_tpot_ms": 50.0}, {"osl": 9})
    plan = ServingPlan(rounds=2)
    results = replay_points(some, plan, tmp_path, jobs=1, refused=contradicted(some))
    assert [result.run is None for result in results] == [True, True, False]
    made = validate_points(results, [None] * 3, steady=False)
    ((reason, count),) = made.refused.items()
    assert count == 2
    assert "contradict each other" in reason
    assert made.scores[-1].points == 1


def test_means_are_over_all_rounds_and_over_the_middle(tmp_path: Path) -> None:
    (point,) = points(tmp_path, {"batch_size": 4, "isl": 2000})
    plan = ServingPlan(rounds=4, engine="ideal")
    (result,) = replay_points([point], plan, tmp_path / "kept", jobs=1)
    assert result.run is not None
    assert result.config is not None
    events = run(result.config).events
    ttft = (events.first_token - events.arrival) / 1e6
    assert result.run.ttft_ms == pytest.approx(ttft.mean())
    assert result.run.steady_ttft_ms == pytest.approx(ttft[4:-4].mean())
    assert result.run.ttft_ms > result.run.steady_ttft_ms
    tpot = (events.last_token - events.first_token) / 1e6 / 7
    assert result.run.tpot_ms == pytest.approx(tpot.mean())


def test_lengths_are_drawn_from_a_range_by_seed(tmp_path: Path) -> None:
    (point,) = points(tmp_path, {"batch_size": 50})
    plan = ServingPlan(range_ratio=0.5)
    path = serving_runs.trace_of(point, plan, tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 500
    assert {100, 200} < {row["input_length"] for row in rows} <= set(range(100, 201))
    assert {row["output_length"] for row in rows} == {4, 5, 6, 7, 8}
    assert serving_runs.trace_of(point, plan, tmp_path) == path


def result_of(point: Any, ttft: float, tpot: float) -> ServingResult:
    config = config_of(point, ServingPlan())
    made = ServingRun(ttft_ms=ttft, tpot_ms=tpot, steady_ttft_ms=0.5 * ttft, steady_tpot_ms=tpot)
    return ServingResult(point=point, config=config, run=made)


def test_scores_by_group_and_of_all(tmp_path: Path) -> None:
    one, two, three = points(tmp_path, {}, {"isl": 300}, {"tp_size": 2})
    results = [
        result_of(one, 22.0, 5.5),
        result_of(two, 18.0, 4.0),
        result_of(three, 20.0, 5.0),
        ServingResult(point=one, refused="why"),
        ServingResult(point=two, refused="why"),
    ]
    peers = [PeerEstimate(20.0, 5.6), PeerEstimate(40.0, 9.0), None, None, None]
    made = validate_points(results, peers, steady=False)
    assert [(s.model, s.tp, s.points) for s in made.scores] == [
        ("Qwen3-4B", "1", 2), ("Qwen3-4B", "2", 1), ("all", "all", 3),
    ]  # fmt: skip
    first, _, whole = made.scores
    assert (first.tpot_mape, first.tpot_bias) == (pytest.approx(15.0), pytest.approx(-5.0))
    assert first.ttft_mape == pytest.approx(10.0)
    assert (first.compared, first.nearer_than_aiconfigurator) == (2, 100.0)
    assert first.ttft_nearer_than_aiconfigurator == 50.0
    assert first.aiconfigurator_tpot_mape == pytest.approx(46.0)
    assert whole.tpot_mape == pytest.approx(10.0)
    assert made.scores[1].nearer_than_aiconfigurator is None
    assert made.refused == {"why": 2}
    assert made.reached["Qwen3-4B tpot"] == pytest.approx(10.0)
    steady = validate_points(results, peers, steady=True)
    assert steady.scores[0].ttft_bias == pytest.approx(-50.0)


def serving(*words: object) -> Any:
    return CliRunner().invoke(app, ["serving", *map(str, words), "--jobs", "1"])


def test_the_command_scores_refuses_and_holds_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_peer, "PACKAGE", "no_such_package")  # takes seconds to ask
    path = table(tmp_path / "points.csv", {}, {"system": "z9_sxm"})
    kept = ("--cache", tmp_path / "kept", "--rounds", "2")
    made = serving(path, *kept, "--json")
    assert made.exit_code == 0, made.output
    document = json.loads(made.stdout)
    assert document["simulated"] is True
    assert document["refused"] == {"system z9_sxm: there is no simulated GPU of it": 1}
    row, whole = document["rows"]
    assert {
        "model", "system", "backend", "precision", "tp", "points", "ttft_mape", "tpot_mape",
        "tpot_bias", "nearer_than_aiconfigurator",
    } <= set(row)  # fmt: skip
    assert (row["model"], row["backend"], row["precision"], row["points"]) == (
        "Qwen3-4B", "vllm", "bf16", 1,
    )  # fmt: skip
    assert whole["model"] == "all"
    every = serving(path, *kept, "--every", 2, "--json")
    assert json.loads(every.stdout)["points"] == 1
    shown = serving(path, *kept, "--no-progress")
    assert "simulated: 1 of 2 points" in shown.stdout
    assert "1 point refused" in shown.stdout
    assert serving(path, *kept, "--bound", "tpot:0.0001").exit_code == 3
    assert serving(path, *kept, "--bound", "tpot:10000").exit_code == 0
    unknown = serving(path, *kept, "--bound", "speed:1")
    assert isinstance(unknown.exception, UsageError)
    assert isinstance(serving(path, *kept, "--engine", "vlm").exception, InputError)


def test_the_whole_table_is_asked_for_contradictions_whatever_is_chosen_of_it(
    tmp_path: Path,
) -> None:
    path = table(tmp_path / "points.csv", {}, {"silicon_tpot_ms": 50.0, "batch_size": 1})
    for chosen_by in (("--every", 2), ("--only", "batch_size=2"), ()):
        made = serving(path, "--cache", tmp_path / "kept", "--json", *chosen_by)
        assert made.exit_code == 0, made.output
        document = json.loads(made.stdout)
        assert document["rows"] == []
        ((reason, count),) = document["refused"].items()
        assert (count, "over 1.3 times" in reason) == (document["points"], True)


def test_without_a_point_that_can_be_simulated_nothing_is_scored(tmp_path: Path) -> None:
    path = table(tmp_path / "points.csv", {"system": "z9_sxm"})
    made = serving(path, "--cache", tmp_path / "kept", "--json")
    assert made.exit_code == 0
    assert json.loads(made.stdout)["rows"] == []


def test_a_peer_is_asked_for_nothing_that_it_would_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (point,) = points(tmp_path, {"model_path": "meta-llama/Llama-3.1-8B-Instruct"})
    name = serving_peer._description(point.model, "llama-3.1-8b", [], tmp_path)
    assert json.loads((Path(name) / "config.json").read_text())["hidden_size"] == 4096
    assert serving_peer._description(point.model, "x", [point.model], tmp_path) == point.model
    monkeypatch.setattr(serving_peer, "PACKAGE", "no_such_package")
    assert serving_peer.estimates([result_of(point, 1.0, 1.0)]) == [None]


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("aiconfigurator_core") is None, reason="aiconfigurator_core is not installed"
)
def test_a_peer_that_is_installed_is_asked(tmp_path: Path) -> None:
    some = points(tmp_path, {"batch_size": 8}, {"batch_size": 8, "tp_size": 2}, {"backend": "x"})
    results = [result_of(point, 1.0, 1.0) for point in some[:2]]
    results.append(ServingResult(point=some[2], config=results[0].config, run=results[0].run))
    one, two, none = serving_peer.estimates(results)
    assert one is not None
    assert two is not None
    assert 1.0 < two.tpot_ms < one.tpot_ms < 50.0
    assert none is None


DATA = Path(os.environ.get("NEXUSBENCH_DATA", ""))
TABLE = DATA / "serving" / "measured-closed-loop.csv"


@pytest.mark.slow
@pytest.mark.skipif(not TABLE.is_file(), reason="NEXUSBENCH_DATA has no closed-loop points")
def test_the_real_table_is_read_and_every_point_run_or_refused(tmp_path: Path) -> None:
    every = read_points(TABLE)
    assert len(every) > 1800
    some = [p for p in every if p.osl <= 128 and p.users <= 16]
    plan = ServingPlan(configs=DATA / "configs", rounds=3)
    results = replay_points(some, plan, tmp_path, jobs=2)
    assert all((result.run is None) != (not result.refused) for result in results)
    made = validate_points(results, serving_peer.estimates(results), steady=False)
    assert made.scores[-1].points >= 30
    assert made.scores[-1].tpot_mape < 40
