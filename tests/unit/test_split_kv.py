"""LeanAttention's shares: every key once, programs alike, and nothing merged that was not cut."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.kernels.attention import tuning
from nexusbench.kernels.attention.tuning import PrefillTile
from nexusbench.kernels.split_kv import LEAST_TILES, most_merges, most_slots, split_kv

batches = st.lists(st.integers(1, 5000), min_size=1, max_size=20)


@given(batches, st.sampled_from([1, 2, 8]), st.sampled_from([16, 64]), st.sampled_from([1, 7, 264]))
def test_every_key_is_in_one_segment_and_shares_differ_by_a_tile(
    lengths: list[int], heads: int, tile: int, programs: int
) -> None:
    plan = split_kv(lengths, heads, tile, programs)
    runs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for sequence, head, first, stop, _ in plan.segments.tolist():
        assert first < stop
        assert first % tile == 0
        runs.setdefault((sequence, head), []).append((first, stop))
    for sequence, length in enumerate(lengths):
        for head in range(heads):
            ends = [0, *(stop for _, stop in runs[sequence, head])]
            assert [first for first, _ in runs[sequence, head]] == ends[:-1]
            assert ends[-1] == length
    assert len(plan.starts) == programs + 1
    assert plan.starts[0] == 0
    assert plan.starts[-1] == len(plan.segments)
    sizes = [-(-(stop - first) // tile) for _, _, first, stop, _ in plan.segments.tolist()]
    shares = [sum(sizes[a:b]) for a, b in zip(plan.starts, plan.starts[1:], strict=False)]
    busy = [share for share in shares if share]
    assert max(busy) - min(busy) <= 1
    assert min(busy) >= min(LEAST_TILES, sum(sizes))


@given(batches, st.sampled_from([1, 8]), st.sampled_from([1, 7, 264]))
def test_merges_name_exactly_the_slots_of_what_was_cut(
    lengths: list[int], heads: int, programs: int
) -> None:
    plan = split_kv(lengths, heads, 16, programs)
    slots: dict[tuple[int, int], list[int]] = {}
    for sequence, head, first, stop, slot in plan.segments.tolist():
        assert (slot < 0) == (first == 0 and stop == lengths[sequence])
        if slot >= 0:
            slots.setdefault((sequence, head), []).append(slot)
    merged = {(n, h): list(range(first, stop)) for n, h, first, stop in plan.merges.tolist()}
    assert merged == slots
    assert sorted(itertools.chain.from_iterable(slots.values())) == list(range(plan.num_slots))
    assert plan.num_slots <= most_slots(programs)
    assert len(plan.merges) <= most_merges(programs)
    assert len(plan.segments) <= programs + len(lengths) * heads


def test_a_long_context_among_short_ones_does_not_run_alone() -> None:
    plan = split_kv([1000, 1000, 64_000], 8, 64, 264)
    shares = np.diff(plan.starts)
    assert (shares > 0).all()
    of_long = (plan.segments[:, 0] == 2).sum()
    assert of_long > 240


def test_few_keys_use_few_programs() -> None:
    plan = split_kv([64, 64], 1, 64, 100)
    assert np.diff(plan.starts).tolist() == [2] + [0] * 99
    assert len(plan.merges) == 0


@pytest.mark.slow
def test_needs_no_torch() -> None:
    code = "import sys, nexusbench.kernels.split_kv; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_small_chunks_get_small_tiles_where_sms_would_idle() -> None:
    large, small = tiles = PrefillTile(128, 64, 8, 5), PrefillTile(64, 64, 4, 3)
    assert tuning.choose_prefill(tiles, 512, 32, 132) is small
    assert tuning.choose_prefill(tiles, 513, 32, 132) is large
    assert tuning.choose_prefill(tiles, 512, 32, 64) is large  # a partition is full sooner


@pytest.mark.parametrize("itemsize", [2, 4])
def test_tables_have_a_tile_for_every_head(itemsize: int) -> None:
    for padded in (16, 32, 64, 128, 256):
        assert tuning.decode_tile(padded, itemsize).keys % 16 == 0
        large, small = tuning.prefill_tiles(padded, itemsize)
        assert large.rows >= small.rows >= 16
    for ask in (tuning.decode_tile, tuning.prefill_tiles):
        with pytest.raises(ValueError, match="no tile for heads of 512 values"):
            ask(512, itemsize)
