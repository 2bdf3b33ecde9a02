"""Blocks of several groups in one pool: windows free what they have passed, a state is per request,
a prefix is found where every group has what it needs.
"""

from __future__ import annotations

import random

import pytest

from nexusbench.core.kv_layout import KvGroup, KvPages
from nexusbench.kv.grouped import GroupedKV, kv_cache
from nexusbench.kv.manager import KVCacheManager
from nexusbench.kv.pages import NONE, PagePool
from nexusbench.testing import offer

FULL = KvGroup("full", 16.0)
STATE = KvGroup("state", 100.0)


def window(tokens, kind="window"):
    return KvGroup(kind, 32.0, tokens)


TWO = (FULL, window(10))


def manager(groups=TWO, pages=None, num_pages=100, **extra):
    """Blocks of four tokens; of the n-th group each fills n pages, unless ``pages`` says other."""
    sizes = KvPages(4, 64.0, pages or tuple(range(1, len(groups) + 1)), tuple(groups))
    return GroupedKV(num_pages, sizes, hash_block=8, **extra)


def compute(kv, request, tokens):
    """Allocate and finish ``request``'s tokens up to ``tokens``."""
    request.num_tokens = max(request.num_tokens, request.num_prompt_tokens, tokens)
    prefix = [] if request.blocks else kv.find_prefix(request)
    undo = kv.allocate(request, tokens, prefix)
    assert undo is not None
    request.num_computed_tokens = tokens
    kv.publish(request)
    return undo


def state_of(kv, requests):
    """All that an undo must bring back; numbers of blocks that did not exist before left out."""
    pool = kv.pool
    known = len(pool.refs)

    def now():
        return (
            pool.refs[:known], any(pool.refs[known:]), pool.num_blank, pool.num_cached,
            list(pool.cached), dict(pool._hash_of), dict(pool._block_of),
            [[b for b in idle if b < known] for idle in pool._idle],
            [list(r.blocks) for r in requests],
        )  # fmt: skip

    return now


def test_the_kind_of_cache_follows_from_the_blocks():
    grouped = manager().sizes
    assert isinstance(kv_cache(10, grouped), GroupedKV)
    plain = kv_cache(10, KvPages(4, 64.0, (1,), (FULL,)))
    assert type(plain) is KVCacheManager
    assert plain.block_size == 4


def test_a_window_frees_what_it_has_passed_and_keeps_what_it_needs():
    """A window of 10: the token after 20 attends to 11 and later, in the blocks from the third."""
    kv, r = manager(), offer(0, 0, 20, 30)
    compute(kv, r, 20)
    assert [b >= 0 for b in r.blocks[::2]] == [True] * 5
    assert [b >= 0 for b in r.blocks[1::2]] == [False, False, True, True, True]
    assert kv.num_used == kv.held(r) == 5 * 1 + 3 * 2
    assert kv.covers(r)
    r.blocks[5] = NONE
    assert not kv.covers(r)


def test_while_a_chunk_is_computed_its_first_token_still_has_its_window():
    kv, r = manager(), offer(0, 0, 40, 4)
    compute(kv, r, 20)
    record = kv.allocate(r, 40, [])
    assert record.passed == ()
    assert [b >= 0 for b in r.blocks[1::2]] == [False, False] + [True] * 8
    r.num_computed_tokens = 40
    kv.publish(r)
    assert [b >= 0 for b in r.blocks[1::2]] == [False] * 7 + [True] * 3


def test_a_decode_frees_a_block_as_it_takes_one():
    kv, r = manager(num_pages=15), offer(0, 0, 20, 30)
    compute(kv, r, 20)
    assert [kv.next_blocks(n) for n in (0, 4, 12, 24)] == [3, 3, 3, 1]
    assert kv.allocate(r, 21, []).passed == ()
    r.num_tokens, r.num_computed_tokens = 25, 24
    left = r.blocks[5]
    record = kv.allocate(r, 25, [])  # of the one page that is free, and of what its window frees
    assert record.passed == ((5, left),)
    assert (r.blocks[5], kv.num_free) == (NONE, 0)
    kv.undo(record)
    assert (r.blocks[5], kv.num_free) == (left, 1)


