"""The simulated GPU's operators worked out on paper, for a GPU and a model with round numbers."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nexusbench.core.batch import Batch, BatchShape
from nexusbench.core.specs import GpuSpec, SimConstants
from nexusbench.devices.base import DeviceOptions
from nexusbench.devices.sim import Sim
from nexusbench.physics.attention import Attention
from nexusbench.physics.collectives import Collectives
from nexusbench.physics.gemm import Gemm
from nexusbench.physics.launches import Physics
from nexusbench.physics.operators import (
    L2,
    NOTHING,
    OperatorClass,
    attainable,
    clock,
    filled,
    overlapped,
    scaled_sum,
    total,
)
from nexusbench.physics.profiled import along, axis_of, distance, full_grid, mean, spread
from nexusbench.physics.remote import split_launch
from nexusbench.physics.sharing import LaunchLoad
from nexusbench.testing import tiny_model

# 10 SMs of 1,000 FLOP/ns each; 100 bytes/ns of HBM, all of it attainable.
SIM = SimConstants(
    dense_efficiency=1.0, attention_efficiency=1.0, bandwidth_efficiency=1.0,
    bandwidth_curve=((0.0, 0.0), (0.2, 0.5), (0.6, 0.9), (1.0, 1.0)), kernel_us=2.0,
    step_overhead_us=300.0, dense_interference=0.2, attention_interference=0.5,
    stream_interference=0.1, turn_taking=0.25, jitter=0.0, dense_launch_us=3.0,
    dense_wave_share=0.5, dense_overlap=0.1, dense_depth_us=0.2, dense_epilogue_us=1.0,
    dense_split_us=1.5, attention_kernel="fa3", attention_launch_us=6.0, attention_tile_us=1.0,
    attention_block_us=0.5, attention_empty_us=0.3, attention_tail=0.8, attention_overlap=0.3,
    attention_combine_us=3.5, attention_swap_us=4.5, l2_gbps=1000.0, l2_share=0.5,
)  # fmt: skip
GPU = GpuSpec(
    name="Round", num_sms=10, clock_mhz=1000.0, peak_tflops=10.0, hbm_gib=4.0, hbm_gbps=100.0,
    l2_mib=1.0, sm_minimum=1, sm_multiple=1, link_gbps=50.0, link_latency_us=7.0, sim=SIM,
    sources={},
)  # fmt: skip
FA2 = replace(GPU, sim=replace(SIM, attention_kernel="fa2"))
MODEL = tiny_model()  # 4 layers, 256 wide, 4 heads and 2 KV heads of 64, 512 inside, 1,000 words


def near(value):
    return pytest.approx(value, rel=1e-12)


# -- how groups of kernels add up ------------------------------------------------------------------


def test_the_shorter_of_compute_and_memory_hides_but_for_its_exposed_share():
    made = overlapped(5.0, 100.0, 40.0, 0.25, 7.0, 1.0)
    assert made == OperatorClass(115.0, 110.0, 0.0, 100.0, 7.0, 1.0, 1.0, 110.0)
    made = overlapped(5.0, 40.0, 100.0, 0.25, 7.0, 1.0)
    assert made == OperatorClass(115.0, 0.0, 110.0, 40.0, 7.0, 1.0, 1.0, 110.0)
    even = overlapped(0.0, 40.0, 40.0, 0.25, 7.0, 1.0)  # bound by compute, not by memory
    assert (even.compute, even.memory) == (50.0, 0.0)


def test_tiles_hold_their_sms_in_turns():
    """2.5 tiles an SM are 2.5 turns, and hold 5/6 of the SMs of three waves; half a tile is one."""
    made = overlapped(5.0, 90.0, 0.0, 0.25, 7.0, 2.5)
    assert (made.turns, made.held) == (2.5, near(75.0))
    made = overlapped(5.0, 90.0, 0.0, 0.25, 7.0, 0.5)
    assert (made.turns, made.held) == (1.0, 45.0)
    assert filled(3.0) == 1.0


def test_sums_of_classes():
    a = OperatorClass(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    b = OperatorClass(10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0)
    assert total([a, b, a]) == OperatorClass(12.0, 24.0, 36.0, 48.0, 60.0, 72.0, 84.0, 96.0)
    assert scaled_sum(a, 3.0, b) == OperatorClass(13.0, 26.0, 39.0, 52.0, 65.0, 78.0, 91.0, 104.0)


def test_l2_holds_what_fits_and_lets_go_of_it_gradually():
    """Half of 1 MiB: all of it up to that size, none from 1.25 times on, half in between."""
    l2, kept = L2(GPU), 0.5 * 1024 * 1024
    warm = 1.0 / 1000 * 10 / 5  # on half of the SMs
    assert l2.per_byte(kept, 5, 0.01) == near(warm)
    assert l2.per_byte(1.125 * kept, 5, 0.01) == near((warm + 0.01) / 2)
    assert l2.per_byte(1.25 * kept, 5, 0.01) == 0.01
    assert l2.per_byte(2 * kept, 5, 0.01) == 0.01
    assert l2.per_byte(1.0, 5, 0.001) == 0.001  # L2 is never slower than HBM


def test_bandwidth_follows_its_curve():
    shares = [attainable(GPU, sms) for sms in (0, 1, 2, 4, 6, 8, 10)]
    assert shares == [near(100 * y) for y in (0, 0.25, 0.5, 0.7, 0.9, 0.95, 1.0)]
    slow = replace(GPU, sim=replace(SIM, bandwidth_efficiency=0.8))
    assert attainable(slow, 2) == near(40.0)


# -- dense layers ----------------------------------------------------------------------------------


def test_a_product_of_whole_tiles():
    """2,560 x 1,024 outputs are 80 of the largest tiles: 8 on each of 10 SMs."""
    made = Gemm(GPU).time(2560, 1000, 1024, 2.0, 2.0, 10, 100.0)
    tile = 2.0 * 256 * 128 * 1000 / 1000  # FLOPs over one SM's rate
    busy = 8 * (tile + 1000)
    traffic = 1000 * 1024 * 2.0 + 2560 * (1000 + 1024) * 2.0
    moving = traffic / 100
    assert made.busy == near(busy)
    assert made.traffic == near(traffic)
    assert made.time == near(3000 + 0.2 * 1000 + busy + 0.1 * moving)
    assert made.compute == near(busy + 0.1 * moving)
    assert made.memory == 0.0


def test_a_last_wave_that_is_not_full_costs_its_share():
    """A 256 x 1,536 product: 12 large tiles on 10 SMs are 1.2 waves, counted as 1.6."""
    made = Gemm(replace(GPU, sim=replace(SIM, dense_launch_us=0.0, dense_depth_us=0.0)))
    busy = {}
    for height, width, share in ((256, 128, 1.0), (128, 128, 0.99), (64, 128, 1.0), (64, 64, 0.93)):
        tiles = (256 // height) * (1536 // width)
        waves = tiles / 10
        waves += 0.5 * (-(-tiles // 10) - waves)
        tile = 2.0 * height * width * 8000 / (1000 * share)
        busy[height, width] = waves * (tile + 1000 * height * width / 32768)
    assert min(busy, key=busy.get) == (64, 128)
    moving = (8000 * 1536 * 2.0 + 256 * (8000 + 1536) * 2.0) / 1e6
    found = made.time(256, 8000, 1536, 2.0, 2.0, 10, 1e6)
    assert found.time == near(busy[64, 128] + 0.1 * moving)


def test_few_tiles_split_the_inner_dimension():
    """One 64 x 64 tile on 10 SMs: eight parts of the inner dimension, and their reduction."""
    found = Gemm(GPU).time(64, 8000, 64, 2.0, 2.0, 10, 1e6)
    tile = 2.0 * 64 * 64 * 8000 / (1000 * 0.93)
    busy = tile / 8 + 1000 * 64 * 64 / 32768
    fixed = 3000 + 0.2 * 8000 / 8 + 1500 + 8 * 64 * 64 * 4.0 / 1e6
    moving = (8000 * 64 + 64 * (8000 + 64)) * 2.0 / 1e6
    # A wave with 8 of 10 SMs at work counts as one.
    assert found.busy == near(busy)
    assert found.time == near(fixed + busy + 0.1 * moving)


def test_one_row_streams_its_weights():
    found = Gemm(GPU).time(1, 1000, 1280, 2.0, 2.0, 10, 1.0)
    traffic = 1000 * 1280 * 2.0 + 2280 * 2.0
    assert found.traffic == near(traffic)
    assert found.memory > 0.99 * traffic
    assert found.compute == 0.0
    weights_once = Gemm(GPU).time(1, 1000, 1280, 1.0, 2.0, 10, 1.0)
    assert found.traffic - weights_once.traffic == near(1000 * 1280)


# -- attention -------------------------------------------------------------------------------------


def fa(gpu=GPU, heads=4, kv_heads=2, dim=64, **more):
    return Attention(gpu, heads, kv_heads, dim, **more)


HOPPER_BLOCK = 4.0 * 128 * 128 * 64 / 1000 + 500 * 128 * 128 / 16384  # ns of a tile and 128 keys


def test_a_chunk_of_one_tile_on_flashattention_3():
    """64 tokens of two query heads each are 128 packed rows: one tile for each KV head."""
    found = fa().time(((64, 64),), 0, 0, 10, 1e9)
    longest = 1000 + 1 * HOPPER_BLOCK  # 128 keys, one block
    assert found.busy == near(longest)
    new = 64 * (2.0 * 4 * 64 * 2 + 2.0 * 2 * 64 * (2 + 2))
    read = 128 * 2.0 * 2 * 64 * 2
    assert found.traffic == near(new + read)
    assert found.time == pytest.approx(6000 + longest, rel=1e-4)
    assert found.memory == 0.0


def test_a_causal_chunk_computes_half_of_its_square():
    """1,024 tokens: 16 tiles for each of 2 KV heads, whose edges walk through 1 to 8 blocks."""
    found = fa().time(((1024, 0),), 0, 0, 10, 1e9)
    span = 64  # tokens of a tile
    mean = (1024 + span) / 2 / 128 + (128 - span) / 256
    work = 32 * (1000 + mean * HOPPER_BLOCK)
    longest = 1000 + 8 * HOPPER_BLOCK
    last = longest - work / 32 + work / 32 * (4 - 3.2)
    assert found.busy == near(work / 10 + 0.8 * last)


def test_layers_and_key_bytes_scale_what_they_should():
    one, four = (
        fa().time(((512, 0),), 0, 0, 10, 50.0),
        fa(layers=4).time(((512, 0),), 0, 0, 10, 50.0),
    )
    assert four == OperatorClass(*(4 * getattr(one, n) for n in one.__struct_fields__))
    half = fa(kv_bytes=1.0).time(((512, 512),), 0, 0, 10, 50.0)
    full = fa(kv_bytes=2.0).time(((512, 512),), 0, 0, 10, 50.0)
    assert full.traffic - half.traffic == near((1024 + 512) * 2 * 2 * 64)


def test_decodes_alone_wait_for_their_keys():
    """8 decodes of 1,000 keys and 2 KV heads: 16 tiles of 64 rows on 10 SMs."""
    found = fa().time((), 8, 8000, 10, 1e-2)
    small = HOPPER_BLOCK / 2
    single = 1000 + 8 * small
    busy = 16 * single / 10 + 0.8 * single * (2 - 1.6)
    read = 8000 * 2.0 * 2 * 64 * 2
    new = 8 * (2.0 * 4 * 64 * 2 + 2.0 * 2 * 64 * 4)
    assert found.traffic == near(read + new)
    cold = read / 1e-2
    assert found.memory == near(cold + 0.3 * busy)
    assert found.compute == 0.0
    assert found.busy == near(8000 * 4.0 * 64 * 2 * 16 / 1000 / 10)
    # New values come through L2, which is faster than this HBM.
    assert found.time == near(6000 + new * (1 / 1000) + cold + 0.3 * busy)


@pytest.mark.parametrize(("gpu", "rows", "waves"), [(GPU, 128, 1), (FA2, 64, 2)])
def test_long_keys_of_few_decodes_are_split_over_idle_sms(gpu, rows, waves):
    """One decode of 4,096 keys: 2 tiles on 10 SMs become 10 (FlashAttention-2, which counts on two
    thread blocks for each SM: 20), and their parts are merged.
    """
    keys = 128 if rows == 128 else 256
    block = (4.0 * rows * keys * 64 / 1000 + 500 * rows * keys / 16384) * 64 / rows
    found = fa(gpu).time((), 1, 4096, 10, 1e9)
    blocks = 4096 // keys
    busy = waves * (1000 + -(-blocks // (5 * waves)) * block)
    assert found.time == pytest.approx(6000 + 3500 + busy, rel=1e-3)


def test_flashattention_2_regroups_the_heads_of_several_decodes():
    """16 tiles for 20 thread blocks are as good as full: nothing is split. They are 1.6 waves."""
    block = 4.0 * 64 * 256 * 64 / 1000 + 500 * 64 * 256 / 16384
    busy = (1000 + 4 * block) * (1.6 + 0.8 * 0.4)
    found = fa(FA2).time((), 8, 8 * 1024, 10, 1e9)
    assert found.time == pytest.approx(6000 + 4500 + busy, rel=1e-3)
    # With as many KV heads as query heads there is nothing to regroup.
    same = fa(FA2, heads=2).time((), 8, 8 * 1024, 10, 1e9)
    assert same.time == pytest.approx(6000 + busy, rel=1e-3)


@pytest.mark.parametrize(("dim", "keys"), [(64, 256), (128, 128), (256, 64)])
def test_wider_heads_take_fewer_keys_at_a_time_on_flashattention_2(dim, keys):
    block = 4.0 * 64 * keys * dim / 1000 + 500 * 64 * keys / 16384
    found = fa(FA2, dim=dim).time(((64, keys - 64),), 0, 0, 10, 1e9)
    assert found.time == pytest.approx(6000 + 1000 + block, rel=1e-3)
    more = fa(FA2, dim=dim).time(((64, keys - 63),), 0, 0, 10, 1e9)
    assert more.time == pytest.approx(6000 + 1000 + 2 * block, rel=1e-3)


def test_thread_blocks_without_rows_cost_a_little_on_flashattention_2():
    """Of 64 and 256 tokens each gets the 4 thread blocks of the longer: 3 x 4 heads find none."""
    block = 4.0 * 64 * 256 * 64 / 1000 + 500 * 64 * 256 / 16384
    found = fa(FA2).time(((64, 192), (256, 0)), 0, 0, 10, 1e9)
    mean = min(1.0, (256 + 64) / 2 / 256 + (256 - 64) / 512)
    work = 4 * (1000 + block) + 16 * (1000 + mean * block) + 12 * 300
    longest, tiles = 1000 + block, 20
    last = longest - work / tiles + work / tiles * (2 - 2.0)
    assert found.busy == near(max(longest, work / 10 + 0.8 * last))


def test_decodes_beside_a_chunk_take_whole_tiles_on_flashattention_2():
    """A tile for each of 4 query heads of both decodes, and 4 of the chunk: 12 on 10 SMs."""
    block = 4.0 * 64 * 256 * 64 / 1000 + 500 * 64 * 256 / 16384
    found = fa(FA2).time(((64, 192),), 2, 2 * 512, 10, 1e9)
    single = 1000 + 2 * block
    work = 4 * (1000 + block) + 8 * single
    mean = work / 12
    busy = work / 10 + 0.8 * (single - mean + mean * (2 - 1.2))
    streamed = 8 * single / work
    assert found.busy == near(busy * (1 - streamed) + 1024 * 4.0 * 64 * 2 * 16 / 1000 / 10)
    assert found.memory == pytest.approx(busy * streamed, rel=1e-6)
    assert found.compute == pytest.approx(busy * (1 - streamed), rel=1e-6)


def test_keys_that_leave_l2_are_read_once_per_query_head():
    """8 query heads on 2 KV heads: four reads of each key, fewer where SMs run heads together."""

    def read(count, context, sms):
        made = fa(FA2, heads=8).time(((64, 0),), count, context, sms, 100.0)
        new = (64 + count) * (2.0 * 8 * 64 * 2 + 2.0 * 2 * 64 * 4)
        return (made.traffic - new) / (2.0 * 2 * 64 * 2) - 64

    fits = 1024 * 1024 * 2 // 512  # keys: 512 bytes each, two KV heads in turn
    assert read(10, fits, 10) == near(fits)
    assert read(10, fits + 1, 10) == near(4 * (fits + 1))
    assert read(5, fits + 1, 10) == near(2 * (fits + 1))
    assert read(2, fits + 1, 10) == near(fits + 1)


# -- a whole step ----------------------------------------------------------------------------------


def test_element_wise_kernels_take_their_bytes_or_their_launch():
    made = Physics(GPU, MODEL)
    large = 1e9
    found = made.streamed(large, 10)
    assert (found.time, found.memory, found.traffic) == (near(1e7), near(1e7), large)
    assert found.compute == found.busy == 0.0
    assert made.streamed(1000.0, 10).time == 2000.0
    assert made.streamed(1000.0, 10, kernels=3).time == 6000.0


def test_rows_are_counted_in_granules_of_sixteen():
    made = Physics(GPU, MODEL)
    assert made.dense(1, 10) == made.dense(16, 10)
    assert made.dense(17, 10) == made.dense(32, 10) != made.dense(16, 10)
    assert made.head(1, 10) == made.head(16, 10) != made.head(17, 10)


def test_the_dense_layers_are_their_products_and_their_element_wise_kernels():
    made = Physics(GPU, MODEL)
    gemm, band = Gemm(GPU), attainable(GPU, 4)
    rows = 64
    parts = [
        gemm.time(rows, inputs, outputs, 2.0, 2.0, 4, band)
        for inputs, outputs in ((256, 512), (256, 256), (256, 1024), (512, 256))
    ]
    for values in (4 * 256, 4 * 256, 2 * 6 * 64, 3 * 512):
        parts.append(made.streamed(rows * values * 2.0, 4))
    one = total(parts)
    found = made.dense(rows, 4)
    for name in one.__struct_fields__:
        assert getattr(found, name) == pytest.approx(4 * getattr(one, name), rel=1e-12), name


def test_the_head_is_one_product_and_two_passes_over_its_logits():
    made = Physics(GPU, MODEL)
    product = Gemm(GPU).time(16, 256, 1000, 2.0, 2.0, 10, 100.0)
    logits = 16 * 1000 * 4.0 * 2
    found = made.head(3, 10)
    assert found.time == near(product.time + max(2 * 2000, logits / 1000))
    assert found.traffic == near(product.traffic + logits)


def test_a_step_is_its_overhead_its_layers_and_its_head():
    made = Physics(GPU, MODEL)
    shape = BatchShape(3, 300, ((40, 10), (50, 0)))
    found = made.load(shape, 10)
    dense, head = made.dense(93, 10), made.head(5, 10)
    attention = made.attention(shape, 10)
    assert found.dense.time == near(dense.time + head.time)
    assert found.attention == attention
    assert found.solo == near(300_000 + dense.time + head.time + attention.time)
    assert attention == made._attention.kernel.time(((40, 10), (50, 0)), 3, 303, 10, 100.0)
    # A piece of the layers has its share, and the head if it has the last of them.
    first = made.load(replace(shape, layers=(0, 3)), 10)
    last = made.load(replace(shape, layers=(3, 4)), 10)
    assert first.dense.time == near(0.75 * dense.time)
    assert last.dense.time == near(0.25 * dense.time + head.time)
    assert first.attention.time == near(0.75 * attention.time)
    assert first.solo == near(300_000 + 0.75 * (dense.time + attention.time))


@pytest.mark.parametrize("gpus", [2, 4])
def test_a_layer_pays_two_all_reduces(gpus):
    """After attention and after the MLP; what each takes: tests/unit/test_collectives.py."""
    wide = replace(MODEL, num_heads=8, num_kv_heads=4)
    one, made = Physics(GPU, wide), Physics(GPU, wide, gpus)
    shape = BatchShape(100, 10_000)
    each = Collectives(GPU, gpus).all_reduce(100 * 256 * 2)
    found = made.load(shape, 10)
    own = 300_000 + found.dense.time + found.attention.time
    assert found.solo - own == near(2 * 4 * each)
    # Half of the layers reduce half as often; on one GPU there is nothing to reduce.
    half = made.load(replace(shape, layers=(0, 2)), 10)
    assert half.solo - (300_000 + half.dense.time + half.attention.time) == near(4 * each)
    alone = one.load(shape, 10)
    assert alone.solo == near(300_000 + alone.dense.time + alone.attention.time)


def test_a_slower_link_hurts_by_its_latency_even_for_one_token():
    patient = replace(GPU, link_latency_us=107.0)
    shape = BatchShape(1, 10)
    made, slow = (Physics(gpu, MODEL, 2).load(shape, 10).solo for gpu in (GPU, patient))
    assert slow - made > 2 * 4 * 10_000


# -- two at once -----------------------------------------------------------------------------------


def both(mine, theirs, sms=5, beside=5, solo=1000.0, other=1000.0):
    """How much longer a launch of one class takes beside another of one class."""
    made = Physics(GPU, MODEL)
    return (
        made.slowdown(
            LaunchLoad(solo, sms, mine, NOTHING), LaunchLoad(other, beside, theirs, NOTHING)
        )
        - 1.0
    )


def stream(rate, time=1000.0):
    """Bound by memory all of its time, at a rate in bytes per ns."""
    return OperatorClass(time, 0.0, time, 0.0, rate * time, 1.0, 1.0, time)


def crunch(rate=0.0, time=1000.0, busy=None, turns=1.0, held=1.0):
    """Bound by compute all of its time, on ``held`` of its SMs."""
    busy = time if busy is None else busy
    return OperatorClass(time, time, 0.0, busy, rate * time, 1.0, turns, held * time)


def test_bandwidth_is_shared_fairly():
    assert both(stream(80), stream(10)) == 0.0  # together within what there is
    assert both(stream(80), stream(40)) == near(80 / 60 - 1)  # what the other leaves
    assert both(stream(80), stream(70)) == near(80 / 50 - 1)  # but half at least
    assert both(stream(40), stream(90)) == 0.0  # a side that wants less than half gets it
    assert both(stream(50), stream(90)) == 0.0


def test_a_busy_neighbour_disturbs_memory_and_a_streaming_one_compute():
    assert both(stream(10), crunch()) == near(0.2 * 0.5)  # its SMs are half of all
    assert both(stream(10), crunch(busy=250.0)) == near(0.2 * 0.5 * 0.25)
    assert both(crunch(), stream(40)) == near(0.1 * 0.4)
    assert both(crunch(), stream(400)) == near(0.1)
    made = Physics(GPU, MODEL)
    beside = LaunchLoad(1000.0, 5, NOTHING, crunch())  # the same from attention
    assert made.slowdown(LaunchLoad(1000.0, 5, stream(10), NOTHING), beside) == near(1 + 0.5 * 0.5)


def test_classes_meet_for_the_product_of_their_shares_of_time():
    """Half of each launch meets a fifth of the other: half a fifth of the whole delay."""
    assert both(stream(80, 500.0), stream(40, 200.0)) == near((80 / 60 - 1) * 0.5 * 0.2)
    made = Physics(GPU, MODEL)
    mine = LaunchLoad(1000.0, 5, stream(80, 500.0), stream(80, 500.0))
    assert made.slowdown(mine, LaunchLoad(1000.0, 5, stream(40), NOTHING)) == near(80 / 60)


def test_on_shared_sms_they_take_turns_or_overlap():
    """6 + 6 of 10 SMs: a third of mine is shared, a quarter of it alternates."""
    turns = 0.25 * 1.0
    assert both(crunch(), crunch(), 6, 6) == near((turns + 0.75 * 1.0) / 3)
    half = crunch(busy=500.0)
    assert both(half, half, 6, 6) == near(turns / 3)  # both fit beside each other
    most = crunch(busy=750.0)
    assert both(most, most, 6, 6) == near((turns + 0.75 * 0.5) / 3)
    assert both(crunch(), crunch(), 5, 5) == 0.0
    assert both(crunch(), crunch(), 4, 5) == 0.0
    assert both(crunch(), crunch(), 10, 10) == near(1.0)


def test_waves_of_both_alternate_so_that_the_shorter_ones_wait_longer():
    """Ten waves of 100 ns beside two of 500: each of the ten waits for one of the two."""
    short, long = crunch(busy=0.0, turns=10.0), crunch(busy=0.0, turns=2.0)
    assert both(short, long, 10, 10) == near(0.25 * 5.0)
    assert both(long, short, 10, 10) == near(0.25 / 5.0)


def test_a_neighbour_may_get_in_after_some_waves_or_after_a_whole_kernel():
    """One kernel of ten waves of 100 ns beside one of two of 500."""
    short, long = crunch(busy=0.0, turns=10.0), crunch(busy=0.0, turns=2.0)
    for wave_yield, turns_of_short, turns_of_long in ((0.0, 1.0, 1.0), (0.5, 5.5, 1.5)):
        made = Physics(replace(GPU, sim=replace(SIM, wave_yield=wave_yield)), MODEL)
        sides = [LaunchLoad(1000.0, 10, side, NOTHING) for side in (short, long)]
        waits = 0.25 * turns_of_short / turns_of_long
        assert made.slowdown(*sides) == near(1 + waits)


def test_what_holds_no_sm_makes_nothing_wait():
    """Tiles of one hold half of the SMs, those of the other four fifths."""
    some, more = crunch(busy=0.0, held=0.5), crunch(busy=0.0, held=0.8)
    assert both(some, more, 10, 10) == near(0.25 * 0.5 * 0.8)


def test_what_alternates_does_not_run_side_by_side():
    """Streams of 80 and 70 bytes/ns would slow each other down by 80/50; a quarter alternates."""
    assert both(stream(80), stream(70), 10, 10) == near(0.25 * 1.0 + 0.75 * (80 / 50 - 1))


def test_tensor_cores_lose_the_clock_that_they_had_while_other_sms_were_idle():
    """A gain of 0.2: all of it up to half of the SMs, half of it on three quarters."""
    assert [clock(0.2, share) for share in (0.1, 0.5, 0.75, 1.0)] == near([1.2, 1.2, 1.1, 1.0])
    boosted = replace(GPU, sim=replace(SIM, clock_gain=0.2, stream_interference=0.0))
    made = Physics(boosted, MODEL)
    mine, other = LaunchLoad(1000.0, 5, crunch(), NOTHING), LaunchLoad(1000.0, 5, crunch(), NOTHING)
    assert made.slowdown(mine, other) == near(1.2)
    attention = LaunchLoad(1000.0, 5, NOTHING, crunch())  # keeps its clock: it draws less power
    assert made.slowdown(attention, other) == 1.0
    few, all_sms = (Gemm(boosted).time(4096, 512, 512, 2, 2, sms, 1e9) for sms in (5, 10))
    plain = Gemm(GPU).time(4096, 512, 512, 2, 2, 5, 1e9)
    assert all_sms.busy == Gemm(GPU).time(4096, 512, 512, 2, 2, 10, 1e9).busy
    assert few.busy < plain.busy


def test_weights_can_have_a_curve_of_their_own():
    assert attainable(GPU, 2) == attainable(GPU, 2, weights=True) == 50.0
    own = replace(GPU, sim=replace(SIM, weights_curve=((0.0, 0.0), (0.5, 0.4), (1.0, 1.0))))
    assert attainable(own, 2) == 50.0
    assert attainable(own, 2, weights=True) == near(100 * 0.4 * 0.2 / 0.5)
    assert attainable(own, 10, weights=True) == 100.0


def test_one_sm_takes_keys_and_values_at_a_limited_rate():
    """8 decodes of 1,000 keys on 2 KV heads, in blocks of 128: 32 KB a block at 4 bytes/ns."""
    slow = replace(GPU, sim=replace(SIM, attention_sm_gbps=4.0))
    found = fa(slow).time((), 8, 8000, 10, 1e9)
    single = 1000 + 8 * 128 * 2 * 64 * 2 / 4.0
    assert found.time == pytest.approx(6000 + 16 * single / 10 + 0.8 * single * 0.4, rel=1e-3)
    # Only a kernel on contiguous keys that does not split them has a limit of its own.
    for kernel, rate in (("contiguous", 4.0), ("fa3", 1e6)):
        sim = replace(SIM, attention_kernel=kernel, attention_unsplit_gbps=4.0)
        same = replace(SIM, attention_kernel=kernel, attention_sm_gbps=rate)
        a, b = (fa(replace(GPU, sim=x)).time((), 16, 16000, 10, 1e9) for x in (sim, same))
        assert a == b


def test_prompts_on_blackwell_pack_no_heads_and_decodes_do():
    """Tiles of 256 rows of a query head: 4 heads of 300 tokens are 8 tiles, of one block of keys to
    three, and not the 2 KV heads' of packed rows.
    """
    sim = replace(SIM, attention_kernel="trtllm", attention_write_us=0.0)
    one, packed = replace(GPU, sim=sim), fa().time((), 8, 8000, 10, 1e9)
    assert fa(one).time(((300, 0),), 0, 0, 1, 1e9).turns == 8
    assert fa().time(((300, 0),), 0, 0, 1, 1e9).turns == 10
    assert fa(one).time((), 8, 8000, 10, 1e9).turns == packed.turns
    # A token's keys and values are written by a thread block of 128 of 512 threads.
    writing = replace(GPU, sim=replace(sim, attention_write_us=1.0))
    few, more = (fa(gpu).time(((300, 0),), 0, 0, 10, 1e9).time for gpu in (one, writing))
    assert more - few == pytest.approx(300 * 1000 * (0.15 + 0.85 / 16) / 10, rel=1e-3)


def test_a_kernel_splits_keys_for_the_whole_gpu_wherever_it_runs():
    """One decode of 4,096 keys becomes 10 tiles for 10 SMs, so five waves on two of them."""
    found, few = (fa().time((), 1, 4096, sms, 1e9) for sms in (10, 2))
    assert (found.turns, few.turns) == (1.0, 5.0)


# -- devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [1, 2])
def test_kv_memory_is_what_weights_and_activations_leave(gpus):
    wide = replace(MODEL, num_heads=8, num_kv_heads=4)
    options = DeviceOptions(
        max_num_seqs=8, max_num_batched_tokens=64, tensor_parallel=gpus, gpu_memory_utilization=0.9
    )
    found = Sim(GPU, wide, options).spec.kv_bytes
    usable = 0.9 * 4.0 * 1024**3
    activations = 2.0 * 64 * (2 * 512 / gpus + 4 * 256) + 4.0 * 8 * 1000
    left = usable - wide.weight_bytes / gpus - activations - 0.86 * 1024**3
    assert found == near(gpus * left)


def test_attention_elsewhere_costs_its_wire_and_ten_microseconds_a_layer():
    made = Physics(GPU, MODEL)
    shape = BatchShape(6, 6000, remote=(2, 2000))
    batch = Batch("decode", [], [], shape, remote_sms=4)
    load, away = split_launch(made, batch, 10, 0)
    whole = made.load(shape, 10)
    assert away.rest == near(whole.solo - whole.attention.time + 4 * 10_000)
    ((local, sent, wire),) = away.kinds
    values = 2 * (2 * MODEL.num_heads + 2 * MODEL.num_kv_heads) * MODEL.head_dim
    assert wire == near(4 * (values * 2.0 / 50 + 2 * 7000))
    assert local == made.attention(BatchShape(4, 4000), 10).time
    assert sent == away.attention.time
    assert away.attention == made.attention(BatchShape(2, 2000), 4)
    assert load.solo == near(away.rest + max(local, sent + wire))
    assert away.time(3.0) == near(away.rest + max(local, 3 * sent + wire))
    assert (load.dense, load.sms) == (whole.dense, 10)
    everything = Batch("decode", [], [], BatchShape(2, 2000, remote=(2, 2000)), remote_sms=4)
    assert split_launch(made, everything, 10, 0)[1].kinds[0][0] == 0.0


def test_holes_of_a_grid_are_filled_with_the_nearest_line():
    lines = {
        (1.0, 10.0, 100.0, 1000.0): (1.1, 1.2), (2.0, 20.0, 200.0, 3000.0): (2.1, 2.2),
        (2.0, 10.0, 100.0, 2000.0): (3.1, 3.2),
    }  # fmt: skip
    found = full_grid(lines, (4.0,))
    assert found.prefill == ((1.0, 2.0), (10.0, 20.0))
    assert found.decode == ((100.0, 200.0), (1000.0, 2000.0, 3000.0))
    assert [len(row) for row in found.values] == [6] * 4
    assert found.values[0][0] == (1.1, 1.2)
    assert found.values[3][5] == (2.1, 2.2)
    assert found.values[2][1] == (3.1, 3.2)
    assert found.values[2][2] == (3.1, 3.2)  # one step away, the others two and more
    assert found.values[3][4] == (2.1, 2.2)
    assert distance((1, 2, 3), (3, 2, 0)) == 5


def test_means_axes_and_values_along_them():
    assert mean([1.0, 2.0, 6.0]) == 3.0
    assert spread([1.0, 3.0]) == 0.5
    assert axis_of([3.0, 1.0, 3.0]) == (1.0, 3.0)
    assert axis_of([3.0]) == (3.0, 4.0)
    assert along({1.0: 10.0, 3.0: 30.0}, 2.0) == 20.0
    assert along({3.0: 30.0}, 9.0) == 30.0
