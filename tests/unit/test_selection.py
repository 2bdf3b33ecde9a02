"""Attention to chosen keys and to compressed entries: by hand, and by what must hold."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from nexusbench.core.errors import InputError
from nexusbench.core.kernel_constants import KernelConstants, SparseConstants
from nexusbench.core.mixers import (
    CompressedAttention,
    FullAttention,
    LatentAttention,
    SparseAttention,
)
from nexusbench.experiments.fidelity.aiconfigurator import installed
from nexusbench.experiments.fidelity.sparse_tables import MINIMAX, read_sparse
from nexusbench.physics.compressed import EntryAttention
from nexusbench.physics.gemm import Gemm
from nexusbench.physics.gpus import gpu_names, load_gpu
from nexusbench.physics.operators import NOTHING
from nexusbench.physics.precisions import sparse_constants
from nexusbench.physics.selection import Choice, Gathered, IndexScores, causal
from nexusbench.physics.sparse import INDEX_SHARE, PickedAttention
from tests.examples import slow
from tests.unit.test_physics_by_hand import GPU, near

# On 10 SMs of 1,000 FLOP/ns; HBM gives 100 bytes/ns.
OWN = SparseConstants(
    efficiency=1.0, narrow=2.0, padding=0.25, gather_gbps=50.0, tile_us=1.0, launch_us=20.0,
    token_us=0.5, passes=2.0, overlap=0.1, index_efficiency=0.5, topk_us=4.0, prompt_topk_us=6.0,
    topk_key_ns=2.0,
)  # fmt: skip
KINDS = dict.fromkeys(("latent", "grouped", "entries", "picks"), OWN)
SMALL = replace(GPU, kernels=KernelConstants("hopper", sparse=KINDS))
PAIR = replace(GPU, kernels=KernelConstants("blackwell", sparse=KINDS))
LATENT = LatentAttention(
    num_heads=64, q_rank=96, kv_rank=96, nope_dim=32, rope_dim=32, value_dim=32
)
DSA = SparseAttention(base=LATENT, topk=512, index_heads=32, index_dim=128, index_inputs=96)
BLOCKS = SparseAttention(
    base=FullAttention(num_heads=32, num_kv_heads=2, head_dim=64), topk=512, index_heads=2,
    index_dim=64, index_inputs=256, index_weights=False, block=128, index_dtype="bfloat16",
)  # fmt: skip
ENTRIES = CompressedAttention(
    num_heads=64, head_dim=128, q_rank=96, groups=4, out_rank=64, window=128, ratio=4, topk=256,
    index_heads=8, index_dim=64,
)  # fmt: skip
HEAVY = replace(ENTRIES, ratio=128, topk=0, index_heads=0, index_dim=0)
PLAIN = replace(HEAVY, ratio=0)
ALL = [DSA, BLOCKS, ENTRIES, HEAVY, PLAIN]
Mixer = SparseAttention | CompressedAttention


def kernels(mixer: Mixer, gpu: Any = SMALL, kv: float = 2.0, layers: int = 1) -> Any:
    kind = PickedAttention if isinstance(mixer, SparseAttention) else EntryAttention
    return kind(gpu, mixer, kv, layers=layers)


def test_index_scores_are_products_in_8_bit_of_4_tokens_a_tile():
    scores = IndexScores(SMALL, OWN, 32, 128, 132.0, narrow=True)
    key = 2 * 128 * 128 / (1000 * 2 * 0.5)  # ns of a tile of 128 index queries
    made = scores.time(causal(((40, 1000),)), 0, 0, 10, 1 / 100)
    # 10 tiles see 1,020.5 keys on average and half of a tile's 4 more; the longest decides.
    busy = 1040 * key
    traffic = 1040 * 132 + 40 * 1020.5 * 4
    assert made.busy == near(busy)
    assert made.time == near(busy + 0.1 * traffic / 100)
    assert made.traffic == near(traffic)
    # Twice the time where the GPU has no cores for 8 bit, or keys are of 16.
    ampere = replace(SMALL, kernels=KernelConstants("ampere", sparse=KINDS))
    for gpu, narrow in ((ampere, True), (SMALL, False)):
        wide = IndexScores(gpu, OWN, 32, 128, 132.0, narrow=narrow)
        assert wide.time(causal(((40, 1000),)), 0, 0, 10, 1 / 100).busy == near(2 * busy)


def test_index_scores_of_decodes_are_spread_over_all_sms():
    scores = IndexScores(SMALL, OWN, 32, 128, 132.0, narrow=True)
    made = scores.time([], 2, 20_000.0, 10, 1 / 100)
    busy = 20_000 * 64 * 2 * 128 / 1000 / 10  # at least 64 rows of a tensor core's tile
    moving = 20_000 * (132 + 4) / 100
    assert made.time == near(moving + 0.1 * busy if moving > busy else busy + 0.1 * moving)


def test_nothing_is_chosen_where_all_keys_fit():
    choice = Choice(SMALL, OWN, 512)
    assert choice.time(causal(((100, 412),)), 3, 512.0, 10, 0.0) == NOTHING
    # 88 of 100 tokens have more than 512 keys; a thread block each, in 8.8 waves.
    made = choice.time(causal(((100, 500),)), 0, 0.0, 10, 0.0)
    rows = 100 * (600 - 512) / 99
    work, longest = rows * (6000 + 2 * 556), 6000 + 2 * 600
    mean = work / 89
    busy = work / 10 + 0.8 * (longest - mean + mean * (9 - 8.9))
    assert made.time == near(busy)
    # Decodes are another kernel.
    assert choice.time([], 3, 600.0, 10, 0.0).time == near(4000 + 2 * 600)


def test_a_tile_gathers_its_keys_and_skips_padding():
    shape = {"heads": 64, "rows": 64, "row_flops": 200.0, "key_bytes": 100.0}
    wide = 64 * 200 / 1000
    made = Gathered(SMALL, OWN, **shape).time([], 1, 128.0, 512.0, 10, 1 / 100)
    parts = 8  # of 64 keys at least, on 10 SMs
    each = 128 * (wide + 100 / 50) + 384 * 0.25 * wide
    assert made.time == near(1000 + each / parts + 0.1 * 128 * 100 / 100)
    assert made.compute == 0.0
    # An 8-bit cache: converting takes longer than loading, of padding too.
    narrow = Gathered(SMALL, OWN, **shape, narrow=True, splits=False)
    made = narrow.time([], 1, 128.0, 512.0, 10, 1 / 100)
    assert made.time == near(1000 + 512 * wide * 2 + 0.1 * 128)
    # Prompts find keys in L2; of 30 tokens the last wave is a whole one.
    made = Gathered(SMALL, OWN, **shape).time([(30, 512.0, 128.0, 600.0)], 0, 0, 0, 10, 1 / 100)
    each = 1000 + 128 * wide + 384 * 0.25 * wide
    assert made.time == near(3 * each + 0.1 * 600)
    assert made.memory == 0.0
    # Tiles on pairs of SMs: half of the time, half as many at once.
    pairs = Gathered(SMALL, OWN, **shape, span=2)
    made = pairs.time([(30, 512.0, 128.0, 600.0)], 0, 0, 0, 10, 1 / 100)
    assert made.time == near(6 * (1000 + (128 + 384 * 0.25) * wide / 2) + 0.1 * 600)


def test_a_layer_is_scores_choice_attention_and_small_kernels():
    made = kernels(DSA).time((), 4, 4 * 2000, 10, 100.0)
    scores = IndexScores(SMALL, OWN, 32, 128, 132.0, narrow=True).time([], 4, 8000, 10, 0.01)
    choice = Choice(SMALL, OWN, 512).time([], 4, 2000, 10, 0.01)
    attention = Gathered(
        SMALL, OWN, heads=64, rows=64, row_flops=2.0 * 224, key_bytes=256.0, splits=False
    ).time([], 4, 512.0, 512.0, 10, 0.01)  # fmt: skip
    new = 4 * (2 * (64 * 224 * 2 + 33 * 132) + 128 * 4)
    small = 20_000 + 4 * 500 / 10 + new / 1000  # from L2
    assert made.time == near(scores.time + choice.time + attention.time + small)
    again = kernels(replace(DSA, reuses=True)).time((), 4, 4 * 2000, 10, 100.0)
    new = 4 * (2 * 64 * 224 * 2 + 128 * 4)
    small = (1 - INDEX_SHARE) * (20_000 + 200) + new / 1000
    assert again.time == near(attention.time + small)
    assert kernels(DSA, layers=7).time((), 4, 8000, 10, 100.0).time == near(7 * made.time)
    # In a CUDA graph nothing waits for launches.
    quick = {"latent": replace(OWN, graph_us=5.0)}
    graph = replace(SMALL, kernels=KernelConstants("hopper", sparse=quick))
    assert kernels(DSA, graph).time((), 4, 8000, 10, 100.0).time == near(made.time - 15_000)
    waits = PickedAttention(graph, DSA, eager=True).time((), 4, 8000, 10, 100.0)
    assert waits.time == near(made.time)


@pytest.mark.parametrize("kv", [1.0, 2.0])
@pytest.mark.parametrize("gpu", [SMALL, PAIR])
@pytest.mark.parametrize("mixer", ALL)
def test_times_grow_with_what_is_seen(mixer: Mixer, gpu: Any, kv: float) -> None:
    one = kernels(mixer, gpu, kv)
    assert one.time((), 0, 0, 10, 100.0) == NOTHING
    for count in (1, 40):
        lengths = (1, 100, 128, 129, 511, 512, 513, 2000, 2048, 8000, 64_000)
        times = [one.time((), count, count * length, 10, 100.0).time for length in lengths]
        assert times == sorted(times)
    prompts = [one.time(((n, 0),), 0, 0, 10, 100.0).time for n in (1, 10, 300, 600, 3000, 9000)]
    assert prompts == sorted(prompts)
    later = [one.time(((300, n),), 0, 0, 10, 100.0).time for n in (0, 100, 500, 900, 9000)]
    assert later == sorted(later)
    fewer = [one.time(((300, 9),), 5, 5000, sms, 100.0).time for sms in (10, 6, 2)]
    assert fewer == sorted(fewer)


@pytest.mark.parametrize("mixer", [DSA, BLOCKS, ENTRIES])
def test_beyond_the_picks_only_the_index_grows(mixer: Mixer) -> None:
    one = kernels(mixer)
    near_by, far = (one.time((), 8, 8 * length, 10, 100.0) for length in (20_000, 40_000))
    ratio = mixer.ratio if isinstance(mixer, CompressedAttention) else 1
    more = 8 * 20_000 / ratio * (mixer.index_bytes * ratio + 4)
    chosen = 4.0 * 8 * 20_000 / ratio / getattr(mixer, "block", 1)
    assert far.traffic - near_by.traffic == near(more + chosen)


def test_a_window_alone_does_not_grow() -> None:
    times = [kernels(PLAIN).time((), 8, 8 * length, 10, 100.0).time for length in (128, 50_000)]
    assert times[0] == times[1]


def test_a_prompt_reads_its_window_and_the_one_before_it() -> None:
    made = kernels(PLAIN).time(((10, 1000),), 0, 0, 10, 100.0)
    new = 10 * (2 * 2 * 64 * 128 * 2 + 128 * 4)
    assert made.traffic == near(new + (128 + 10) * 128 * 2)
    # And all entries, or of those that are picked no more than there are.
    heavy = kernels(HEAVY).time(((10, 1000),), 0, 0, 10, 100.0)
    assert heavy.traffic == near(made.traffic + 1010 / 128 * 128 * 2)


def test_a_prompt_reads_what_its_tokens_pick_and_no_more_than_there_is() -> None:
    again = kernels(replace(DSA, reuses=True))  # neither scores nor a choice
    for count, before, read in ((1, 2000, 512), (3, 2000, 3 * 512), (10, 2000, 2010)):
        made = again.time(((count, before),), 0, 0, 10, 100.0)
        new = count * (2 * 64 * 224 * 2 + 128 * 4)
        assert made.traffic == near(new + read * 128 * 2)


def test_prompts_share_launches_by_four() -> None:
    """Keys of four prompts are gathered and converted at once, so that short ones fill no GPU."""
    one = kernels(HEAVY)
    fixed = one.time(((8, 0),), 0, 0, 10, 100.0).time
    many = one.time(((1, 0),) * 8, 0, 0, 10, 100.0).time
    assert many > fixed + 900.0  # a second tile after the first
    three, four, five = (one.time(((1, 0),) * n, 0, 0, 10, 100.0).time for n in (3, 4, 5))
    assert five - four > four - three + 900.0


def test_indexers_are_divided_as_their_heads_are() -> None:
    quarter, half = DSA.shard(4), BLOCKS.shard(2)
    assert isinstance(quarter.base, LatentAttention)
    assert (quarter.base.num_heads, quarter.index_heads) == (16, 32)
    assert (half.base.num_heads, half.index_heads, BLOCKS.shard(8).index_heads) == (16, 1, 1)
    parts = {one.name: (one.inputs, one.outputs) for one in ENTRIES.shard(2).projections(256)}
    assert parts["q_b"] == (96, 32 * 128)
    assert parts["out_a"] == (64 * 128 // 4, 2 * 64)
    assert parts["attn_out"] == (2 * 64, 256)
    assert parts["index_q"] == (96, 8 * 64)


def test_constants_come_from_the_gpu_its_architecture_or_the_h200() -> None:
    for name in gpu_names():
        gpu = load_gpu(name)
        for kind in KINDS:
            assert isinstance(sparse_constants(gpu, kind), SparseConstants)
    latent = load_gpu("h200").kernels.sparse["latent"]
    assert sparse_constants(load_gpu("h100"), "latent") == latent
    assert sparse_constants(load_gpu("a100"), "latent") == latent
    assert sparse_constants(load_gpu("gb200"), "latent") != latent
    assert sparse_constants(SMALL, "latent") == OWN


@pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None,
    reason="aiconfigurator is not installed (pip install nexusbench[validate])",
)
@pytest.mark.parametrize("gpu", ["h200", *slow("h100", "b200")])
def test_measured_modules(gpu: str) -> None:
    found = read_sparse(installed(gpu), load_gpu(gpu), True, 43)
    for kind in ("dsa", "msa", "csa", "hca"):
        for operator in (f"{kind}-prefill", f"{kind}-decode"):
            own = [s for s in found if s.operator == operator and not s.fitted]
            errors = [s.physics_us / s.measured_us - 1 for s in own]
            assert len(own) > 10
            assert 100 * np.abs(errors).mean() < 16.0, operator


def module_table(folder: Path, **changes: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "architecture": [MINIMAX] * 2, "mla_dtype": ["bfloat16"] * 2,
        "kv_cache_dtype": ["bfloat16", "int8"], "gemm_type": ["bfloat16"] * 2,
        "num_heads": [32, 32], "tp_size": [1, 1], "batch_size": [4, 4], "isl": [1, 1],
        "step": [1024, 1024], "latency": [0.1, 0.2], **changes,
    }  # fmt: skip
    path = folder / "msa" / "vllm" / "1.0" / "msa_generation_module_perf.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), path)
    return folder


def test_a_module_is_its_products_and_its_attention(tmp_path: Path) -> None:
    gpu = load_gpu("h200")
    (one,) = read_sparse(module_table(tmp_path), gpu, True)
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    mixer = SparseAttention(
        base=FullAttention(num_heads=32, num_kv_heads=2, head_dim=128), topk=2048, index_heads=2,
        index_dim=128, index_inputs=6144, index_weights=False, block=128, index_dtype="bfloat16",
    )  # fmt: skip
    attention = (
        PickedAttention(gpu, mixer, eager=True).time((), 4, 4096, 132, bandwidth, copies=1).time
    )
    gemm, products = Gemm(gpu), 0.0
    shapes = [(6144, 4608), (4096, 6144), (6144, 256), (6144, 128)]
    weights = sum(i * o for i, o in shapes)
    for i, o in shapes:
        copies = -(-weights // (i * o))
        products += gemm.time(4, i, o, 2.0, 2.0, 132, bandwidth, copies=copies).time
    assert one.physics_us == pytest.approx((attention + products) / 1e3)
    # 32 heads are held out.
    assert (one.operator, one.fitted, one.count) == ("msa-decode", False, 1024)


def test_a_broken_table_names_row_and_column(tmp_path: Path) -> None:
    broken = module_table(tmp_path, num_heads=[16, 0])
    with pytest.raises(InputError, match=r"module_perf\.parquet: field 'num_heads': row 2: "):
        read_sparse(broken, load_gpu("h200"), False)
