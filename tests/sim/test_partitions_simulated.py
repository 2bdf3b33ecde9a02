"""What tables of partitions ask of the simulated GPU: co-runs as a fluid, parts of a GPU, profiles;
and every shipped table, where the data is there.
"""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from nexusbench.cli.validate import app
from nexusbench.core.errors import InputError
from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.fidelity.partitions.formats import read_partitions
from nexusbench.experiments.fidelity.partitions.pairs import best_split
from nexusbench.experiments.fidelity.partitions.reading import LLAMA_HEADS, AttentionLayout
from nexusbench.experiments.fidelity.partitions.scores import summarise
from nexusbench.experiments.fidelity.partitions.simulated import SimulatedGpu
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.operators import clock
from nexusbench.physics.sharing import LaunchLoad
from nexusbench.profiles.profile import POINTS_FILE, read_points, write_profile
from tests.examples import slow
from tests.sim.profiles import make_profile

GPU = SimulatedGpu(load_gpu("h100"))


def without_gain(name: str) -> GpuSpec:
    """A GPU on which work divides over the SMs exactly."""
    gpu = load_gpu(name)
    return msgspec.structs.replace(gpu, sim=msgspec.structs.replace(gpu.sim, clock_gain=0.0))


class Slowed(SimulatedGpu):
    """Each side is slowed by its number of SMs in tenths."""

    def slowdown(self, side: LaunchLoad, other: LaunchLoad) -> float:
        return side.sms / 10


def test_a_corun_is_a_fluid_until_the_first_is_done() -> None:
    gpu = Slowed(without_gain("h100"))
    whole = gpu.computing(132), gpu.computing(132)
    parts = gpu.computing(66), gpu.computing(44)  # alone 2 and 3 times longer
    made = gpu.corun((10.0, 20.0), whole, parts)
    # Slowed 6.6 and 4.4 times: done after 132 and 264. After 132 the second has half of it left,
    # 30 alone on its SMs.
    assert made.ends == pytest.approx((132, 132 + 30))
    assert made.speeds == pytest.approx((10 / 132, 20 / 264))
    assert gpu.corun((20.0, 10.0), whole[::-1], parts[::-1]).ends == pytest.approx((162, 132))


def test_two_that_never_overlap_take_as_long_as_one_after_the_other() -> None:
    class InTurns(SimulatedGpu):
        def slowdown(self, side: LaunchLoad, other: LaunchLoad) -> float:
            return 2.0

    gpu = InTurns(load_gpu("h100"))
    whole = gpu.computing(132), gpu.streaming(132)
    made = gpu.corun((3.0, 50.0), whole, whole)
    assert made.ends == pytest.approx((6, 53))


@pytest.mark.parametrize("sms", [8, 40, 100])
def test_a_part_of_a_gpu_draws_what_its_sms_drew(sms: int) -> None:
    part = GPU.cut(sms)
    assert part.gpu.num_sms == sms
    assert part.bandwidth(sms) == pytest.approx(GPU.bandwidth(sms))
    assert part.bandwidth(sms // 2) == pytest.approx(GPU.bandwidth(sms // 2))
    # Rows enough for one choice of tiles; all of its SMs compute, so it has no gain of clock.
    faster = clock(GPU.gpu.sim.clock_gain, sms / 132)
    assert part.gemm(2**17, 4096, 4096, sms).busy == pytest.approx(
        GPU.gemm(2**17, 4096, 4096, sms).busy * faster, rel=0.02
    )
    assert GPU.cut(132) is GPU


def test_the_best_split_ends_first_and_gives_the_longer_side_more() -> None:
    loads = GPU.computing, GPU.streaming
    even, odd = best_split(GPU, (1.0, 1.0), loads), best_split(GPU, (5.0, 1.0), loads)
    assert sum(even) == sum(odd) == 132
    assert odd[0] > even[0]


def test_attention_without_a_causal_mask_computes_twice_as_much() -> None:
    causal = GPU.prefill_attention(LLAMA_HEADS, 16384, 132).time
    whole = GPU.prefill_attention(LLAMA_HEADS, 16384, 132, causal=False).time
    assert whole / causal == pytest.approx(2, rel=0.07)


def test_decodes_read_the_keys_of_all_sequences() -> None:
    times = [GPU.decode_attention(LLAMA_HEADS, batch, 8192, 132).time for batch in (64, 128)]
    assert times[1] / times[0] == pytest.approx(2, rel=0.1)


def test_the_kernel_that_was_measured_is_simulated() -> None:
    made = {
        kernel: (
            GPU.decode_attention(AttentionLayout(32, 8, 128, kernel), 64, 4096, 132).time,
            GPU.prefill_attention(AttentionLayout(32, 8, 128, kernel), 4096, 132).time,
        )
        for kernel in ("contiguous", "fa2", "fa3")
    }
    assert len(set(made.values())) == 3


def test_a_profile_has_rows_of_the_same_operators(tmp_path: Path) -> None:
    make_profile(tmp_path, fits=())
    gpu = load_gpu("l20")
    found = read_partitions(tmp_path, gpu)
    scores = {score.operator: score.all for score in summarise(found.points)[0]}
    names = {"prefill step", "decode step", "work rate split", "neighbour split decode",
             "neighbour split prefill", "decode step, absolute"}  # fmt: skip
    assert names <= set(scores)
    # It was made by the same physics.
    assert max(score.p95 for score in scores.values()) < 1e-6
    assert "simulated" in found.measured_on
    made = CliRunner().invoke(app, ["partitions", "l20", str(tmp_path)])
    assert "profile of sim:l20, simulated" in made.output
    assert "measured on" not in made.output
    assert any("nothing here was measured" in note for note in found.notes)
    rates = [p.measured for p in found.points if p.operator == "work rate split"]
    assert 0.8 < min(rates) < max(rates) < 1.9
    other = read_partitions(tmp_path, load_gpu("l40s"))
    assert any("simulated on 92 of the 142 SMs" in note for note in other.notes)
    assert {p.operator for p in other.points} == {p.operator for p in found.points}


def test_steps_that_were_repeated_in_one_launch_are_simulated_so(tmp_path: Path) -> None:
    profile = make_profile(tmp_path, fits=())
    points = []
    for point in read_points(tmp_path / POINTS_FILE):
        shape = msgspec.structs.replace(point.setting.shape, repeat=4)
        setting = msgspec.structs.replace(point.setting, shape=shape)
        points.append(msgspec.structs.replace(point, setting=setting, ns=4 * point.ns))
    data = b"".join(msgspec.json.encode(p) + b"\n" for p in points if p.setting.kind != "pair")
    (tmp_path / POINTS_FILE).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    write_profile(tmp_path, msgspec.structs.replace(profile, points_sha256=digest))
    found = read_partitions(tmp_path, load_gpu("l20"))
    for score in summarise(found.points)[0]:
        assert score.all.p95 < 1e-6


def test_a_profile_with_more_sms_than_the_gpu_is_refused(tmp_path: Path) -> None:
    make_profile(tmp_path, gpu="h100", fits=())
    with pytest.raises(InputError, match="is of 132 SMs; NVIDIA L20 has 92"):
        read_partitions(tmp_path, load_gpu("l20"))


DATA = Path(os.environ.get("NEXUSBENCH_DATA") or "/nothing") / "partitions"
GPUS = {"a100": "a100", "h100": "h100", "h200": "h200", "openinfer": "h200"}


FOUND = sorted(DATA.glob("*.csv"))
SMALL = [path for path in FOUND if path.stat().st_size < 100_000]
TABLES = [*SMALL, *slow(*(path for path in FOUND if path not in SMALL))]
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="$NEXUSBENCH_DATA holds no partitions")


