"""What a sequence keeps by groups of layers, and how many pages its blocks fill."""

from __future__ import annotations

import pytest

from nexusbench.core.errors import UsageError
from nexusbench.core.kv_layout import KvGroup, KvLayout, KvPages, kv_layout
from nexusbench.core.mixers import (
    CompressedAttention,
    FullAttention,
    LatentAttention,
    SparseAttention,
    StateMixer,
    WindowAttention,
)
from nexusbench.testing import tiny_model
from tests.unit.stacks import stack

FULL = FullAttention(num_heads=8, num_kv_heads=2, head_dim=64)
WINDOW = WindowAttention(num_heads=8, num_kv_heads=2, head_dim=64, window=100)
CHUNKS = WindowAttention(num_heads=8, num_kv_heads=2, head_dim=64, window=100, chunked=True)
LATENT = LatentAttention(
    num_heads=8, q_rank=0, kv_rank=512, nope_dim=64, rope_dim=64, value_dim=64
)  # fmt: skip
STATE = StateMixer(kind="mamba2", heads=4, key_dim=16, value_dim=32, matrices=(), conv_values=100)
TOKEN = 2 * 2 * 64 * 2  # bytes of a token in one layer of FULL


def test_a_model_of_equal_layers_has_one_group_and_a_page_is_a_block():
    model = tiny_model()
    layout = kv_layout(model)
    assert layout.groups == (KvGroup("full", model.kv_bytes_per_token),)
    sizes = layout.paged(16)
    assert (sizes.page_bytes, sizes.pages) == (16 * model.kv_bytes_per_token, (1,))
    assert sizes.is_uniform


def test_layers_of_one_kind_are_one_group_wherever_they_stand():
    model = stack((2, FULL), (3, WINDOW), (1, FULL), (5, WINDOW), (1, CHUNKS), (2, None))
    assert kv_layout(model).groups == (
        KvGroup("full", 3 * TOKEN), KvGroup("window", 8 * TOKEN, 100),
        KvGroup("chunk", TOKEN, 100),
    )  # fmt: skip


def test_pages_are_the_largest_that_blocks_of_all_groups_are_multiples_of():
    """Gemma 3's shares: 10 layers of all tokens and 52 of a window, in pages of two layers."""
    sizes = kv_layout(stack((10, FULL), (52, WINDOW))).paged(16)
    assert (sizes.pages, sizes.page_bytes) == ((5, 26), 2 * TOKEN * 16)
    assert sizes.step == 31


