"""The one allocator of KV blocks: reference counts, what is free, what can be found again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

LISTED_AT_ONCE = 1 << 16  # blocks of a pool that get a place in the lists when they are needed


class BlockPool:
    """``num_blocks`` blocks with reference counts.

    A free block is either *blank* (its content cannot be found) or *cached* (its content
    has a published hash and may be hit again). Blank blocks are given out first, then cached
    ones, least recently freed first; a request's blocks are freed last block first, so its tail is
    evicted before its head, which is the part that other prompts can share. :meth:`untake` and
    :meth:`unrelease` undo exactly, in reverse order, which is how a refused plan leaves no trace
    (semantics after vLLM v1's block pool; blank-first is ours).

    ``refs`` and ``blank`` list the blocks below ``num_listed``. Those above were never given out:
    they are blank, and lie below all in ``blank``. So a pool costs what of it is used.
    """

    __slots__ = (
        "_block_of", "_hash_of", "blank", "cached", "changes", "num_blocks", "num_listed", "refs",
    )  # fmt: skip

    def __init__(self, num_blocks: int, listed: int = LISTED_AT_ONCE) -> None:
        self.num_blocks = num_blocks
        self.num_listed = 0
        self.changes = 0  # of what can be found: blocks published and evicted so far
        self.refs: list[int] = []
        self.blank: list[int] = []  # the last is given out first
        self._list(listed)
        self.cached: OrderedDict[int, None] = OrderedDict()  # free, oldest first
        self._hash_of: dict[int, int] = {}
        self._block_of: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that no request holds, cached ones included."""
        return len(self.blank) + len(self.cached) + self.num_blocks - self.num_listed

    def _list(self, count: int) -> None:
        """Give the next ``count`` blocks a place in the lists (all that are left, if fewer)."""
        first, end = self.num_listed, min(self.num_blocks, self.num_listed + count)
        self.blank[:0] = range(end - 1, first - 1, -1)
        self.refs.extend([0] * (end - first))
        self.num_listed = end

    def take(self, count: int) -> tuple[list[int], list[int]]:
        """``count`` blocks for one holder, and the hashes evicted for the last of them (undo
        record).

        The caller has checked that ``count <= num_free``.
        """
        blank, refs = self.blank, self.refs
        if count > len(blank) and self.num_listed < self.num_blocks:
            self._list(max(count, LISTED_AT_ONCE))
        if count <= len(blank):
            blocks = [blank.pop() for _ in range(count)]
            for block in blocks:
                refs[block] = 1
            return blocks, []
        blocks = [blank.pop() for _ in range(len(blank))]
        evicted = []
        self.changes += 1
        for _ in range(count - len(blocks)):
            block, _none = self.cached.popitem(last=False)
            key = self._hash_of.pop(block)
            del self._block_of[key]
            evicted.append(key)
            blocks.append(block)
        for block in blocks:
            refs[block] = 1
        return blocks, evicted

    def untake(self, blocks: list[int], evicted: list[int]) -> None:
        """Undo :meth:`take`: the same blocks, blank or cached under the same hash, in the same
        order.
        """
        if evicted:
            self.changes += 1
        for block in reversed(blocks):
            self.refs[block] = 0
            if evicted:
                key = evicted.pop()
                self._hash_of[block], self._block_of[key] = key, block
                self.cached[block] = None
                self.cached.move_to_end(block, last=False)
            else:
                self.blank.append(block)

    def release(self, blocks: Iterable[int]) -> None:
        """Give up one reference on each block, in this order; the last holder frees it."""
        refs, hash_of = self.refs, self._hash_of
        for block in blocks:
            refs[block] -= 1
            if not refs[block]:
                if block in hash_of:
                    self.cached[block] = None
                else:
                    self.blank.append(block)

    def unrelease(self, blocks: list[int]) -> None:
        """Undo :meth:`release` of the same list."""
        for block in reversed(blocks):
            if not self.refs[block]:
                if block in self._hash_of:
                    del self.cached[block]
                else:
                    self.blank.remove(block)
            self.refs[block] += 1

    def find(self, key: int) -> int | None:
        """The block whose content has hash ``key``, or None."""
        return self._block_of.get(key)

    def share(self, blocks: list[int]) -> None:
        """Take one more reference on each published block; :meth:`release` undoes it."""
        refs = self.refs
        for block in blocks:
            if not refs[block]:
                del self.cached[block]
            refs[block] += 1

    def publish(self, block: int, key: int) -> bool:
        """Make a held block findable; the first block with that content wins, later copies stay
        private. Returns whether this one did.
        """
        if key in self._block_of or block in self._hash_of:
            return False
        self._block_of[key] = block
        self._hash_of[block] = key
        self.changes += 1
        return True

    def unpublish(self, blocks: list[int]) -> None:
        """Undo :meth:`publish` of held blocks."""
        self.changes += 1
        for block in blocks:
            del self._block_of[self._hash_of.pop(block)]

    def audit(self, holders: Iterable[list[int]]) -> str | None:
        """What breaks invariant I3, or None.

        Free + held must be all blocks, none twice, and reference counts those of ``holders``
        exactly.
        """
        counts = [0] * self.num_listed
        for blocks in holders:
            if len(set(blocks)) != len(blocks):
                return "a request holds the same block twice"
            for block in blocks:
                counts[block] += 1
        free = [*self.blank, *self.cached]
        if len(set(free)) != len(free):
            return "a block is in the free lists twice"
        if counts != self.refs:
            block = next(b for b in range(self.num_listed) if counts[b] != self.refs[b])
            return f"block {block} has {self.refs[block]} references recorded, {counts[block]} held"
        held = self.num_listed - counts.count(0)
        if held + len(free) != self.num_listed:
            return f"{held} held + {len(free)} free blocks are not {self.num_listed}"
        if any(map(counts.__getitem__, free)):
            return "a held block is in a free list"
        return self.audit_index()

    def audit_index(self) -> str | None:
        """What is wrong with the index of published blocks, or None."""
        if list(map(self._hash_of.get, self._block_of.values())) != list(self._block_of):
            return "the prefix index points at a block with another hash"
        return None