@needs_data
@pytest.mark.parametrize(
    ("gpu", "table", "bounds"),
    [
        ("h200", "h200-green-ctx-stream-scan", {"stream": 8}),
        ("rtx5070ti", "5070ti-green-ctx-stream-scan", {"stream": 8}),
        ("a6000", "a6000-green-ctx-dram-read", {"stream": 8, "stream, absolute": 8}),
        ("orin", "orin-dram-read", {"stream": 8}),
        ("h100", "h100-green-ctx-kernels",
         {"gemm": 12.5, "decode attention": 15, "prefill attention": 15}),
        pytest.param(
            "a100", "a100-mps-llama-7b-65b", {"decode step": 12, "prefill step": 12},
            marks=pytest.mark.slow,
        ),
        ("a100", "a100-green-ctx-mlp-prefill", {"prefill mlp": 12}),
        ("a100", "a100-green-ctx-decode-attention", {"decode attention": 15}),
        ("a100", "a100-corun-attention-attention",
         {"work rate streams": 10, "work rate split": 10, "slow-down split decode": 15}),
        ("h200", "openinfer-streams-vs-green", {"work rate streams": 10, "work rate split": 10}),
        ("rtx5070ti", "openinfer-streams-vs-green",
         {"work rate streams": 10, "work rate split": 10}),
        ("orin", "orin-streams-gemv-gemm", {"work rate streams": 10}),
        # Constants of one source on the measurements of another.
        ("h200", "h100-green-ctx-kernels", {"gemm": 15, "attention": 16}),
        ("l20", "5070ti-green-ctx-stream-scan", {"stream": 8}),
        ("h100", "a100-corun-attention-attention", {"work rate split": 10}),
    ],
)  # fmt: skip
def test_stated_bounds_hold_on_what_was_held_out(
    gpu: str, table: str, bounds: dict[str, float]
) -> None:
    found = read_partitions(DATA / f"{table}.csv", load_gpu(gpu))
    scores = {score.operator: score.of("held-out")[1] for score in summarise(found.points)[0]}
    for operator, bound in bounds.items():
        assert scores[operator].mape <= bound, operator


@needs_data
@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_shared_table_is_read_whole(path: Path) -> None:
    found = read_partitions(path, load_gpu(GPUS.get(path.stem.split("-")[0], "l40s")))
    assert found.points or any(note.startswith("not scored") for note in found.notes)
    assert not any("is not used" in note for note in found.notes)
    lines = len(path.read_text().splitlines()) - 1
    alone = {p.line for p in found.points if "absolute" in p.operator}
    assert len(alone) in (0, lines)
    for point in found.points:
        assert point.measured > 0
        assert math.isfinite(point.simulated)
        assert point.simulated > 0
    for score in summarise(found.points)[0]:
        assert 0 <= score.all.median <= score.all.p95 < 1000