def test_a_state_fills_whole_pages_and_does_not_make_them_smaller():
    sizes = kv_layout(stack((2, FULL), (3, STATE))).paged(16)
    state = 3 * (4 * 16 * 32 * 4 + 100 * 2)
    assert sizes.page_bytes == 2 * TOKEN * 16
    assert sizes.pages == (1, -(-state // (2 * TOKEN * 16)))
    alone = kv_layout(stack((3, STATE))).paged(16)
    assert (alone.pages, alone.page_bytes) == ((1,), state)
    assert [alone.of(n) for n in (0, 1, 1000)] == [0, 1, 1]


def test_a_device_that_frees_nothing_keeps_windows_as_it_keeps_all_else():
    layout = kv_layout(stack((2, FULL), (3, WINDOW)), frees_windows=False)
    assert layout.groups == (KvGroup("full", 5 * TOKEN),)
    assert layout.paged(16).is_uniform


def test_compressed_layers_keep_their_entries_and_a_window():
    mixer = CompressedAttention(
        num_heads=8, head_dim=512, q_rank=64, groups=2, out_rank=64, window=128, ratio=4, topk=8,
        index_heads=2, index_dim=128,
    )  # fmt: skip
    # A fourth of a head of 512 values and of 132 bytes of index key; of the window whole heads.
    assert kv_layout(stack((3, mixer))).groups == (
        KvGroup("full", 3 * (512 * 2 / 4 + 132 / 4)), KvGroup("window", 3 * 512 * 2, 128),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mixer", "one", "eight"),
    [
        (FULL, TOKEN, 4 * TOKEN),  # two KV heads on eight GPUs: each on four of them
        (LATENT, 576 * 2, 8 * 576 * 2),  # one latent for all heads
        (
            SparseAttention(base=FULL, topk=8, index_heads=2, index_dim=128, index_inputs=64),
            TOKEN + 132, 4 * TOKEN + 8 * 132,
        ),
        (STATE, 4 * 16 * 32 * 4 + 200, 2 * (4 * 16 * 32 * 4 + 200)),
        (
            StateMixer(kind="conv", heads=0, key_dim=0, value_dim=0, matrices=(), conv_values=9),
            18, 18,
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_out_is_kept_on_several_gpus(mixer, one, eight):
    model = stack((1, mixer))
    assert [kv_layout(model, gpus).groups[0].num_bytes for gpus in (1, 8)] == [one, eight]


def test_a_model_that_keeps_nothing_is_refused():
    with pytest.raises(UsageError, match=r"made-up has no layer that keeps keys"):
        kv_layout(stack((2, None)))


@pytest.mark.parametrize(
    ("kind", "computed", "first"),
    [
        ("full", 500, 0), ("window", 99, 0), ("window", 100, 1), ("window", 250, 151),
        ("chunk", 99, 0), ("chunk", 100, 100), ("chunk", 250, 200),
    ],
)  # fmt: skip
def test_what_the_next_token_attends_to(kind, computed, first):
    """A window of 100 is the token itself and 99 before it; a piece begins at multiples of 100."""
    assert KvGroup(kind, 1.0, 0 if kind == "full" else 100).first_kept(computed) == first


SIZES = KvPages(
    16, 1024.0, (1, 3, 2, 7),
    (
        KvGroup("full", 64.0), KvGroup("window", 192.0, 100), KvGroup("chunk", 128.0, 40),
        KvGroup("state", 7000.0),
    ),
)  # fmt: skip


def counted_pages(num_tokens, computed):
    """Token by token: the blocks of which a token is still attended to, or not yet computed."""
    total = 7
    for index, pages in ((0, 1), (1, 3), (2, 2)):
        group = SIZES.groups[index]
        needed = [
            t for t in range(num_tokens)
            if t >= computed
            or group.kind == "full"
            or (group.kind == "window" and t > computed - group.window)
            or (group.kind == "chunk" and t // group.window == computed // group.window)
        ]  # fmt: skip
        total += pages * len({t // 16 for t in needed})
    return total


@pytest.mark.parametrize(
    ("num_tokens", "computed"),
    [
        (1, 0),
        (16, 0),
        (17, 16),
        (101, 100),
        (116, 115),
        (117, 116),
        (300, 0),
        (300, 200),
        (641, 640),
    ],
)
def test_pages_of_a_sequence_are_those_of_the_tokens_that_it_needs(num_tokens, computed):
    assert SIZES.of(num_tokens, computed) == counted_pages(num_tokens, computed)


@pytest.mark.parametrize("step", [1, 2, 15, 16, 17, 64, 500])
def test_no_step_of_a_sequence_needs_more_than_the_most(step):
    for num_tokens in (1, 16, 99, 240, 500):
        needed = [
            SIZES.of(min(num_tokens, computed + step), computed) for computed in range(num_tokens)
        ]
        assert max(needed) <= SIZES.most(num_tokens, step)


def test_the_most_is_reached():
    """Else requests that fit would be rejected: the bound is what some step does need."""
    window = KvPages(16, 1.0, (1,), (KvGroup("window", 1.0, 100),))
    for step in (2, 15, 16, 17, 64):
        needed = [window.of(computed + step, computed) for computed in range(400)]
        assert max(needed) == window.most(1000, step)


def test_room_grows_by_whole_tokens_until_windows_are_full():
    assert SIZES.room(0) == 0
    assert SIZES.room(1) == 7 * 16 + 1 + 3 + 2
    assert SIZES.room(1000) - SIZES.room(200) == 800  # of the layers of all tokens alone
    assert SIZES.room(100) - SIZES.room(40) == 60 * (1 + 3) + 2 * (20 - 40)


def test_tokens_of_one_sequence_and_of_many():
    assert SIZES.of(SIZES.tokens_in(100)) <= 100 < SIZES.of(SIZES.tokens_in(100) + 17)
    assert SIZES.tokens_in(1000, 200) == 1000 * 16 * 200 // SIZES.room(200)
    assert SIZES.tokens_in(3) == 0
    groups = (KvGroup("full", 1.0), KvGroup("chunk", 3.0, 8192))
    pieces = KvLayout(groups).paged(16)  # a page of the former, three of the latter
    # The first piece takes 4 x 512 pages at its end; what comes after it has pages again.
    assert [pieces.tokens_in(pages) for pages in (4, 1100, 2047)] == [16, 4400, 8176]
    assert pieces.tokens_in(2048) > 8192
    plain = KvLayout((KvGroup("full", 8.0),)).paged(16)
    assert (plain.tokens_in(10), plain.tokens_in(10, 7)) == (160, 160)
