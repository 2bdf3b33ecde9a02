"""A mixture of experts: which experts a batch reads, in the simulated truth and in the beliefs."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.core.specs import Dtypes, ModelSpec, MoeSpec
from nexusbench.core.work import model_work
from nexusbench.costs.roofline import Roofline
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.profiles.stages import Stages

# Qwen3-30B-A3B
MODEL = ModelSpec("a3b", 48, 2048, 32, 4, 128, 6144, 151936, 40960, moe=MoeSpec(128, 8, 768))
A100, H200 = load_gpu("a100"), load_gpu("h200")
DECODE = BatchShape(1, 128)
THIRTY_TWO = BatchShape(32, 32 * 128)


def bytes_of(shape: BatchShape) -> float:
    work = Stages(A100, MODEL).work(shape)
    return float(sum(size for _, size in work.dense) + work.decode_bytes)


def test_a_token_reads_its_own_experts_and_a_batch_those_of_all() -> None:
    work = model_work(MODEL)
    assert work.experts_touched(1) == 8
    assert work.experts_touched(2) == pytest.approx(15.5)
    assert work.experts_touched(32) == pytest.approx(128 * (1 - (120 / 128) ** 32))
    assert work.experts_touched(10_000) == 128
    touched = [work.experts_touched(tokens) for tokens in range(1, 200)]
    assert all(a < b for a, b in pairwise(touched))


def test_bytes_of_one_request_and_of_thirty_two() -> None:
    # The router, 8 of 128 experts, attention and head; 3.7 ms at what an A100 attains.
    assert bytes_of(DECODE) == pytest.approx(6.1e9, rel=0.01)
    attained = A100.hbm_gbps * A100.sim.bandwidth_efficiency
    assert bytes_of(DECODE) / attained == pytest.approx(3.7e6, rel=0.02)
    assert bytes_of(THIRTY_TWO) / attained == pytest.approx(32e6, rel=0.05)


def test_truth_takes_its_bytes_and_what_a_real_engine_adds_at_most() -> None:
    physics = Physics(A100, MODEL)
    one, many = (physics.load(s, A100.num_sms).solo for s in (DECODE, THIRTY_TWO))
    assert 3.7e6 < one < 9.6e6  # 9.6 ms was measured on vLLM
    assert many == pytest.approx(36e6, rel=0.15)
    assert physics.load(DECODE, A100.num_sms).dense.traffic == pytest.approx(6.1e9, rel=0.03)
    assert Physics(H200, MODEL).load(THIRTY_TWO, H200.num_sms).solo < 0.5 * many


def test_a_step_of_one_is_far_below_a_dense_32b() -> None:
    dense = ModelSpec("32b", 64, 5120, 64, 8, 128, 25600, 151936, 40960)
    sms = A100.num_sms
    moe_step = Physics(A100, MODEL).load(DECODE, sms).solo
    assert moe_step < 0.3 * Physics(A100, dense).load(DECODE, sms).solo


@pytest.mark.parametrize("tokens", [1, 8, 32, 256, 2048])
def test_belief_and_truth_count_the_same_bytes(tokens: int) -> None:
    shape = BatchShape(tokens, tokens * 128)
    dense, _, (_, kept) = Roofline(gpu=A100, model=MODEL).operators(shape)
    assert sum(size for _, size in dense) + kept == pytest.approx(bytes_of(shape))
    flops = sum(flops for flops, _ in dense)
    assert flops == pytest.approx(2 * tokens * (3.35e9 - 151936 * 2048), rel=0.02)


def test_a_chunk_computes_in_the_experts_of_each_token() -> None:
    # 2,048 tokens touch every expert, and compute in 8 each: more than bytes, less than all.
    physics = Physics(A100, MODEL)
    step = physics.load(BatchShape(0, 0, ((2048, 0),)), A100.num_sms)
    computing = 2 * 2048 * 3.0e9 / (A100.peak_tflops * 1e3)
    assert 61e9 / A100.hbm_gbps < step.solo
    assert computing < step.solo < 6 * computing


def test_shared_experts_are_read_by_every_batch() -> None:
    shared = ModelSpec("s", 2, 64, 8, 2, 8, 128, 1000, 512, moe=MoeSpec(8, 2, 48, 4))
    work = model_work(shared)
    names = [linear.name for linear in work.linears]
    assert names[-2:] == ["gate_up", "down"]
    assert work.linears[-1].inputs == 4 * 48
    parameters = 2 * (64 * (64 + 32) + 64 * 64 + 64 * 8 + 12 * 3 * 64 * 48) + 2 * 64_000
    assert shared.num_parameters == parameters


def test_fp8_experts_are_half_the_bytes() -> None:
    fp8 = ModelSpec(
        "a3b", 48, 2048, 32, 4, 128, 6144, 151936, 40960, dtypes=Dtypes(weights="fp8"),
        moe=MoeSpec(128, 8, 768),
    )  # fmt: skip
    head = 151936 * 2048 * 2
    both = [sum(size for _, size in model_work(m).dense_work(1)) for m in (fp8, MODEL)]
    assert both[0] == pytest.approx(0.5 * both[1], rel=0.01)
    assert fp8.weight_bytes == pytest.approx(0.5 * (MODEL.weight_bytes - 2 * head) + 2 * head)


@pytest.mark.slow
def test_the_case_on_the_command_line_says_it_is_not_validated(tmp_path: Path, capfd) -> None:
    from nexusbench.cli.main import main

    config = {
        "model_type": "qwen3_moe", "hidden_act": "silu", "hidden_size": 2048, "head_dim": 128,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128,
        "num_experts_per_tok": 8, "vocab_size": 151936, "max_position_embeddings": 40960,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    trace = tmp_path / "one.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 128, "output_length": 128}\n')
    asked = ["serve-trace", trace, "--device", "sim:a100", "--model", tmp_path, "--scheduler"]
    asked = [*map(str, asked), "vllm,sarathi", "--results", str(tmp_path / "kept")]
    assert main(asked) == 0
    out, err = capfd.readouterr()
    assert err.count("WARNING: NOT VALIDATED: a mixture of experts") == 1
    assert out.count("NOT VALIDATED") == 1
    manifest = json.loads(next((tmp_path / "kept").glob("*/manifest.json")).read_text())
    assert manifest["resolved"]["caveats"][0].startswith("NOT VALIDATED")
    assert main([*asked, "--json", "--no-save"]) == 0
    runs = json.loads(capfd.readouterr().out)["runs"]
    assert all("mixture of experts" in run["resolved"]["caveats"][0] for run in runs)
    assert 3.7 < runs[0]["summary"]["metrics"]["tbt"]["mean"] < 9.6


def test_batches_that_pad_to_the_same_rows_read_different_experts() -> None:
    physics = Physics(A100, MODEL)
    traffic = [physics.dense(tokens, A100.num_sms).traffic for tokens in (9, 1, 9, 16)]
    assert traffic[1] < 0.3 * traffic[0]
    assert traffic[0] == traffic[2] < traffic[3]
