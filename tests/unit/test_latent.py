"""Latent attention, by hand and by what must hold, and its measured tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from nexusbench.core.errors import InputError
from nexusbench.core.kernel_constants import KernelConstants, LatentConstants
from nexusbench.experiments.fidelity import latent_tables
from nexusbench.experiments.fidelity.aiconfigurator import installed
from nexusbench.experiments.fidelity.latent_tables import read_latent
from nexusbench.experiments.fidelity.samples import KernelSample
from nexusbench.physics.attention import Attention
from nexusbench.physics.gemm import Gemm
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.latent import AbsorbedAttention, ExpandedAttention
from nexusbench.physics.operators import NOTHING
from tests.examples import slow
from tests.unit.test_physics_by_hand import GPU, near

# 1,000 FLOP/ns in each of 10 SMs, of which one takes 64 bytes of latent keys per ns.
LATENT = LatentConstants(
    efficiency=1.0, sm_gbps=64.0, tile_us=1.0, launch_us=20.0, combine_us=2.0, passes=2.0,
    overlap=0.1, token_us=0.5, prefill_block=0.5, prefill_passes=3.0, prefill_launch_us=30.0,
    graph_us=8.0, prefill_graph_us=9.0,
)  # fmt: skip
OWN = replace(GPU, kernels=KernelConstants("hopper", latent=LATENT))
TRITON = replace(OWN, sim=replace(OWN.sim, attention_kernel="fa2"))
COMPUTE, BYTES = 2 * (2 * 512 + 64) * 64 * 64 / 1000, 64 * 576 * 2


def test_a_tile_packs_64_heads_and_its_keys_are_split_over_idle_sms():
    made = AbsorbedAttention(OWN, 64, 512, 64, eager=True).time((), 1, 6400, 10, 100.0)
    block = max(COMPUTE, BYTES / 64)
    assert block == COMPUTE
    busy = 1000 + 10 * block  # 100 blocks in 10 parts
    new = 2 * 64 * 1088 * 2 + 576 * 4
    # Queries and outputs are in L2, at 1,000 bytes per ns.
    moving = 6400 * 1152 / 100
    assert made.time == near(20_000 + 2_000 + 500 / 10 + new / 1000 + busy + 0.1 * moving)
    assert made.traffic == near(new + 6400 * 1152)
    assert made.busy == near(64 * 6400 * 2 * 1088 / 1000 / 10)
    assert made.memory == 0.0
    # From a CUDA graph kernels do not wait for their launches.
    step = AbsorbedAttention(OWN, 64, 512, 64).time((), 1, 6400, 10, 100.0)
    assert made.time - step.time == near(20_000 - 8_000)
    # Two tiles a sequence: half as many parts; the same keys are read once.
    wide = AbsorbedAttention(OWN, 128, 512, 64).time((), 1, 6400, 10, 100.0)
    assert wide.compute - made.compute == near(10 * block)


def test_few_heads_wait_for_their_keys():
    made = AbsorbedAttention(OWN, 8, 512, 64).time((), 100, 100 * 10_000, 10, 10.0)
    moving = 100 * 10_000 * 1152 / 10
    assert made.memory == near(moving + 0.1 * (100 * (1000 + 157 * COMPUTE) / 10))
    assert made.compute == 0.0


def test_a_short_chunk_is_a_wider_decode():
    latent = AbsorbedAttention(OWN, 32, 512, 64)
    assert latent.time(((1, 99),), 0, 0, 10, 100.0) == latent.time((), 1, 100, 10, 100.0)
    assert latent.time((), 0, 0, 10, 100.0) == NOTHING
    times = [latent.time(((count, 100),), 0, 0, 10, 100.0).time for count in (1, 8, 64, 512)]
    assert times == sorted(times)
    # 512 tokens of 32 heads are 256 tiles, which see half of the chunk on average.
    tokens, keys, tiles, blocks, longest, pairs = latent._prompts(((512, 128),))
    assert (tokens, keys, tiles, longest) == (512, 640, 256, 10)
    assert blocks == near(256 * ((128 + 256.5) / 64 + 0.5))
    assert pairs == 512 * (128 + 256.5)


def test_tiles_of_16_heads_read_keys_again_where_l2_does_not_hold_them():
    # 8 tiles a sequence; of 20 sequences on 10 SMs no two tiles of one run at the same time.
    latent = AbsorbedAttention(TRITON, 128, 512, 64)
    for count, again in ((20, 8.0), (5, 4.0), (1, 1.0)):
        made = latent.time((), count, count * 2000, 10, 100.0)
        assert made.traffic == near(
            count * (2 * 128 * 1088 * 2 + 576 * 4) + again * count * 2000 * 1152
        )
    small = latent.time((), 20, 20 * 10, 10, 100.0)
    assert small.traffic == near(20 * (2 * 128 * 1088 * 2 + 576 * 4) + 200 * 1152)


def test_expanded_prefill_is_attention_without_sharing():
    made = ExpandedAttention(OWN, 16, 192, 128, eager=True).time(((512, 0),), 0, 0, 10, 100.0)
    step = ExpandedAttention(OWN, 16, 192, 128).time(((512, 0),), 0, 0, 10, 100.0)
    assert made.time - step.time == near(30_000 - 9_000)
    plain = replace(
        OWN, sim=replace(OWN.sim, attention_block_us=0.25, attention_launch_us=30.0)
    )  # fmt: skip
    # Half of a block's time, three times the bytes of a token, and its small kernels.
    like = Attention(replace(plain, peak_tflops=20.0), 16, 16, 160)
    like._new_bytes *= 3.0
    expected = like.time(((512, 0),), 0, 0, 10, 100.0)
    assert made.time == near(expected.time + 512 * 500 / 10)


@pytest.mark.parametrize("name", ["h200", "l40s", "a100"])
def test_more_keys_heads_or_sequences_take_longer(name):
    gpu = load_gpu(name)
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency

    def time(heads=16, count=8, context=4096):
        latent = AbsorbedAttention(gpu, heads, 512, 64)
        return latent.time((), count, count * context, gpu.num_sms, bandwidth).time

    assert time() < time(context=65536)
    assert time() < time(heads=128)
    assert time() < time(count=128)
    # Never faster than HBM.
    assert time(count=64, context=65536) > 64 * 65536 * 1152 / gpu.hbm_gbps


@pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None,
    reason="aiconfigurator is not installed (pip install nexusbench[validate])",
)
@pytest.mark.parametrize("gpu", ["h200", *slow("h100", "l40s")])
def test_measured_modules(gpu: str) -> None:
    found = read_latent(installed(gpu), load_gpu(gpu), True, 9)
    held: dict[str, list[KernelSample]] = {}
    for one in found:
        if not one.fitted:
            held.setdefault(one.operator, []).append(one)
    for operator in ("mla-prefill", "mla-decode"):
        assert len(held[operator]) > 30
        assert mape(held[operator]) < 12.0, operator
        heads = {s.curve[0] for s in held[operator] if s.curve is not None}
        assert heads <= {2, 8, 32, 128}
    if gpu == "l40s":
        return  # has no modules from a graph
    for operator in ("mla-graph-prefill", "mla-graph-decode"):
        short = [s for s in held[operator] if s.measured_us < 150]
        assert len(short) > 8
        assert mape(short) < 12.0, operator


def mape(samples: list[KernelSample]) -> float:
    return float(100 * np.abs([s.physics_us / s.measured_us - 1 for s in samples]).mean())


def module_table(folder: Path, **changes: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "kernel_source": ["FLASH_ATTN_MLA", "FLASH_ATTN_MLA"], "mla_dtype": ["bfloat16"] * 2,
        "architecture": [latent_tables.ARCHITECTURE] * 2, "kv_cache_dtype": ["bfloat16", "fp8"],
        "gemm_type": ["bfloat16"] * 2, "num_heads": [16, 16], "batch_size": [4, 4], "isl": [1, 1],
        "step": [1024, 1024], "latency": [0.1, 0.2], **changes,
    }  # fmt: skip
    path = folder / "mla" / "vllm" / "1.0" / "mla_generation_module_perf.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), path)
    return folder


def test_a_module_is_its_products_and_its_attention(tmp_path: Path) -> None:
    gpu = load_gpu("h200")
    (one,) = read_latent(module_table(tmp_path), gpu, True)
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    kernel = AbsorbedAttention(gpu, 16, 512, 64, eager=True)
    attention = kernel.time((), 4, 4096, 132, bandwidth, copies=1).time
    gemm, products = Gemm(gpu), 0.0
    shapes = [(7168, 2112, 1), (1536, 3072, 1), (2048, 7168, 1), (128, 512, 16), (512, 128, 16)]
    weights = sum(i * o * g for i, o, g in shapes)
    for i, o, g in shapes:
        copies = -(-weights // (i * o * g))
        products += gemm.time(4, i, o, 2.0, 2.0, 132, bandwidth, copies=copies, groups=g).time
    assert one.physics_us == pytest.approx((attention + products) / 1e3)
    assert (one.operator, one.fitted, one.curve, one.count) == ("mla-decode", True, (16, 4), 1024)


def test_a_broken_table_names_row_and_column(tmp_path: Path) -> None:
    broken = module_table(tmp_path, num_heads=[16, 0])
    with pytest.raises(InputError, match=r"module_perf\.parquet: field 'num_heads': row 2: "):
        read_latent(broken, load_gpu("h200"), False)
