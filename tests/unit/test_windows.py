"""Attention with a sliding window, by hand and by what must hold."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nexusbench.core.kernel_constants import KernelConstants, WindowConstants
from nexusbench.physics.attention import Attention
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.operators import NOTHING
from nexusbench.physics.precisions import window_constants
from nexusbench.physics.windows import WindowedAttention
from tests.unit.test_physics_by_hand import FA2, GPU


def bare(gpu, **changes):
    """Without what is hidden, and without a kernel that writes to the cache."""
    window = replace(WindowConstants(tile_us=0.0, write_us=0.0, hidden=0.0), **changes)
    return replace(gpu, kernels=KernelConstants("hopper", window=window))


FA3_BARE, FA2_BARE = bare(GPU), bare(FA2)


@pytest.mark.parametrize("gpu", [FA3_BARE, FA2_BARE])
def test_a_window_that_nothing_exceeds_changes_nothing(gpu):
    full, window = Attention(gpu, 8, 2, 128), WindowedAttention(gpu, 8, 2, 128, 5000)
    for chunks, decodes, context in (
        (((300, 0),), 0, 0), (((300, 700), (20, 4000)), 0, 0), (((64, 100),), 3, 900),
    ):  # fmt: skip
        assert window.time(chunks, decodes, context, 10, 100.0) == full.time(
            chunks, decodes, context, 10, 100.0
        )
    assert window.time((), 0, 0, 10, 100.0) == NOTHING


def test_decodes_read_the_blocks_that_their_window_touches():
    # FlashAttention-3: 512 keys lie in four blocks of 128, or touch a fifth.
    full, window = Attention(FA3_BARE, 8, 2, 128), WindowedAttention(FA3_BARE, 8, 2, 128, 512)
    seen = full.time((), 4, 4 * 640, 10, 100.0)
    for context in (641, 2000, 100_000):
        assert window.time((), 4, 4 * context, 10, 100.0) == seen
    assert window.time((), 4, 4 * 512, 10, 100.0) == full.time((), 4, 4 * 512, 10, 100.0)


def test_flash_attention_2_packs_no_heads_with_a_window():
    # 4 sequences of 8 query heads on 10 SMs; 3 blocks of 128 keys for a window of 256 that does
    # not begin with a block, 2 for one that does.
    window = WindowedAttention(FA2_BARE, 8, 2, 128, 256)
    rate = 1000.0
    block = 4.0 * 64 * 128 * 128 / rate + 500 * 64 * 128 / 16384
    for context, blocks in ((1000, 3), (1024, 2)):
        tile = 1000 + blocks * block
        made = window._decode(4, 4 * window._touched(context), 10)
        last = tile * (-(-32 // 10) - 3.2)
        assert made == (pytest.approx(32 * tile / 10 + 0.8 * last), 6000.0, 32, 1.0)
    # One KV head's keys beyond L2 are read once per query head.
    assert window._decode(40, 40 * 384 * 30, 10)[3] == 4.0


def test_tiles_of_a_prompt_go_through_their_windows_blocks():
    # 2 heads without sharing: tiles of 128 tokens see 256 + 127 keys: 3 blocks from the third on.
    window = WindowedAttention(FA3_BARE, 2, 2, 128, 256)
    block = 4.0 * 128 * 128 * 128 / 1000 + 500.0
    tokens, keys, tiles, work, longest = window._prefill(((1024, 0),))
    assert (tokens, keys, tiles) == (1024, 1024, 16)
    growing = (1 + 2) * block / 2  # of the first 256 tokens
    assert work / 16 == pytest.approx(1000 + (growing * 256 + 3 * block * 768) / 1024)
    assert longest <= 1000 + 4 * block
    # A chunk far inside a prompt reads the window before it, not what lies before that.
    assert window._prefill(((1024, 5000),))[1] == 1024 + 256
    far, near = (window._prefill(((1024, before),))[3] for before in (50_000, 5000))
    assert far == near == pytest.approx(16 * (1000 + 3 * block))


def test_what_a_window_hides_and_what_it_waits_for():
    plain = WindowedAttention(FA3_BARE, 8, 8, 128, 128).time(((4096, 0),), 0, 0, 10, 100.0)
    hidden = WindowedAttention(bare(GPU, hidden=1.0), 8, 8, 128, 128).time(
        ((4096, 0),), 0, 0, 10, 100.0
    )
    moved = 4096 * 2 * 8 * 128 * 2 / 100  # queries and outputs
    assert plain.time - hidden.time == pytest.approx(0.7 * moved)  # 0.3 of overlap is exposed
    assert plain.traffic == hidden.traffic
    # A token's keys and values are written by up to 512 threads.
    for heads, share in ((8, 1.0), (1, 0.15 + 0.85 / 16)):
        quick = WindowedAttention(FA3_BARE, heads, heads, 128, 128)
        slow = WindowedAttention(bare(GPU, write_us=50.0), heads, heads, 128, 128)
        extra = slow.time(((64, 0),), 0, 0, 10, 100.0).time - quick.time(
            ((64, 0),), 0, 0, 10, 100.0
        ).time  # fmt: skip
        moved = 2 * heads * 128 * 4 / 100
        assert extra == pytest.approx(64 * (share * 50_000 / 10 - moved))


@pytest.mark.parametrize("name", ["h200", "l40s"])
def test_a_window_takes_less_than_all_keys_and_more_than_a_narrower_one(name):
    gpu = load_gpu(name)
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    full = Attention(gpu, 32, 8, 128)
    for chunks, decodes, context in ((((8192, 8192),), 0, 0), ((), 16, 16 * 32768)):
        times = [
            WindowedAttention(gpu, 32, 8, 128, window).time(
                chunks, decodes, context, gpu.num_sms, bandwidth
            ).time
            for window in (128, 1024, 4096)
        ]  # fmt: skip
        assert times == sorted(times)
        assert times[-1] < full.time(chunks, decodes, context, gpu.num_sms, bandwidth).time


def test_constants_of_windows_may_be_left_out():
    for gpu, measured in ((GPU, "h200"), (FA2, "l40s"), (load_gpu("a100"), "l40s")):
        assert window_constants(gpu) == load_gpu(measured).kernels.window
