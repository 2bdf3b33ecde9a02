"""Partitions on a driver that only rounds, memory, graph sizes, and what a GPU is called."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

from fake_driver import FakeDriver
from fake_gpu import GIB, H200, green

from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.devices._cuda_driver import (
    QUEUES_VARIABLE,
    CudaError,
    GpuFacts,
    allow_queues,
)
from nexusbench.devices._cuda_memory import (
    BUCKETS,
    CACHED_SIDES,
    activation_bytes,
    bucket_for,
    decode_buckets,
    plan_memory,
)
from nexusbench.devices._cuda_partitions import Unpartitioned
from nexusbench.devices._cuda_probe import check_gpu, gpu_spec
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import legal_splits, load_gpu

# -- partitions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["h200", "a100", "l40s"])
def test_legal_splits_are_those_of_the_simulated_gpu(name: str) -> None:
    gpu = load_gpu(name)
    driver = FakeDriver(gpu.num_sms, gpu.sm_minimum, gpu.sm_multiple)
    assert green(driver).splits == legal_splits(gpu)


def test_splits_of_an_h200() -> None:
    driver = FakeDriver()
    partitions = green(driver)
    *disjoint, both = partitions.splits
    assert [split.sms for split in disjoint] == [(p, 132 - p) for p in range(8, 121, 8)]
    assert both.sms == (132, 132)
    assert both.overlapping
    assert (partitions.minimum, partitions.multiple) == (8, 8)
    assert not driver.live  # asking what is possible makes nothing
    assert partitions.memory_per_context is None


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), (8, 8)), ((12, 0), (8, 8)), ((8, 6), (4, 2))]
)
def test_a_driver_that_names_no_granularity(
    capability: tuple[int, int], expected: tuple[int, int]
) -> None:
    partitions = green(FakeDriver(84, *expected, says=False), capability)
    assert (partitions.minimum, partitions.multiple) == expected
    assert partitions.splits[0].sms == (expected[0], 84 - expected[0])


def test_counts_that_the_driver_rounds_or_refuses_are_not_offered() -> None:
    """It says steps of 8 but gives steps of 16, and has nothing for 40."""
    driver = FakeDriver(132, 8, 8, refuses=(40,))
    driver.step = 16
    sizes = [split.sms[0] for split in green(driver).splits[:-1]]
    assert sizes == [16, 32, 48, 64, 80, 96, 112]
    assert green(FakeDriver(12)).splits[:-1] == ()  # too few for two


def test_the_two_sides_of_a_split_share_no_sm() -> None:
    driver = FakeDriver()
    partitions = green(driver)
    for split in partitions.splits:
        driver.calls.clear()
        sides = partitions.streams(split)
        assert {name: side.sms for name, side in sides.items()} == dict(
            zip(split.partitions, split.sms, strict=True)
        )
        prefill, decode = (set(driver.sms[sides[name].green]) for name in ("prefill", "decode"))
        assert (prefill | decode) == set(range(132))
        assert bool(prefill & decode) == split.overlapping
        # Both come from the one split call that was made at the start.
        assert "cuDevSmResourceSplitByCount" not in driver.calls
        if not split.overlapping:
            assert sides["prefill"].structured
            assert not sides["decode"].structured
    assert partitions.num_contexts == 2 * len(partitions.splits)
    assert partitions.memory_per_context == 4 << 20


def test_sides_are_made_once_and_all_of_them_before_a_run() -> None:
    driver = FakeDriver()
    partitions = green(driver)
    assert partitions.whole.sms == 132
    assert partitions.whole is partitions.side("all", 132)
    assert partitions.side("prefill", 132).stream != partitions.side("decode", 132).stream
    partitions.make_all()
    made = len(driver.live)
    assert made == 2 * (2 * 16 + 1)  # contexts and streams
    for split in partitions.splits:
        partitions.streams(split)
    assert len(driver.live) == made
    partitions.close()
    assert not driver.live
    partitions.close()


@pytest.mark.parametrize(("partition", "sms"), [("prefill", 12), ("decode", 64), ("all", 64)])
def test_what_no_split_has_is_refused(partition: str, sms: int) -> None:
    with pytest.raises(
        NexusbenchError, match=f"no legal split gives partition '{partition}' {sms}"
    ):
        green().side(partition, sms)


@pytest.mark.parametrize(
    "call", ["cuDevResourceGenerateDesc", "cuGreenCtxCreate", "cuGreenCtxStreamCreate"]
)
def test_failures_name_the_call_and_leave_nothing_open(call: str) -> None:
    driver = FakeDriver(fails={call: 1})  # the second one: of the decode side
    partitions = green(driver)
    with pytest.raises(CudaError, match=rf"{call} failed: CUDA_ERROR_OUT_OF_MEMORY \(2\)"):
        partitions.side("decode", 68)
    partitions.close()
    assert not driver.live


def test_fewer_sms_than_promised_are_an_error() -> None:
    with pytest.raises(CudaError, match="promised partition 'prefill' 64 SMs and gave 62"):
        green(FakeDriver(lies=True)).side("decode", 68)


def test_without_green_contexts_there_are_two_streams() -> None:
    made: list[object] = []

    def new_stream() -> object:
        made.append(object())
        return made[-1]

    partitions = Unpartitioned(108, new_stream)
    (both,) = partitions.splits
    assert both.overlapping
    sides = partitions.streams(both)
    assert sides["prefill"].stream is not sides["decode"].stream
    assert [side.green for side in sides.values()] == [None, None]
    assert partitions.side("decode", 108).stream is sides["decode"].stream
    with pytest.raises(NexusbenchError, match="cuda:streams has no 64 SMs"):
        partitions.side("prefill", 64)


def test_queues_are_asked_for_unless_the_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(QUEUES_VARIABLE, "8")
    allow_queues()
    assert os.environ[QUEUES_VARIABLE] == "8"
    monkeypatch.delenv(QUEUES_VARIABLE)
    allow_queues()
    assert os.environ[QUEUES_VARIABLE] == "32"


# -- graphs and memory -----------------------------------------------------------------------------


def test_buckets_waste_less_than_half_where_rows_cost() -> None:
    buckets = decode_buckets(1024)
    assert buckets == BUCKETS
    for count in range(1, 1025):
        size = bucket_for(count, buckets)
        assert size is not None
        assert size >= count
        assert count <= 64 or size < 2 * count
        assert count <= 256 or size <= 1.5 * count
    assert bucket_for(1025, buckets) is None


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, (1,)),
        (4, (1, 4)),
        (8, (1, 4, 8)),
        (256, (1, 4, 16, 64, 128, 256)),
        (1500, (*BUCKETS, 1500)),
    ],
)
def test_the_budget_itself_is_a_bucket(most: int, expected: tuple[int, ...]) -> None:
    assert decode_buckets(most) == expected


MODEL = load_model("llama-3.1-8b")


def plan(**changes: Any) -> Any:
    given: dict[str, Any] = {
        "total": 140 * GIB, "free": 124 * GIB, "utilization": 0.9, "model": MODEL,
        "max_num_batched_tokens": 8192, "max_num_seqs": 1024, "streams": 31, "contexts": 31,
        "capability": (9, 0), "graphs": True,
    }  # fmt: skip
    return plan_memory(**(given | changes))


def test_memory_adds_up() -> None:
    full = plan()
    parts = full.activations + full.workspaces + full.contexts + full.graphs + full.slack
    assert full.kv_bytes + full.used + parts == full.limit == int(0.9 * 140 * GIB)
    assert full.workspaces == 31 * 32 << 20
    assert full.graphs > 0
    assert 95 * GIB < full.kv_bytes < 105 * GIB
    assert plan(graphs=False).kv_bytes == full.kv_bytes + full.graphs
    assert plan(capability=(8, 0)).workspaces == 31 * 8320 * 1024
    assert plan(utilization=0.5).kv_bytes < full.kv_bytes - 50 * GIB
    assert str(full).startswith(f"KV {full.kv_bytes / GIB:.1f} GiB, weights and others 16.0 GiB")


def test_activations_cover_the_largest_tensors() -> None:
    small, large = activation_bytes(MODEL, 1024, 16), activation_bytes(MODEL, 8192, 1024)
    logits = 1024 * MODEL.vocab_size * (4 + 2)
    wings = CACHED_SIDES * 8192 * 2 * MODEL.intermediate_size * 2
    assert large > logits + wings
    assert 4 * small < large


def test_no_room_for_kv_says_what_to_do() -> None:
    with pytest.raises(UsageError) as caught:
        plan(free=10 * GIB, utilization=0.8)
    text = str(caught.value)
    assert "llama-3.1-8b leaves no memory for KV blocks: of 140.0 GiB, 80% may be used" in text
    assert "--gpu-memory-utilization" in text


# -- what a GPU is called --------------------------------------------------------------------------


def facts(name: str, sms: int, gib: float, capability: tuple[int, int]) -> GpuFacts:
    return GpuFacts(name, sms, capability, round(gib * GIB), 50 << 20, 1_980_000, 2_619_000, 5120)


def test_a_shipped_gpu_keeps_its_published_numbers() -> None:
    gpu = gpu_spec(H200, (8, 8))
    assert gpu.name == "NVIDIA H200 (SXM)"
    assert gpu.hbm_gbps == load_gpu("h200").hbm_gbps
    assert gpu.hbm_gib == pytest.approx(139.8)  # what there is, not what is published
    assert gpu_spec(H200, (16, 16)).sm_minimum == 16


@pytest.mark.parametrize(
    ("name", "sms", "gib", "capability", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", 108, 79.3, (8, 0), "a100"),
        ("NVIDIA L40S", 142, 44.4, (8, 9), "l40s"),
        ("NVIDIA GeForce RTX 4090", 128, 23.6, (8, 9), "rtx4090"),
        ("NVIDIA H100 80GB HBM3", 132, 79.1, (9, 0), "h100"),
        ("NVIDIA B200", 148, 178.0, (10, 0), "b200"),
        ("NVIDIA RTX 6000 Ada Generation", 142, 47.4, (8, 9), "rtx6000ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 188, 95.0, (12, 0), "rtxpro6000"),
        ("NVIDIA GeForce RTX 5070 Ti", 70, 15.5, (12, 0), "rtx5070ti"),
        ("NVIDIA RTX A6000", 84, 47.4, (8, 6), "a6000"),
        ("NVIDIA A10G", 80, 22.1, (8, 6), "a10g"),
        ("NVIDIA L4", 58, 22.0, (8, 9), "l4"),
    ],
)
def test_names_as_drivers_say_them(
    name: str, sms: int, gib: float, capability: tuple[int, int], expected: str
) -> None:
    gpu = gpu_spec(facts(name, sms, gib, capability), (8, 8))
    assert gpu.name == load_gpu(expected).name
    assert not gpu.warnings  # they are of times by analogy; this one computes


@pytest.mark.parametrize(
    ("name", "sms", "gib", "capability"),
    [
        ("NVIDIA GH200 480GB", 132, 94.5, (9, 0)),  # no H200
        ("NVIDIA A100-SXM4-40GB", 108, 39.4, (8, 0)),
        ("NVIDIA H100 PCIe", 114, 79.1, (9, 0)),
        ("NVIDIA L40", 142, 44.4, (8, 9)),
    ],
)
def test_others_are_described_by_their_driver(
    name: str, sms: int, gib: float, capability: tuple[int, int]
) -> None:
    gpu = gpu_spec(facts(name, sms, gib, capability), (8, 8))
    assert (gpu.name, gpu.num_sms) == (name, sms)
    assert gpu.hbm_gbps == pytest.approx(2 * 2_619_000e3 * 5120 / 8 / 1e9)
    assert gpu.peak_tflops > 100
    assert gpu.sources["peak_tflops"].startswith("SMs x clock")


def test_a_driver_without_clocks_leads_to_assumptions_that_say_so() -> None:
    bare = msgspec.structs.replace(
        facts("NVIDIA X1", 100, 20, (9, 0)), clock_khz=0, memory_khz=0, bus_bits=0
    )
    gpu = gpu_spec(bare, (8, 8))
    assert gpu.hbm_gbps == load_gpu("h100").hbm_gbps
    assert gpu.sources["hbm_gbps"] == f"assumed: that of the {load_gpu('h100').name}"
    assert gpu.clock_mhz > 1000


def test_the_check_up_tells_splits_and_weights() -> None:
    partitions = green()
    lines = {check.name: check for check in check_gpu(H200, partitions, gpu_spec(H200, (8, 8)))}
    assert lines["driver"].text == "CUDA 13.0"
    assert "132 SMs" in lines["GPU"].text
    assert lines["splits"].text.startswith("15 of prefill/decode: 8/124, 16/116")
    assert (
        lines["contexts"].text == "4.0 MiB of GPU memory each, 2 made for prefill 64, decode 68 SMs"
    )
    assert all(lines[name].ok for name in ("GPU", "driver", "splits", "contexts", "granularity"))
    assert lines["counter nvml"].text
    assert lines["counter cupti"].text
