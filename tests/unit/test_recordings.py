"""Recorded runs: reading, refusing, importing from vllm bench serve, replaying."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from nexusbench.cli.validate import app
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InputError, UsageError
from nexusbench.experiments.fidelity.bench_serve import import_bench_serve
from nexusbench.experiments.fidelity.errors import broken_bounds, errors, parse_bounds
from nexusbench.experiments.fidelity.nelder_mead import nelder_mead
from nexusbench.experiments.fidelity.recording import read_recording
from nexusbench.experiments.fidelity.replay import replay

DETAIL: dict[str, Any] = {
    "date": "20260101-000000", "model_id": "meta-llama/Llama-3.1-8B", "duration": 3.0,
    "input_lens": [100, 50, 70], "output_lens": [3, 2, 0], "ttfts": [0.1, 0.2, 0.0],
    "itls": [[0.02, 0.03], [0.04], []], "start_times": [10.5, 10.0, 10.7],
    "errors": ["", "", "timed out"],
}  # fmt: skip


def write(folder: Path, detail: dict[str, Any]) -> Path:
    path = folder / "bench.json"
    path.write_text(json.dumps(detail))
    return path


def test_bench_serve_becomes_a_recording(tmp_path: Path) -> None:
    notes = import_bench_serve(write(tmp_path, DETAIL), tmp_path / "run")
    assert "2 requests; 1 failed" in notes[0]
    recording = read_recording(tmp_path / "run")
    first, second = recording.requests
    assert (first.prompt_tokens, first.output_tokens, first.arrival) == (50, 2, 0.0)
    assert (second.arrival, second.gaps) == (0.5, (0.02, 0.03))
    assert second.first == pytest.approx(10.6)
    assert second.last == pytest.approx(10.65)
    assert second.scheduled is None
    assert recording.series is None
    made = replay(recording, RunConfig(trace="", device="sim:h100"))
    rows = {(row.name, row.statistic): row for row in made.rows}
    assert rows["makespan", "value"].measured == pytest.approx(0.65)
    assert rows["tbt", "mean"].measured == pytest.approx(30.0)
    assert rows["scheduled_to_first_token", "mean"].measured is None
    assert rows["ttft", "mean"].measured == pytest.approx(150.0)
    assert "preemptions" not in made.reached


def test_an_imported_folder_is_never_overwritten(tmp_path: Path) -> None:
    source = write(tmp_path, DETAIL)
    with pytest.raises(UsageError, match="is not empty"):
        import_bench_serve(source, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"itls": None}, "--save-detailed"),
        ({"start_times": None}, "of a version that saves start_times"),
        ({"ttfts": [0.1]}, "has 1 items, input_lens has 3"),
        ({"ttfts": [0.1, "soon", 0.0]}, "field 'ttfts[1]': not a result: Expected"),
        ({"output_lens": [0, 0, 0]}, "holds no finished request"),
    ],
)
def test_a_bad_result_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        import_bench_serve(write(tmp_path, {**DETAIL, **change}), tmp_path / "run")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("requests.jsonl", '"input_toks": 100', '"input_toks": "x"', ":1: field 'input_toks'"),
        ("requests.jsonl", '"last_token_ts"', '"last"', ":1: field 'last_token_ts': is missing"),
        ("requests.jsonl", '{"request_id"', '"request_id"', ":1: Expected `object`"),
        (
            "meta.json",
            '"block_size": 16',
            '"block_size": "x"',
            "cache.block_size': Expected `int",
        ),
        ("meta.json", "{", "[", "Expected `object`"),
    ],
)
def test_a_broken_recording_is_refused(
    tmp_path: Path, name: str, old: str, new: str, message: str
) -> None:
    import_bench_serve(write(tmp_path, DETAIL), tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError) as error:
        read_recording(tmp_path / "run")
    assert message in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"data_parallel_size": 2, "enable_expert_parallel": True}, ""),
        ({"pipeline_parallel_size": 4}, ""),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype"),
        ({"tensor_parallel_size": 2, "data_parallel_size": 1, "kv_cache_dtype": "auto"}, ""),
        ({"enable_expert_parallel": True}, ""),
    ],
)
def test_a_recording_of_what_cannot_be_simulated_is_refused(
    tmp_path: Path, arguments: dict[str, Any], field: str
) -> None:
    import_bench_serve(write(tmp_path, DETAIL), tmp_path / "run")
    meta = tmp_path / "run" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"engine_kwargs": arguments}))
    if not field:
        resolved = read_recording(tmp_path / "run").resolved
        for name in ("data_parallel_size", "pipeline_parallel_size", "tensor_parallel_size"):
            assert getattr(resolved, name) == arguments.get(name, 1)
        # On one GPU it changes nothing.
        assert resolved.enable_expert_parallel == (resolved.data_parallel_size > 1)
        return
    with pytest.raises(InputError, match=f"meta.json: field 'engine_kwargs.{field}': was "):
        read_recording(tmp_path / "run")


def with_meta(tmp_path: Path, changes: dict[str, Any]) -> Path:
    """An imported recording whose ``meta.json`` says more."""
    import_bench_serve(write(tmp_path, DETAIL), tmp_path / "run")
    meta = tmp_path / "run" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | changes))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("model_config", "dtype", "torch.float32", "another data type than 16 bit"),
        ("model_config", "enforce_eager", True, "launched kernel by kernel"),
        ("model_config", "quantization", "fp8", "weights that are quantised"),
        ("model_config", "hf_overrides", {"sliding_window": 8}, "other properties"),
        ("cache_config", "cache_dtype", "fp8_e4m3", "KV cache in another data type"),
        ("cache_config", "kv_offloading_size", 8.0, "KV blocks in host memory"),
        ("scheduler_config", "policy", "priority", "another order"),
        ("scheduler_config", "long_prefill_token_threshold", 512, "limit on the tokens"),
        ("scheduler_config", "max_num_partial_prefills", 2, "several prompts in mid-prefill"),
        ("scheduler_config", "enable_chunked_prefill", False, "computes prompts in chunks"),
        ("scheduler_config", "max_num_scheduled_tokens", 64, "less than max_num_batched_tokens"),
        ("compilation_config", "cudagraph_mode", [0, 0], "launched kernel by kernel"),
        ("parallel_config", "decode_context_parallel_size", 2, "context parallelism"),
        ("parallel_config", "enable_eplb", True, "experts that are moved"),
        ("offload_config", "uva", "U(cpu_offload_gb=4.0)", "weights in host memory"),
        ("", "speculative_config", {"method": "ngram"}, "speculative decoding"),
        ("", "lora_config", {"max_loras": 1}, "LoRA adapters"),
        ("", "kv_transfer_config", {"kv_role": "x"}, "KV transfers between engines"),
    ],
)
def test_a_flag_that_no_simulated_run_has_is_refused(
    tmp_path: Path, section: str, key: str, value: object, words: str
) -> None:
    inner = {key: value, "max_num_batched_tokens": 128} if section == "scheduler_config" else {
        key: value
    }  # fmt: skip
    run = with_meta(tmp_path, {"resolved_config": {section: inner} if section else inner})
    place = f"resolved_config.{section}.{key}".replace("..", ".")
    with pytest.raises(InputError, match=words) as caught:
        read_recording(run)
    assert f"field '{place}': was " in str(caught.value)


def test_flags_without_effect_are_let_be_and_others_said(tmp_path: Path) -> None:
    config = {
        "model_config": {"dtype": "torch.bfloat16", "enforce_eager": False, "seed": 42},
        "cache_config": {"cache_dtype": "auto", "num_gpu_blocks": 77, "block_size": 32},
        "parallel_config": {"tensor_parallel_size": 4, "world_size": 4},
        "attention_config": {"backend": "FLASHINFER"},
        "compilation_config": {"backend": "inductor", "cudagraph_mode": [2, 1]},
        "lora_config": None,
        "optimization_level": 2,
        "performance_mode": "balanced",
    }
    run = with_meta(tmp_path, {"resolved_config": config, "kv_cache": {}, "engine_kwargs": {}})
    known = read_recording(run).resolved
    assert (known.kv_blocks, known.block_size, known.tensor_parallel_size) == (77, 32, 4)
    (note,) = known.notes
    assert note == "resolved_config.attention_config.backend was FLASHINFER, which is not simulated"


def test_eight_differences_are_said_and_more_are_counted(tmp_path: Path) -> None:
    config = {
        "attention_config": {
            "backend": "x", "flash_attn_version": 2, "use_trtllm_attention": True,
        },
        "moe_backend": "x", "all2all_backend": "x", "disable_custom_all_reduce": True,
        "optimization_level": 3, "performance_mode": "x",
    }  # fmt: skip
    for asked, more in (({}, []), ({"moe_backend": "x"}, ["1 more keys are not simulated"])):
        changes = {"resolved_config": config, "kv_cache": {}, "engine_kwargs": asked}
        (folder := tmp_path / str(len(asked))).mkdir()
        notes = read_recording(with_meta(folder, changes)).resolved.notes
        assert all("which is not simulated" in note for note in notes[:8])
        assert list(notes[8:]) == more


@pytest.mark.parametrize("name", ["rtx4090-llama-3.1-8b", "rtxpro6000-qwen3-30b-a3b-dp2"])
def test_published_recordings_are_replayed_whole(name: str) -> None:
    data = os.environ.get("NEXUSBENCH_DATA")
    if not data:
        pytest.skip("NEXUSBENCH_DATA is not set")
    known = read_recording(Path(data) / "vllm-runs" / name).resolved
    assert known.notes == ()
    assert known.data_parallel_size == (2 if name.endswith("dp2") else 1)


def test_a_link_that_leads_nowhere_is_no_missing_file(tmp_path: Path) -> None:
    import_bench_serve(write(tmp_path, DETAIL), tmp_path / "run")
    (tmp_path / "run" / "timeseries.csv").symlink_to("timeseries.csv")
    with pytest.raises(InputError, match=r"timeseries\.csv: cannot be read: Too many levels"):
        read_recording(tmp_path / "run")


def with_series(tmp_path: Path, *lines: str) -> Path:
    """An imported recording with curves."""
    run = with_meta(tmp_path, {})
    header = "t,running,waiting,kv_cache_pct"
    (run / "timeseries.csv").write_text("\n".join([header, *lines]) + "\n")
    return run


@pytest.mark.parametrize(
    ("lines", "field", "problem"),
    [
        (("2,1,0,5", "1,1,0,5"), "t", "is not after the line before"),
        (("1,1,0,5", "1,1,0,5"), "t", "is not after the line before"),
        (("1,1,0,5", "2,-1,0,5"), "running", "is below 0"),
    ],
)
def test_curves_that_cannot_be_are_refused(
    tmp_path: Path, lines: tuple[str, ...], field: str, problem: str
) -> None:
    run = with_series(tmp_path, *lines)
    with pytest.raises(InputError, match=f":3: field '{field}': {problem}"):
        read_recording(run)


@pytest.mark.parametrize("used", [0.0, 5.0])
def test_kv_use_that_was_not_recorded_is_not_scored(tmp_path: Path, used: float) -> None:
    run = with_series(tmp_path, f"1,1,0,{used}", f"2,2,0,{used}")
    made = replay(read_recording(run), RunConfig(trace="", device="sim:h100"))
    assert ("kv_cache_pct" in {curve.name for curve in made.curves}) is (used > 0)
    assert any("kv_cache_pct is 0 throughout" in note for note in made.notes) is (used == 0)


def test_errors_and_bounds() -> None:
    found = errors(np.array([110.0, 80.0]), np.array([100.0, 100.0]))
    assert found is not None
    assert (found.n, found.mape, found.bias) == (2, pytest.approx(15), pytest.approx(-5))
    assert errors(np.array([]), np.array([])) is None
    assert parse_bounds(["gemm:8", "table gemm:2.5"]) == {"gemm": 8.0, "table gemm": 2.5}
    for text in ("gemm", "gemm:", "gemm:-1", "gemm:nan", ":8"):
        with pytest.raises(UsageError, match="NAME:PERCENT"):
            parse_bounds([text])
    assert broken_bounds({"a": 3.0, "b": 3.0}, {"a": -2.9, "b": -3.1}) == [
        "b: -3.10 % breaks its bound of 3 %"
    ]
    with pytest.raises(UsageError, match="Did you mean 'makespan'"):
        broken_bounds({"makespam": 3.0}, {"makespan": 1.0})


def test_nelder_mead_finds_a_minimum() -> None:
    def loss(x: np.ndarray) -> float:
        return float((x[0] - 1) ** 2 + 3 * abs(x[1] + 2) + (x[2] * x[0]) ** 2)

    best, value = nelder_mead(loss, np.array([3.0, 3.0, 3.0]), 600)
    assert value < 1e-2
    assert best == pytest.approx([1, -2, 0], abs=0.1)


@pytest.mark.slow
def test_the_command_exits_with_3_for_a_broken_bound(tmp_path: Path) -> None:
    runner = CliRunner()
    source = write(tmp_path, DETAIL)
    folder = str(tmp_path / "run")
    assert runner.invoke(app, ["import", str(source), folder]).exit_code == 0
    command = ["run", folder, "--device", "sim:h100"]
    shown = runner.invoke(app, command)
    assert shown.exit_code == 0
    assert "makespan" in shown.stdout
    assert runner.invoke(app, [*command, "--bound", "makespan:1000"]).exit_code == 0
    assert runner.invoke(app, [*command, "--bound", "makespan:0.001"]).exit_code == 3
    made = json.loads(runner.invoke(app, [*command, "--json"]).stdout)
    assert made["simulated"] is True
    assert {row["name"] for row in made["rows"]} >= {"makespan", "tpot", "ttft"}
