"""The kernels of a mixture of experts: routing, tiles, and times beside published measurements."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.core.errors import InputError
from nexusbench.core.specs import GpuSpec, ModelSpec, MoeSpec
from nexusbench.core.work import model_work
from nexusbench.experiments.fidelity import aiconfigurator_low as low
from nexusbench.experiments.fidelity import kernels
from nexusbench.experiments.fidelity.fit import FAMILIES, fit
from nexusbench.experiments.fidelity.routing_draw import routing
from nexusbench.experiments.fidelity.samples import KernelSample
from nexusbench.models.config import load_model
from nexusbench.physics.experts import (
    HEIGHTS,
    Experts,
    ExpertShape,
    Routing,
    expected_tiles,
    uniform,
)
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.physics.precisions import expert_constants

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

H200, B200 = load_gpu("h200"), load_gpu("b200")
MODEL = ModelSpec("a3b", 48, 2048, 32, 4, 128, 6144, 151936, 40960, moe=MoeSpec(128, 8, 768))


def layer(gpu: GpuSpec, kind: str, sent: Routing, size: float, copies: int = 1) -> float:
    """Microseconds of a layer of Qwen3-30B-A3B's experts."""
    activations = 2.0 if kind == "bf16" else size
    shape = ExpertShape(2048, 768, True, size, activations)
    experts = Experts(gpu, expert_constants(gpu, kind), shape)
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    return experts.time(sent, gpu.num_sms, bandwidth, copies=copies).time / 1e3


@pytest.mark.parametrize(
    ("kind", "size", "tokens", "measured"),
    [
        ("bf16", 2.0, 2, 57.8), ("bf16", 2.0, 16, 305.2), ("bf16", 2.0, 256, 339.3),
        ("bf16", 2.0, 4096, 691.2), ("bf16", 2.0, 16384, 2462.9),
        ("fp8_block", 1.0, 16, 181.9), ("fp8_block", 1.0, 512, 236.2),
        ("fp8_block", 1.0, 8192, 1519.5),
    ],
)  # fmt: skip
def test_experts_as_measured(kind: str, size: float, tokens: int, measured: float) -> None:
    """aiconfigurator 0.12.0, vLLM 0.24, an H200, tokens spread evenly over 128 experts."""
    made = layer(H200, kind, routing(tokens, 128, 8, 1, 0.0), size)
    assert made == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize("tokens", [1, 2, 32, 500, 5000])
def test_expected_routing(tokens: int) -> None:
    made = uniform(tokens, 128, 8)
    assert made.touched == pytest.approx(model_work(MODEL).experts_touched(tokens))
    assert (made.rows, made.held, made.assigned) == (tokens * 8, 128, tokens * 8)
    assert all(b <= a for a, b in pairwise(made.tiles))
    assert made.tiles[-1] >= made.touched
    part = uniform(tokens, 128, 8, 4)
    assert part.rows == pytest.approx(made.rows / 4)
    assert part.touched == pytest.approx(made.touched / 4)
    assert part.assigned == made.assigned


def test_a_skew_touches_fewer_experts_and_leaves_the_work() -> None:
    even, skewed = uniform(32, 128, 8), uniform(32, 128, 8, skew=50.0)
    assert skewed.touched < 0.85 * even.touched
    assert skewed.rows == pytest.approx(even.rows)
    assert uniform(32, 128, 8, skew=1.0001).touched == pytest.approx(even.touched, rel=1e-3)
    physics = [Physics(H200, MODEL, expert_skew=skew) for skew in (1.0, 50.0)]
    few, many = (p.dense(16, H200.num_sms).time for p in reversed(physics))
    assert few < many


