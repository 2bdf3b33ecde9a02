"""Who holds which blocks, which prefixes are found, what is evicted first."""

from __future__ import annotations

import pytest

from nexusbench.kv.manager import KVCacheManager
from nexusbench.testing import offer


def manager(blocks=16, **extra):
    return KVCacheManager(blocks, 4, hash_block=8, **extra)


def compute(kv, request, tokens=None, prefix=()):
    """Allocate and finish the first ``tokens`` tokens (default: the prompt)."""
    request.num_tokens = max(request.num_tokens, request.num_prompt_tokens)
    tokens = request.num_prompt_tokens if tokens is None else tokens
    undo = kv.allocate(request, tokens, list(prefix))
    assert undo is not None
    request.num_computed_tokens = tokens
    kv.publish(request)
    return undo


def test_blocks_follow_the_tokens():
    kv, r = manager(), offer(0, 0, 9, 5)
    compute(kv, r)
    assert len(r.blocks) == 3
    assert (kv.num_used, kv.num_free, kv.usage) == (3, 13, 3 / 16)
    assert kv.allocate(r, 12, []).taken == []
    assert len(kv.allocate(r, 13, []).taken) == 1
    assert [kv.blocks_for(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_too_much_is_refused_and_changes_nothing():
    kv, r = manager(4), offer(0, 0, 17, 1)
    r.num_tokens = 17
    assert kv.allocate(r, 17, []) is None
    assert r.blocks == []
    assert kv.num_free == 4


def test_a_shared_prefix_is_found_block_by_block():
    kv = manager()
    one, two = (offer(i, 0, 24, 4, prefix_ids=(5, 6, 70 + i)) for i in range(2))
    compute(kv, one)
    two.num_tokens = 24
    assert kv.find_prefix(two) == one.blocks[:4]  # two ids of eight tokens: four blocks
    compute(kv, two, prefix=kv.find_prefix(two))
    assert two.blocks[:4] == one.blocks[:4]
    assert [kv.pool.refs[block] for block in two.blocks] == [2, 2, 2, 2, 1, 1]
    kv.free(one)
    assert [kv.pool.refs[block] for block in two.blocks] == [1] * 6
    assert kv.pool.audit([two.blocks]) is None


@pytest.mark.parametrize(("prompt", "found"), [(16, 3), (17, 4), (15, 3), (4, 0), (5, 1)])
def test_the_last_token_is_always_computed(prompt, found):
    """A whole prompt in the cache still leaves one token to compute: its logits are needed."""
    kv = manager()
    compute(kv, offer(0, 0, 24, 1, prefix_ids=(5, 6, 7)))
    again = offer(1, 0, prompt, 1, prefix_ids=(5, 6, 7)[: -(-prompt // 8)])
    again.num_tokens = prompt
    assert len(kv.find_prefix(again)) == found
    assert found * 4 < prompt


def test_only_what_is_computed_is_published():
    kv = manager()
    one = offer(0, 0, 24, 1, prefix_ids=(5, 6, 7))
    compute(kv, one, 10)
    two = offer(1, 0, 24, 1, prefix_ids=(5, 6, 7))
    two.num_tokens = 24
    assert len(kv.find_prefix(two)) == 2  # 10 tokens: two full blocks


def test_the_tail_of_a_freed_request_is_evicted_first():
    kv = manager(6)
    one = offer(0, 0, 24, 1, prefix_ids=(5, 6, 7))
    compute(kv, one)
    blocks = list(one.blocks)
    assert kv.free(one) == blocks[::-1]
    taker = offer(1, 0, 8, 1)
    compute(kv, taker)
    assert taker.blocks == [blocks[5], blocks[4]]
    again = offer(2, 0, 24, 1, prefix_ids=(5, 6, 7))
    again.num_tokens = 24
    assert kv.find_prefix(again) == blocks[:4]


def test_blank_blocks_go_before_cached_ones_and_older_before_newer():
    kv = manager(8)
    old, new = (offer(i, 0, 8, 1, prefix_ids=(50 + i,)) for i in range(2))
    compute(kv, old)
    compute(kv, new)
    old_blocks, new_blocks = list(old.blocks), list(new.blocks)
    kv.free(old)
    kv.free(new)
    taker = offer(2, 0, 28, 1)
    compute(kv, taker)
    assert not set(taker.blocks[:4]) & {*old_blocks, *new_blocks}
    assert taker.blocks[4:] == [old_blocks[1], old_blocks[0], new_blocks[1]]


def test_a_preempted_request_finds_its_own_blocks_again_and_nobody_else_does():
    kv = manager()
    r = offer(0, 0, 10, 9)
    compute(kv, r)
    r.num_tokens, r.num_computed_tokens = 15, 14
    kv.allocate(r, 14, [])
    blocks = list(r.blocks)
    assert kv.publish_own(r) == blocks[:3]  # 14 computed tokens: three full blocks
    kv.free(r)
    r.num_preemptions, r.num_computed_tokens = 1, 0
    assert kv.find_prefix(r) == blocks[:3]
    other = offer(1, 0, 10, 9)
    other.num_tokens, other.num_preemptions = 10, 1
    assert kv.find_prefix(other) == []


def test_without_prefix_caching_nothing_is_found():
    kv = manager(prefix_caching=False)
    one = offer(0, 0, 24, 1, prefix_ids=(5, 6, 7))
    compute(kv, one)
    assert kv.publish_own(one) == []
    kv.free(one)
    one.num_preemptions = 1
    assert kv.find_prefix(one) == []
    assert not kv.pool.cached


def test_undo_takes_an_admission_back():
    kv = manager(6)
    one = offer(0, 0, 24, 1, prefix_ids=(5, 6, 7))
    compute(kv, one)
    kv.free(one)
    two = offer(1, 0, 23, 1, prefix_ids=(5, 6, 8))
    two.num_tokens = 23
    hashes, cached = dict(kv.pool._hash_of), set(kv.pool.cached)
    undo = kv.allocate(two, 23, kv.find_prefix(two))
    assert len(undo.shared) == 4
    assert len(undo.taken) == 2
    kv.undo(undo)
    assert two.blocks == []
    assert (dict(kv.pool._hash_of), set(kv.pool.cached)) == (hashes, cached)
    assert kv.pool.audit([]) is None


def test_shared_blocks_that_are_free_do_not_count_twice():
    """Five cached free blocks: a request that shares four of them may take only one more."""
    kv = manager(5)
    one = offer(0, 0, 17, 1, prefix_ids=(5, 6, 7))
    compute(kv, one)
    kv.free(one)
    two = offer(1, 0, 24, 1, prefix_ids=(5, 6, 8))
    two.num_tokens = 24
    prefix = kv.find_prefix(two)
    assert len(prefix) == 4
    assert kv.allocate(two, 21, prefix) is None
    assert kv.allocate(two, 20, prefix) is not None
