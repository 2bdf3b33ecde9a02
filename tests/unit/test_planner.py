"""The planner alone: no torch, every token in its place exactly once."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.core.errors import NexusbenchError
from nexusbench.kernels.planner import BlockTables, plan_attention, query_tiles

sequences = st.lists(
    st.tuples(st.sampled_from([1, 1, 1, 2, 5, 5, 17, 40]), st.sampled_from([0, 0, 1, 15, 16, 90])),
    min_size=1,
    max_size=12,
)


def tables_for(lengths: list[int], block_size: int) -> list[list[int]]:
    free = list(range(1000))
    random.Random(0).shuffle(free)
    return [[free.pop() for _ in range(-(-length // block_size))] for length in lengths]


@pytest.mark.slow
def test_needs_no_torch() -> None:
    code = "import sys, nexusbench.kernels.planner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(sequences, st.sampled_from([1, 8, 16]), st.sampled_from([0, 16, 64, 512]))
def test_every_token_has_its_position_and_slot(
    lengths: list[tuple[int, int]], block_size: int, padded: int
) -> None:
    query, context = [q for q, _ in lengths], [c for _, c in lengths]
    total = [q + c for q, c in lengths]
    tables = tables_for(total, block_size)
    plan = plan_attention(query, context, tables, block_size, padded_tokens=padded)
    assert sorted(plan.order.tolist()) == list(range(len(lengths)))
    positions, slots = [], []
    for place, sequence in enumerate(plan.order.tolist()):
        assert plan.query_starts[place] == len(positions)
        for position in range(context[sequence], total[sequence]):
            positions.append(position)
            block = tables[sequence][position // block_size]
            slots.append(block * block_size + position % block_size)
        assert plan.last_rows[sequence] == len(positions) - 1
        assert plan.lengths[place] == total[sequence]
    assert plan.positions.tolist() == positions
    assert plan.slots.tolist() == slots
    assert len(set(slots)) == plan.num_tokens == sum(query)


@given(sequences, st.sampled_from([0, 16, 64, 512]))
def test_buckets_and_groups_cover_the_rows_once(
    lengths: list[tuple[int, int]], padded: int
) -> None:
    query, context = [q for q, _ in lengths], [c for _, c in lengths]
    tables = tables_for([q + c for q, c in lengths], 16)
    plan = plan_attention(query, context, tables, 16, padded_tokens=padded)
    row = 0
    for bucket in plan.decodes:
        assert bucket.start == row
        row = bucket.stop
        widths = -(-bucket.lengths // 16)
        assert bucket.blocks.shape == (bucket.stop - bucket.start, widths.max())
        assert int((widths.max() - widths).sum()) * 16 <= padded
        for held, length, sequence in zip(
            bucket.blocks, bucket.lengths, plan.order[bucket.start : bucket.stop], strict=True
        ):
            assert held[: -(-length // 16)].tolist() == tables[sequence]
    assert row == plan.num_decodes == query.count(1)
    for group in plan.chunks:
        assert group.start == row
        row = group.stop
        assert group.count == 1 or group.context == 0
        if group.context:
            sequence = plan.order[np.searchsorted(plan.query_starts, group.start)]
            assert group.blocks.tolist() == tables[sequence]
            assert (group.num_tokens, group.context) == (query[sequence], context[sequence])
    assert row == plan.num_tokens


def test_equal_prompts_form_one_group_and_like_decodes_one_bucket() -> None:
    plan = plan_attention(
        [8, 1, 8, 1, 8], [0, 100, 0, 105, 0], tables_for([8, 101, 8, 106, 8], 16), 16
    )
    assert [(bucket.start, bucket.stop) for bucket in plan.decodes] == [(0, 2)]
    assert [(group.count, group.num_tokens) for group in plan.chunks] == [(3, 8)]


def test_unlike_decodes_are_separated() -> None:
    context = [10, 4000, 12, 3990]
    tables = tables_for([length + 1 for length in context], 16)
    plan = plan_attention([1] * 4, context, tables, 16)
    assert plan.order.tolist() == [1, 3, 0, 2]
    assert [(bucket.start, bucket.stop) for bucket in plan.decodes] == [(0, 2), (2, 4)]
    assert plan.last_rows.tolist() == [2, 0, 3, 1]


def test_too_few_blocks_are_named() -> None:
    with pytest.raises(NexusbenchError, match="sequence 1 of a step holds 1 KV blocks, its 17"):
        plan_attention([1, 1], [3, 16], [[0], [1]], 16)


def test_block_tables_follow_lists_that_grow_end_and_move() -> None:
    tables = BlockTables()
    draw = random.Random(0)
    held: dict[int, list[int]] = {}
    for step in range(400):
        key = draw.randrange(60)
        if key in held and draw.random() < 0.1:
            del held[key]
            tables.forget(key)
        elif key in held and draw.random() < 0.2:
            held[key] = [draw.randrange(999) for _ in range(draw.randint(1, 70))]  # preempted
        else:
            held.setdefault(key, []).extend(draw.randrange(999) for _ in range(draw.randint(1, 9)))
        keys = [key for key in held if draw.random() < 0.7]
        rows = tables.rows(keys, [held[key] for key in keys])
        for key, row in zip(keys, rows.tolist(), strict=True):
            assert tables.table[row, : len(held[key])].tolist() == held[key], step
    tables.forget("unknown")


def test_planning_from_the_table_equals_planning_from_lists() -> None:
    query, context = [1, 9, 1, 30], [40, 0, 7, 22]
    lists = tables_for([q + c for q, c in zip(query, context, strict=True)], 16)
    tables = BlockTables()
    rows = tables.rows(["a", "b", "c", "d"], lists)
    one = plan_attention(query, context, lists, 16)
    other = plan_attention(query, context, tables.table, 16, rows=rows)
    assert one.slots.tolist() == other.slots.tolist()
    assert one.order.tolist() == other.order.tolist()


def test_tiles_cover_every_row_once_and_the_longest_come_first() -> None:
    sequence, row = query_tiles([0, 70, 75, 139], 32)
    assert sorted(zip(sequence.tolist(), row.tolist(), strict=True)) == [
        (0, 0), (0, 32), (0, 64), (1, 0), (2, 0), (2, 32),
    ]  # fmt: skip
    assert row.tolist() == [64, 32, 32, 0, 0, 0]


def test_tiles_after_a_long_context_come_before_late_tiles_of_a_short_one() -> None:
    sequence, row = query_tiles([0, 64, 96], 32, [0, 100])
    assert list(zip(sequence.tolist(), row.tolist(), strict=True)) == [(1, 0), (0, 32), (0, 0)]