def test_a_decode_in_a_full_pool_goes_on_in_what_its_window_left():
    kv, r = manager(groups=(window(8),), pages=(2,), num_pages=6), offer(0, 0, 8, 100)
    compute(kv, r, 8)
    for computed in range(8, 100):
        if not computed % 4:
            assert kv.allocate(r, computed + 1, []) is not None
        r.num_computed_tokens = computed + 1
        assert kv.covers(r)
        assert kv.num_used <= 6
    assert sum(b >= 0 for b in r.blocks) <= 3


def test_chunked_attention_frees_whole_pieces():
    kv, r = manager(groups=(FULL, window(8, "chunk"))), offer(0, 0, 20, 30)
    compute(kv, r, 16)
    assert [b >= 0 for b in r.blocks[1::2]] == [False] * 4
    compute(kv, r, 20)
    assert [b >= 0 for b in r.blocks[1::2]] == [False] * 4 + [True]


def test_a_state_is_one_block_for_each_request_and_no_prefix_is_looked_for():
    kv = manager(groups=(FULL, STATE), pages=(1, 7))
    one, two = (offer(i, 0, 16, 4, prefix_ids=(1, 2)) for i in range(2))
    compute(kv, one, 16)
    assert (kv.held(one), kv.blocks_for(16), kv.prefix_caching) == (4 + 7, 4 + 7, False)
    two.num_tokens = 16
    assert kv.find_prefix(two) == []
    compute(kv, two, 16)
    assert kv.num_used == 22
    kv.free(one)
    assert kv.num_used == 11
    two.blocks[1] = NONE
    assert not kv.covers(two)


def test_too_much_is_refused_and_changes_nothing():
    kv, r = manager(num_pages=11), offer(0, 0, 17, 1)
    r.num_tokens = 17
    now = state_of(kv, [r])
    before = now()
    assert kv.allocate(r, 17, []) is None  # five blocks of three pages
    assert now() == before


def test_a_prefix_needs_all_of_full_attention_and_the_end_of_a_window():
    kv = manager()
    one = offer(0, 0, 40, 1, prefix_ids=(1, 2, 3, 4, 5))
    compute(kv, one, 40)
    places = [b for b in one.blocks[1::2] if b >= 0]
    kv.free(one)
    two = offer(1, 0, 40, 1, prefix_ids=(1, 2, 3, 4, 9))
    two.num_tokens = 40
    assert len(kv.find_prefix(two)) == 8
    compute(kv, two, 40)
    assert [b >= 0 for b in two.blocks[1::2]] == [False] * 7 + [True] * 3
    assert kv.pool.audit([two.blocks]) is None
    # Of the window it shares the last block of the prefix alone; the two behind it are its own.
    assert two.blocks[15] == places[0]
    assert not {two.blocks[17], two.blocks[19]} & set(places)


@pytest.mark.parametrize(("num_pages", "fits"), [(16, True), (15, False)])
def test_blocks_that_another_request_holds_are_shared_without_room_for_them(num_pages, fits):
    """11 pages are held and four cached, of which two are shared as well: three more are needed."""
    kv = manager(num_pages=num_pages)
    one, two = (offer(i, 0, 20, 1, prefix_ids=(1, 2, 3 + i)) for i in range(2))
    compute(kv, one, 20)
    assert (kv.num_used, kv.num_free) == (11, num_pages - 11)
    two.num_tokens = 20
    prefix = kv.find_prefix(two)
    assert prefix == one.blocks[:8:2]
    assert (kv.allocate(two, 20, prefix) is not None) is fits
    assert kv.pool.audit([one.blocks, two.blocks]) is None


def test_where_the_end_of_a_window_is_lost_a_shorter_prefix_is_found():
    kv = manager()
    one = offer(0, 0, 40, 1, prefix_ids=(1, 2, 3, 4, 5))
    compute(kv, one, 40)
    kv.free(one)
    pool = kv.pool
    two = offer(1, 0, 40, 1, prefix_ids=(1, 2, 3, 4, 5))
    two.num_tokens = 40
    assert len(kv.find_prefix(two)) == 9  # all but the last, whose logits are needed
    for position, found in ((8, 8), (6, 6), (7, 6), (2, 6), (5, 2)):
        block = pool.find(kv._key(two, position) * 2 + 1)
        del pool._block_of[pool._hash_of.pop(block)]
        assert len(kv.find_prefix(two)) == found, position
    block = pool.find(kv._key(two, 1) * 2)
    del pool._block_of[pool._hash_of.pop(block)]
    assert len(kv.find_prefix(two)) == 1


