"""The block pool against a naive model, undo included."""

from __future__ import annotations

import copy

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nexusbench.kv.manager import BlockPool
from tests.examples import examples

SIZE = 9
KEYS = st.integers(0, 12)


class Naive:
    """The same promises, written with plain lists and no thought for speed."""

    def __init__(self, size):
        self.refs = dict.fromkeys(range(size), 0)
        self.blank = list(reversed(range(size)))  # the last is given out first
        self.cached = []  # free with content, the first is evicted first
        self.content = {}  # block -> key

    def take(self):
        block = self.blank.pop() if self.blank else self.cached.pop(0)
        self.content.pop(block, None)
        self.refs[block] = 1
        return block

    def release(self, block):
        self.refs[block] -= 1
        if not self.refs[block]:
            (self.cached if block in self.content else self.blank).append(block)

    def share(self, block):
        if not self.refs[block]:
            self.cached.remove(block)
        self.refs[block] += 1

    def find(self, key):
        return next((block for block, mine in self.content.items() if mine == key), None)


class PoolMachine(RuleBasedStateMachine):
    """Holders take, share, publish and release; now and then something is undone."""

    def __init__(self):
        super().__init__()
        self.pool, self.naive = BlockPool(SIZE), Naive(SIZE)
        self.holders = []

    @rule(count=st.integers(0, SIZE))
    def take(self, count):
        if count > self.pool.num_free:
            return
        blocks, _ = self.pool.take(count)
        assert blocks == [self.naive.take() for _ in range(count)]
        self.holders.append(blocks)

    @rule(count=st.integers(0, SIZE))
    def take_and_undo(self, count):
        if count > self.pool.num_free:
            return
        before = list(self.pool.cached), list(self.pool.blank), dict(self.pool._hash_of)
        blocks, evicted = self.pool.take(count)
        self.pool.untake(blocks, evicted)
        after = list(self.pool.cached), list(self.pool.blank), dict(self.pool._hash_of)
        assert before == after

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data):
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(reversed(holder))
        for block in reversed(holder):
            self.naive.release(block)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release_and_undo(self, data):
        holder = data.draw(st.sampled_from(self.holders))
        before = copy.copy(self.pool.cached), list(self.pool.blank), list(self.pool.refs)
        order = holder[::-1]
        self.pool.release(order)
        self.pool.unrelease(order)
        assert before == (self.pool.cached, self.pool.blank, self.pool.refs)

    @rule(key=KEYS)
    def share(self, key):
        block = self.pool.find(key)
        assert block == self.naive.find(key)
        if block is not None:
            self.pool.share([block])
            self.naive.share(block)
            self.holders.append([block])

    @precondition(lambda self: any(self.holders))
    @rule(data=st.data(), key=KEYS)
    def publish(self, data, key):
        holder = data.draw(st.sampled_from([h for h in self.holders if h]))
        block = data.draw(st.sampled_from(holder))
        new = self.naive.find(key) is None and block not in self.naive.content
        assert self.pool.publish(block, key) == new
        if new:
            self.naive.content[block] = key

    @precondition(lambda self: any(self.holders))
    @rule(data=st.data(), key=KEYS)
    def publish_and_undo(self, data, key):
        holder = data.draw(st.sampled_from([h for h in self.holders if h]))
        before = dict(self.pool._hash_of), dict(self.pool._block_of)
        if self.pool.publish(holder[0], key):
            self.pool.unpublish([holder[0]])
        assert before == (self.pool._hash_of, self.pool._block_of)

    @invariant()
    def same(self):
        pool, naive = self.pool, self.naive
        assert pool.audit(self.holders) is None
        assert pool.refs == list(naive.refs.values())
        assert list(pool.cached) == naive.cached
        assert pool.blank == naive.blank
        assert pool._hash_of == naive.content
        assert pool.num_free == len(naive.cached) + len(naive.blank)


PoolMachine.TestCase.settings = settings(
    max_examples=examples(80), stateful_step_count=40, deadline=None
)
TestPool = PoolMachine.TestCase


def test_the_audit_names_what_is_wrong():
    def audited(spoil):
        pool = BlockPool(4)
        blocks, _ = pool.take(2)
        pool.publish(blocks[0], 7)
        spoil(pool, blocks)
        return pool.audit([blocks])

    assert audited(lambda pool, blocks: None) is None
    assert "same block twice" in audited(lambda pool, blocks: blocks.append(blocks[0]))
    assert "references recorded" in audited(lambda pool, blocks: pool.refs.__setitem__(3, 1))
    assert "free lists twice" in audited(lambda pool, blocks: pool.blank.append(pool.blank[0]))
    assert "are not 4" in audited(lambda pool, blocks: pool.blank.pop())
    assert "another hash" in audited(lambda pool, blocks: pool._hash_of.clear())