@given(st.integers(1, 400), st.floats(0.1, 60.0), st.sampled_from(HEIGHTS))
def test_tiles_are_those_of_a_poisson_draw(touched: int, mean: float, height: int) -> None:
    """Within a sixth of the exact expectation of ceil(rows / height), given at least one row."""
    rows, chance, exact, some = 0, 2.718281828459045**-mean, 0.0, 0.0
    while rows < 400:
        if rows:
            exact, some = exact - (-rows // height) * chance, some + chance
        rows += 1
        chance *= mean / rows
    made = expected_tiles(touched, touched * mean / some, height)
    assert made == pytest.approx(touched * exact / some, rel=0.17)


def test_one_expert_more_costs_its_weights() -> None:
    times = []
    for touched in (32, 64, 128):
        tiles = (float(touched),) * len(HEIGHTS)
        times.append(
            layer(H200, "bf16", Routing(16.0, 128.0, 128.0, touched, 128.0, tiles), 2.0, 0)
        )
    weights = 3 * 2048 * 768 * 2 * 64 / (H200.hbm_gbps * 0.95) / 1e3
    assert weights < times[2] - times[1] < 1.4 * weights
    assert times[2] - times[1] == pytest.approx(2 * (times[1] - times[0]), rel=0.05)


@pytest.mark.parametrize(
    ("tokens", "gpus", "at"),
    # 4 of 128 experts: up to 8 tokens an expert and one more, the same on half of them, and many.
    [(1, 1, 0), (256, 1, 0), (257, 1, 1), (1024, 1, 2), (128, 2, 0), (129, 2, 1), (90000, 1, 4)],
)
def test_a_kernel_takes_the_tile_of_the_mean(tokens: int, gpus: int, at: int) -> None:
    own = expert_constants(B200, "mxfp4_mxfp8")
    shape = ExpertShape(2880, 2880, True, 0.53125, 1.03125)
    bandwidth = B200.hbm_gbps * B200.sim.bandwidth_efficiency

    def time(shares: list[float], tile: str) -> float:
        made = msgspec.structs.replace(own, tile_shares=tuple(shares), tile=tile)
        sent = uniform(tokens, 128, 4, gpus)
        return Experts(B200, made, shape).time(sent, B200.num_sms, bandwidth).time

    assert own.tile == "mean"
    shares = list(own.tile_shares)
    alone = [share if each == at else 0.0 for each, share in enumerate(shares)]
    assert time(shares, "mean") == time(alone, "fastest") >= time(shares, "fastest")
    # Of heights that are not built the next one, or the largest.
    lacks = [0.0 if each == at else share for each, share in enumerate(shares)]
    near = min(at + 1, 4) if at < 4 else 3
    alone = [share if each == near else 0.0 for each, share in enumerate(shares)]
    assert time(lacks, "mean") == time(alone, "fastest")


@pytest.mark.parametrize(
    ("tokens", "held", "measured"),
    [
        (16, 128, 155), (256, 128, 298), (8192, 128, 800), (16384, 128, 1581), (256, 32, 93),
        (8192, 32, 257),
    ],
)  # fmt: skip
def test_experts_with_quantised_activations_as_measured(
    tokens: int, held: int, measured: float
) -> None:
    """aiconfigurator 0.12.0, SGLang 0.5.14, gpt-oss-120b's experts in MXFP4 on a B200, tokens
    spread evenly.
    """
    experts = Experts(
        B200, expert_constants(B200, "mxfp4_mxfp8"), ExpertShape(2880, 2880, True, 0.53125, 1.03125)
    )
    bandwidth = B200.hbm_gbps * B200.sim.bandwidth_efficiency
    sent = routing(tokens, 128, 4, 128 // held, 0.0)
    made = experts.time(sent, B200.num_sms, bandwidth, copies=1).time / 1e3
    assert made == pytest.approx(measured, rel=0.2)


def test_unequal_shares_cost_more_tiles() -> None:
    sent = [routing(2048, 128, 8, 1, exponent) for exponent in (0.0, 1.2)]
    assert sent[1].tiles[1] > 1.02 * sent[0].tiles[1]
    assert layer(H200, "bf16", sent[1], 2.0) > 1.05 * layer(H200, "bf16", sent[0], 2.0)


def test_a_part_of_the_experts_takes_its_part_of_the_weights_and_sorts_all_tokens() -> None:
    whole, part = (layer(H200, "bf16", uniform(64, 128, 8, gpus), 2.0, 0) for gpus in (1, 8))
    assert whole / 8 < part < 0.35 * whole


def test_low_precision_experts_follow_their_bytes_in_decodes() -> None:
    sent = uniform(64, 128, 8)
    wide, narrow, least = (
        layer(B200, kind, sent, size, 0)
        for kind, size in (("bf16", 2.0), ("fp8", 1.0), ("nvfp4", 0.5625))
    )
    assert wide > 1.4 * narrow > 1.4 * least


@given(
    st.integers(1, 3000), st.sampled_from([8, 64, 128]), st.integers(1, 8),
    st.sampled_from([1, 2, 8]), st.sampled_from([1.01, 1.2]),
)  # fmt: skip
def test_a_draw_sends_every_token(
    tokens: int, experts: int, chosen: int, gpus: int, exponent: float
) -> None:
    made = routing(tokens, experts, chosen, gpus, exponent)
    held = experts // gpus
    assert made.held == held
    assert 0 < made.touched <= held
    # The most loaded share, and no expert more than every token.
    assert made.assigned / gpus - 1e-6 <= made.rows <= min(made.assigned, held * tokens) + 1e-6
    assert made.tiles[0] >= made.rows / HEIGHTS[0] - 1e-6
    assert routing(tokens, experts, chosen, gpus, exponent) == made


ROW: dict[str, Any] = {
    "kernel_source": "vllm_triton", "moe_dtype": "bfloat16", "distribution": "balanced",
    "num_tokens": 16, "hidden_size": 2048, "inter_size": 768, "topk": 8, "num_experts": 128,
    "moe_tp_size": 1, "moe_ep_size": 1, "latency": 0.3052,
}  # fmt: skip


def table(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "moe" / "vllm" / "1.0" / "moe_perf.parquet"
    path.parent.mkdir(parents=True)
    columns = {key: [{**ROW, **row}[key] for row in rows] for key in ROW}
    pq.write_table(pa.table(columns), path)
    return folder


def read(folder: Path, gpu: GpuSpec = H200, family: str = "") -> list[KernelSample]:
    return list(low.experts(folder, gpu, True, 1, family))


def test_a_table_of_experts_is_scored_by_kind(tmp_path: Path) -> None:
    rows = (
        {}, {"moe_dtype": "fp8_block", "latency": 0.1819},
        {"moe_dtype": "w4a16_mxfp4", "kernel_source": "a_marlin_kernel"},
        {"moe_dtype": "w4a8_mxfp4_mxfp8"}, {"inter_size": 64},
        {"distribution": "power_law_1.2", "moe_ep_size": 8},
        {"kernel_source": "flashinfer_cutlass"},
    )  # fmt: skip
    made = read(table(tmp_path, *rows))
    names = ["experts", "experts-fp8_block", "experts-w4a16", "experts under 128", "experts"]
    names.append("experts by cutlass")
    assert [sample.operator for sample in made] == names
    assert made[0].physics_us == pytest.approx(made[0].measured_us, rel=0.1)
    assert not made[3].fitted
    assert [s.operator for s in read(tmp_path, family="experts-w4a16")] == ["experts-w4a16"]


def test_experts_of_a_gpu_whose_constants_are_anothers_are_all_held_out(tmp_path: Path) -> None:
    shapes = [{"hidden_size": 128 * size} for size in range(8, 24)]
    folder = table(tmp_path, *shapes)
    halves = {sample.fitted for sample in read(folder)}
    assert halves == {False, True}
    assert {sample.fitted for sample in read(folder, load_gpu("rtx4090"))} == {False}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"topk": 129}, "topk 129 is more than num_experts 128"),
        ({"moe_ep_size": 256}, "moe_ep_size 256 is more than"),
        ({"distribution": "zipf"}, "distribution is 'zipf', not balanced or power_law"),
        ({"distribution": "power_law_1"}, "distribution is 'power_law_1'"),
        ({"distribution": "power_law_nan"}, "distribution is 'power_law_nan'"),
        ({"num_tokens": 0}, "field 'num_tokens': row 1 is 0"),
        ({"latency": float("inf")}, "field 'latency': row 1 is inf"),
    ],
)
def test_a_broken_table_of_experts_is_refused(
    tmp_path: Path, row: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        read(table(tmp_path, row))


def moe_folder(folder: Path, text: str) -> Path:
    (folder / "meta.yaml").write_text("model: a3b\n")
    (folder / "moe.csv").write_text(text)
    return folder


def test_a_folder_with_experts_is_scored(tmp_path: Path) -> None:
    text = "tokens,activated_experts,time_us\n16,64,424.1\n2048,128,1066.6\n"
    made = kernels.read_samples(load_gpu("rtxpro6000"), "x", MODEL, str(moe_folder(tmp_path, text)))
    assert [sample.operator for sample in made.samples] == ["experts"] * 2
    assert all(0.5 < s.physics_us / s.measured_us < 1.5 for s in made.samples)
    assert "only the experts" in made.notes[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tokens,time_us\n1,2\n", r"moe\.csv:1: field 'activated_experts': is missing"),
        ("tokens,activated_experts,time_us\n1,129,2\n", r"moe\.csv:2: field 'activated_experts'"),
        ("tokens,activated_experts,time_us\n1.5,8,2\n", r"moe\.csv:2: field 'tokens': is 1.5"),
        ("tokens,activated_experts,time_us\n1,8,0\n", r"moe\.csv:2: field 'time_us': is 0"),
        ("tokens,activated_experts,time_us\n1,8,x\n", r"moe\.csv:2: field 'time_us': is 'x'"),
    ],
)
def test_a_broken_folder_of_experts_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        kernels.read_samples(H200, "h200", MODEL, str(moe_folder(tmp_path, text)))


def test_a_folder_with_experts_needs_a_model_with_experts(tmp_path: Path) -> None:
    folder = moe_folder(tmp_path, "tokens,activated_experts,time_us\n1,8,2\n")
    with pytest.raises(InputError, match="is of a mixture of experts"):
        kernels.read_samples(H200, "h200", load_model("llama-3.1-8b"), str(folder))


def test_constants_of_experts_are_fitted_on_the_fitted_half(tmp_path: Path) -> None:
    rows = [
        {"hidden_size": 128 * size, "num_tokens": tokens, "latency": 1.0}
        for size in range(8, 24)
        for tokens in (1, 16, 256)
    ]
    folder = str(table(tmp_path, *rows))
    assert "experts" in FAMILIES
    slower = fit(H200, "h200", MODEL, folder, "experts", evaluations=40)
    assert slower.after < slower.before
    bare = msgspec.structs.replace(H200, kernels=msgspec.UNSET)
    with pytest.raises(InputError, match="has no constants of experts to start from"):
        fit(bare, "h200", MODEL, folder, "experts", evaluations=40)