@pytest.mark.parametrize(
    ("group", "lost", "found"),
    [
        (window(9), [6], 9),  # the token behind 36 attends to 28 and later
        (window(9), [7], 7),
        (window(8, "chunk"), [7, 8], 8),  # behind 32 a piece begins
        (window(8, "chunk"), [6], 9),
    ],
)
def test_a_prefix_needs_no_more_of_a_window_than_the_token_behind_it(group, lost, found):
    kv = manager((FULL, group))
    one, two = (offer(i, 0, 40, 1, prefix_ids=(1, 2, 3, 4, 5)) for i in range(2))
    compute(kv, one, 40)
    kv.free(one)
    two.num_tokens = 40
    pool = kv.pool
    for position in lost:
        block = pool.find(kv._key(two, position) * 2 + 1)
        del pool._block_of[pool._hash_of.pop(block)]
    assert len(kv.find_prefix(two)) == found


def test_a_preempted_request_finds_what_its_windows_had():
    kv, r = manager(), offer(0, 0, 20, 30)
    compute(kv, r, 20)
    for computed in range(20, 26):
        if not computed % 4:
            kv.allocate(r, computed + 1, [])
        r.num_computed_tokens, r.num_tokens = computed + 1, computed + 2
    kv.publish_own(r)
    kv.free(r)
    r.num_preemptions, r.num_computed_tokens = 1, 0
    assert len(kv.find_prefix(r)) == 6  # 26 computed tokens: six whole blocks
    assert kv.count_cached([r]) == [24]


def test_what_lies_on_another_gpu_is_as_much_as_here():
    near, far, r = manager(), manager(), offer(0, 0, 20, 30)
    compute(near, r, 20)
    blocks, evicted = far.reserve(21, 20)
    assert [b >= 0 for b in blocks] == [b >= 0 for b in r.blocks] + [True, True]
    assert far.num_used == far.blocks_for(21, 20) == near.blocks_for(21, 20)
    far.pool.untake(blocks, evicted)
    assert far.num_used == 0
    assert manager(num_pages=5).reserve(21, 20) is None


def test_eviction_frees_cached_blocks_of_any_group_oldest_first():
    pool = PagePool(10, (1, 4))
    one, _ = pool.draw([0, 1], 5)
    two, _ = pool.draw([1], 4)
    for number, block in enumerate((*one, *two)):
        pool.publish(block, number)
    pool.release([one[1], two[0], one[0]])
    assert (pool.num_free, pool.num_blank, pool.num_cached) == (10, 1, 9)
    before = (list(pool.cached), dict(pool._hash_of))
    blocks, evicted = pool.draw([0, 0, NONE], 2)
    assert blocks[2] == NONE
    assert evicted == [one[1], 1]  # four pages, of which one is left over with the blank one
    assert (pool.num_blank, pool.num_cached) == (3, 5)
    assert pool.audit([blocks]) is None
    pool.untake(blocks, evicted)
    assert (list(pool.cached), dict(pool._hash_of)) == before
    assert pool.audit([]) is None


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda pool, r: pool.release([r.blocks[0]]), "references recorded"),
        (lambda pool, r: r.blocks.append(r.blocks[0]), "the same block twice"),
        (lambda pool, r: setattr(pool, "num_blank", pool.num_blank - 1), "pages are not 100"),
        (lambda pool, r: setattr(pool, "num_cached", 3), "cached blocks fill 0 pages, not 3"),
        (lambda pool, r: pool._idle[0].append(r.blocks[0]), "blocks are not"),
        (lambda pool, r: pool._idle[0].extend([7, 7]), "in the free lists twice"),
        (lambda pool, r: pool._block_of.update({5: 0}), "another hash"),
    ],
)
def test_an_audit_finds_what_is_wrong(spoil, problem):
    kv, r = manager(), offer(0, 0, 20, 30)
    compute(kv, r, 20)
    assert kv.pool.audit([r.blocks]) is None
    spoil(kv.pool, r)
    assert problem in kv.pool.audit([r.blocks])


LAYOUTS = {
    "full and window": (FULL, window(10)),
    "two windows": (FULL, window(10), window(33)),
    "window alone": (window(7),),
    "pieces": (FULL, window(12, "chunk")),
    "state": (FULL, STATE),
    "all": (FULL, window(10), window(9, "chunk"), STATE),
}


