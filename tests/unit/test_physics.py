"""The simulated GPU's operators: what must hold of any GPU, and the effects that were measured."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.core.batch import BatchShape
from nexusbench.core.specs import GpuSpec
from nexusbench.models.config import load_model
from nexusbench.physics.attention import Attention
from nexusbench.physics.gemm import Gemm
from nexusbench.physics.gpus import gpu_names, load_gpu
from nexusbench.physics.launches import Physics

LLAMA = load_model("llama-3.1-8b")
GPUS = gpu_names()


def physics(name: str) -> Physics:
    return Physics(load_gpu(name), LLAMA)


def attention(gpu: GpuSpec, chunks: tuple[tuple[int, int], ...], count: int, keys: int) -> float:
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    one = Attention(gpu, 32, 8, 128)
    return one.time(chunks, count, count * keys, gpu.num_sms, bandwidth).time / 1e3


@pytest.mark.parametrize("name", GPUS)
def test_more_sms_never_take_longer(name: str) -> None:
    model = physics(name)
    first = min(8, model.gpu.num_sms // 4)
    for shape in (
        BatchShape(64, 64_000),
        BatchShape(0, 0, ((2048, 1000),)),
        BatchShape(16, 16_000, ((512, 0), (100, 300))),
    ):
        times = [model.load(shape, sms).solo for sms in range(first, model.gpu.num_sms + 1, 4)]
        # A wave more or less moves a time by a little, and so does splitting keys differently.
        assert all(b <= a * 1.03 for a, b in pairwise(times))
        assert times[-1] < 0.75 * times[0]


@pytest.mark.parametrize("name", GPUS)
@given(st.integers(1, 4096), st.integers(1, 4096))
def test_more_rows_never_take_less(name: str, a: int, b: int) -> None:
    model = physics(name)
    few, many = sorted((a, b))
    sms = model.gpu.num_sms
    assert model.dense(few, sms).time <= model.dense(many, sms).time * 1.02


@pytest.mark.parametrize("name", GPUS)
def test_parts_add_up(name: str) -> None:
    model = physics(name)
    sms = model.gpu.num_sms
    for shape in (BatchShape(64, 64_000), BatchShape(8, 8000, ((2048, 0),))):
        load = model.load(shape, sms)
        for part in (load.dense, load.attention):
            assert 0 <= part.compute + part.memory <= part.time * (1 + 1e-9)
            assert part.traffic > 0
            assert part.busy >= 0
    layers = model.load(BatchShape(0, 0, ((512, 0),), layers=(0, 16)), sms)
    rest = model.load(BatchShape(0, 0, ((512, 0),), layers=(16, 32)), sms)
    whole = model.load(BatchShape(0, 0, ((512, 0),)), sms)
    twice = layers.solo + rest.solo - model.gpu.sim.step_overhead_us * 1e3
    assert twice == pytest.approx(whole.solo, rel=1e-9)


@pytest.mark.parametrize("name", GPUS)
def test_a_large_product_reaches_the_stated_efficiency(name: str) -> None:
    gpu = load_gpu(name)
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    made = Gemm(gpu).time(8192, 8192, 8192, 2.0, 2.0, gpu.num_sms, bandwidth)
    share = 2 * 8192**3 / made.time / (gpu.peak_tflops * 1e3)
    assert 0.85 * gpu.sim.dense_efficiency < share <= gpu.sim.dense_efficiency
    # One row streams its weights.
    made = Gemm(gpu).time(1, 16384, 16384, 2.0, 2.0, gpu.num_sms, bandwidth)
    assert 0.8 * bandwidth < made.traffic / made.time <= bandwidth
    assert made.memory > 0
    assert made.compute == 0


def test_operands_that_stay_in_l2_are_read_faster() -> None:
    gpu = load_gpu("l40s")
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    cold = Gemm(gpu).time(1, 1024, 4096, 2.0, 2.0, gpu.num_sms, bandwidth)
    warm = Gemm(gpu).time(1, 1024, 4096, 2.0, 2.0, gpu.num_sms, bandwidth, copies=6)
    assert warm.time < cold.time
    large = Gemm(gpu).time(1, 16384, 16384, 2.0, 2.0, gpu.num_sms, bandwidth)
    again = Gemm(gpu).time(1, 16384, 16384, 2.0, 2.0, gpu.num_sms, bandwidth, copies=6)
    assert again == large


def test_decodes_beside_a_chunk_cost_more_on_flashattention_2() -> None:
    # Measured on an RTX 4090: up to three times the sum of the parts.
    ada = load_gpu("rtx4090")
    parts = attention(ada, ((16, 0),), 0, 0) + attention(ada, (), 128, 8193)
    assert 3.0 < attention(ada, ((16, 0),), 128, 8193) / parts < 5.0
    hopper = load_gpu("h200")
    parts = attention(hopper, ((16, 0),), 0, 0) + attention(hopper, (), 128, 8193)
    assert attention(hopper, ((16, 0),), 128, 8193) / parts < 1.3


def test_keys_are_split_over_idle_sms() -> None:
    gpu = load_gpu("rtx4090")
    one, eight = attention(gpu, (), 1, 16_384), attention(gpu, (), 8, 16_384)
    assert one < eight / 4
    chunk = attention(gpu, ((16, 16_368),), 0, 0)  # prefill tiles are not split
    assert chunk > 4 * one


def test_the_constants_decide() -> None:
    gpu = load_gpu("h200")
    slow = msgspec.structs.replace(
        gpu, sim=msgspec.structs.replace(gpu.sim, attention_efficiency=0.3)
    )
    assert attention(slow, ((8192, 0),), 0, 0) > 1.8 * attention(gpu, ((8192, 0),), 0, 0)


@pytest.mark.slow
def test_a_load_is_fast_enough() -> None:
    import time

    model = physics("h100")
    shape = BatchShape(64, 64_000, ((512, 0),))
    model.load(shape, 132)
    best = 1.0
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(1000):
            model.load(shape, 132)
        best = min(best, (time.perf_counter() - start) / 1000)
    assert best < 60e-6  # 4 us on one 2025 core; a shared machine may take ten times as long