class Bookkeeper:
    """What each request must hold, token by token, in sets of (group, block of tokens)."""

    def __init__(self, kv):
        self.kv, self.held = kv, {}

    def allocated(self, request, computed, tokens):
        is_new = request.index not in self.held
        held = self.passed(request, computed)
        for g, group in enumerate(self.kv.sizes.groups):
            if group.kind == "state":
                held.add((g, 0))
                continue
            held |= {(g, token // 4) for token in range(computed, -(-tokens // 4) * 4)}
            if is_new:  # of a prefix it has what the token behind it attends to
                held |= {(g, t // 4) for t in range(computed) if self.attends(group, computed, t)}

    def attends(self, group, computed, token):
        if group.kind == "full":
            return True
        if group.kind == "window":
            return token > computed - group.window
        return token // group.window == computed // group.window

    def passed(self, request, computed):
        groups, kept = self.kv.sizes.groups, set()
        for g, block in self.held.get(request.index, ()):
            group = groups[g]
            tokens = range(block * 4, block * 4 + 4)
            if group.kind == "state" or any(
                t >= computed or self.attends(group, computed, t) for t in tokens
            ):
                kept.add((g, block))
        self.held[request.index] = kept
        return kept

    def check(self, requests):
        count = len(self.kv.sizes.groups)
        for r in requests:
            real = {(i % count, i // count) for i, b in enumerate(r.blocks) if b >= 0}
            assert real == self.held.get(r.index, set())
            assert self.kv.covers(r)
        assert self.kv.pool.audit([r.blocks for r in requests]) is None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(4))
def test_random_requests_hold_what_a_count_by_tokens_says(layout, seed):
    """Chunks, decodes, preemptions, refused plans, ends: held blocks, free pages, undoing."""
    rng = random.Random(f"{layout} {seed}")
    kv = manager(LAYOUTS[layout], num_pages=rng.choice((60, 150, 400)))
    books = Bookkeeper(kv)
    shared = rng.random() < 0.7
    requests = [
        offer(
            i, 0, rng.randint(1, 90), 60,
            prefix_ids=tuple(range(rng.randint(1, 6))) + tuple(range(100 * i + 10, 100 * i + 22))
            if shared else (),
        )
        for i in range(12)
    ]  # fmt: skip
    for r in requests:
        r.prefix_ids = r.prefix_ids[: -(-r.num_prompt_tokens // 8)]
        r.num_tokens = r.num_prompt_tokens
    for _ in range(400):
        r = rng.choice(requests)
        if r.blocks and rng.random() < 0.06:
            preempt(kv, r, rng)
            books.held.pop(r.index)
        else:
            advance(kv, books, r, requests, rng)
        books.check(requests)
    for r in requests:
        kv.free(r)
    assert kv.num_used == 0
    assert kv.pool.audit([]) is None


def preempt(kv, r, rng):
    """Preempted (its tokens stay known, its blocks may be found again), or ended and begun anew."""
    now = state_of(kv, [r])
    before, hashed = now(), r.num_hashed_blocks
    published = kv.publish_own(r)
    freed = kv.free(r)
    if rng.random() < 0.5:  # the plan was refused: as a journal takes it back
        kv.pool.unrelease(freed)
        kv.pool.unpublish(published)
        r.blocks, r.num_hashed_blocks = freed[::-1], hashed
        assert now() == before
        kv.publish_own(r)
        kv.free(r)
    r.num_preemptions += 1
    r.num_computed_tokens = 0


def advance(kv, books, r, requests, rng):
    """The next chunk or token of a request, maybe taken back first."""
    prefix = [] if r.blocks else kv.find_prefix(r)
    computed = r.num_computed_tokens if r.blocks else 4 * len(prefix)
    tokens = min(r.num_tokens, computed + rng.choice((1, 3, 16, 64)))
    now = state_of(kv, requests)
    before, free = now(), kv.num_free
    record = kv.allocate(r, tokens, prefix)
    if record is None:
        assert now() == before
        return
    if rng.random() < 0.3:
        kv.undo(record)
        after = now()
        if prefix:  # looking cached blocks up was a use: only their order may differ
            assert sorted(after[4]) == sorted(before[4])
            after, before = after[:4] + after[5:], before[:4] + before[5:]
        assert after == before
        record = kv.allocate(r, tokens, kv.find_prefix(r) if not r.blocks else [])
        assert record is not None
    assert kv.num_free <= free + kv.pool.pages_of([b for _, b in record.passed])
    books.allocated(r, computed, tokens)
    r.num_computed_tokens = tokens
    if tokens < r.num_tokens or rng.random() < 0.5:
        kv.publish(r)
        books.passed(r, tokens)
    if tokens == r.num_tokens and r.num_tokens < r.stop_len:
        r.num_tokens += 1


@pytest.mark.parametrize("layout", ["full and window", "two windows", "window alone", "pieces"])
def test_the_longest_prefix_that_every_group_has_is_found(layout):
    """Against looking for every length, with a random part of the blocks lost."""
    rng = random.Random(layout)
    for _ in range(60):
        kv = manager(LAYOUTS[layout], num_pages=1000)
        one = offer(0, 0, 80, 1, prefix_ids=tuple(range(10)))
        compute(kv, one, rng.randint(1, 80))
        if one.num_computed_tokens < 80 and rng.random() < 0.5:
            compute(kv, one, rng.randint(one.num_computed_tokens, 80))
        kv.free(one)
        pool, groups = kv.pool, kv.sizes.groups
        for block in rng.sample(list(pool.cached), len(pool.cached) * rng.choice((0, 1, 3)) // 8):
            del pool._block_of[pool._hash_of.pop(block)]
        two = offer(1, 0, rng.randint(1, 80), 1, prefix_ids=tuple(range(10)))
        two.num_tokens = two.num_prompt_tokens
        two.prefix_ids = two.prefix_ids[: -(-two.num_tokens // 8)]

        def has(end, two=two, pool=pool, groups=groups, kv=kv):
            return all(
                pool.find(kv._key(two, position) * len(groups) + g) is not None
                for g, group in enumerate(groups)
                for position in range(group.first_kept(4 * end) // 4, end)
            )

        longest = max(n for n in range((two.num_tokens - 1) // 4 + 1) if has(n))
        assert len(kv.find_prefix(two)) == longest
        assert kv.count_cached([two]) == [4 * longest]


def test_growth_is_what_a_request_adds_in_every_group():
    """Also past the length from which on windows grow no more, at and around which it is short."""
    for layout, groups in LAYOUTS.items():
        kv = manager(groups)
        for tokens in (0, 1, 6, 7, 8, 9, 10, 11, 32, 33, 40):
            for more in (0, 1, 3, 30):
                grown = kv.sizes.room(tokens + more) - kv.sizes.room(tokens)
                assert kv.growth(tokens, more) == grown, (layout, tokens, more)


def test_a_cached_prefix_saves_the_blocks_of_all_tokens_alone():
    kv = manager(groups=(FULL, window(10)), pages=(3, 5))
    assert kv.cached_blocks(20) == 15
    assert manager(groups=(window(10),)).cached_blocks(20) == 0


def test_a_request_without_blocks_for_all_that_is_computed_is_not_covered():
    kv, r = manager(), offer(0, 0, 20, 30)
    compute(kv, r, 20)
    r.num_computed_tokens = 21
    assert not kv.covers(r)


def test_what_another_request_still_holds_makes_no_room():
    """Two requests share the blocks of a window; one of them passes them while the pool is full."""
    kv = manager(groups=(window(8),), pages=(2,), num_pages=10)
    one, two = (offer(i, 0, 12, 30, prefix_ids=(1, 2)) for i in range(2))
    compute(kv, one, 8)
    compute(kv, two, 9)  # the blocks of 8 tokens, and one
    assert [kv.pool.refs[b] for b in two.blocks] == [2, 2, 1]
    assert kv.allocate(one, 12, []) is not None
    one.num_tokens = one.num_computed_tokens = 12
    compute(kv, offer(2, 0, 4, 1), 4)
    assert kv.num_free == 0
    assert kv.allocate(one, 13, []) is None  # its first block is held by the other
    kv.free(two)
    assert kv.allocate(one, 13, []) is not None


def test_what_can_be_found_changes_with_an_eviction_and_when_it_is_taken_back():
    """Queues that are ordered by what the cache holds are sorted again then."""
    pool = PagePool(3, (1, 2))
    blocks, _ = pool.draw([1], 2)
    pool.publish(blocks[0], 5)
    pool.release(blocks)
    seen = [pool.changes]
    pool.draw([0], 1)
    seen.append(pool.changes)
    more, evicted = pool.draw([0], 1)
    seen.append(pool.changes)
    pool.untake(more, evicted)
    assert [*seen, pool.changes] == [1, 1, 2, 3]
