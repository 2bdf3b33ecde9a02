"""The paged KV cache: the one allocator of blocks, the blocks that each request holds, and the
prompt prefixes that can be reused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from nexusbench.core.request import Request

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

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_listed = 0
        self.changes = 0  # of what can be found: blocks published and evicted so far
        self.refs: list[int] = []
        self.blank: list[int] = []  # the last is given out first
        self._list(LISTED_AT_ONCE)
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
        if list(map(self._hash_of.get, self._block_of.values())) != list(self._block_of):
            return "the prefix index points at a block with another hash"
        return None


class Allocation(msgspec.Struct, gc=False):
    """What one allocation changed, so that it can be taken back.

    Only the recency of shared cached blocks is not restored: looking them up was a use.
    """

    request: Request
    shared: list[int]
    taken: list[int]
    evicted: list[int]


class KVCacheManager:
    """Paged KV cache of ``num_blocks`` blocks of ``block_size`` tokens.

    ``hash_block`` is how many prompt tokens one of a request's ``prefix_ids`` stands for; it must
    be a multiple of the block size, so that one id names the content of whole blocks.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        hash_block: int = 512,
        prefix_caching: bool = True,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.prefix_caching = prefix_caching
        self.pool = BlockPool(num_blocks)
        self._blocks_per_id = max(1, hash_block // block_size)

    @property
    def num_free(self) -> int:
        """Blocks that can be had now (cached free ones included)."""
        return self.pool.num_free

    @property
    def num_used(self) -> int:
        """Blocks that requests hold."""
        return self.num_blocks - self.pool.num_free

    @property
    def usage(self) -> float:
        """Share of all blocks that requests hold."""
        return self.num_used / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` tokens fill."""
        return -(-num_tokens // self.block_size)

    def _key(self, request: Request, position: int) -> int:
        """The hash of a request's full block: shared where the trace names its content, else
        private.

        Private keys let a preempted request find its own blocks again; they are negative, shared
        ones are not.
        """
        per_id = self._blocks_per_id
        named = request.named_tokens or request.num_prompt_tokens
        if request.prefix_ids and position < named // self.block_size:
            return request.prefix_ids[position // per_id] * per_id + position % per_id
        return -((request.index << 24) | position) - 1

    def find_prefix(self, request: Request) -> list[int]:
        """Blocks of the longest cached prefix, at least one token short of the request.

        The last known token is always computed, since its logits are needed (as vLLM does).
        """
        if not self.prefix_caching or (not request.prefix_ids and not request.num_preemptions):
            return []
        found: list[int] = []
        find = self.pool.find
        for position in range((request.num_tokens - 1) // self.block_size):
            block = find(self._key(request, position))
            if block is None:
                break
            found.append(block)
        return found

    def count_cached(self, requests: Iterable[Request]) -> list[int]:
        """Tokens that :meth:`find_prefix` would find for each.

        What one prefix id names is looked up once for all of them, so that a long queue of prompts
        that share a prefix costs a lookup per request and id, not one per block.
        """
        size, per_id, find = self.block_size, self._blocks_per_id, self.pool.find
        leading: dict[int, int] = {}  # id -> its first blocks that are cached without a gap
        counts = []
        for request in requests:
            if request.num_preemptions or not self.prefix_caching:
                counts.append(len(self.find_prefix(request)) * size)
                continue
            blocks, most = 0, (request.num_tokens - 1) // size
            for number in request.prefix_ids:
                found = leading.get(number)
                if found is None:
                    found = 0
                    while found < per_id and find(number * per_id + found) is not None:
                        found += 1
                    leading[number] = found
                blocks += found
                if found < per_id or blocks >= most:
                    break
            counts.append(min(blocks, most) * size)
        return counts

    def allocate(self, request: Request, num_tokens: int, prefix: list[int]) -> Allocation | None:
        """Make room for the first ``num_tokens`` tokens; ``prefix`` are cached blocks to share
        first.

        Returns the undo record, or None (and changes nothing) if there are not enough free blocks.
        """
        pool = self.pool
        needed = -(-num_tokens // self.block_size) - len(request.blocks) - len(prefix)
        free_prefix = sum(1 for block in prefix if not pool.refs[block]) if prefix else 0
        if needed > pool.num_free - free_prefix:
            return None
        if prefix:
            pool.share(prefix)
            request.blocks.extend(prefix)
        taken: list[int] = []
        evicted: list[int] = []
        if needed > 0:
            taken, evicted = pool.take(needed)
            request.blocks.extend(taken)
        return Allocation(request, prefix, taken, evicted)

    def undo(self, record: Allocation) -> None:
        """Take :meth:`allocate` back."""
        request, pool = record.request, self.pool
        if record.taken:
            del request.blocks[-len(record.taken) :]
            pool.untake(record.taken, record.evicted)
        if record.shared:
            del request.blocks[-len(record.shared) :]
            pool.release(record.shared)

    def publish(self, request: Request) -> None:
        """Make the computed full prompt blocks of ``request`` findable (called when a step
        completes).
        """
        if not (self.prefix_caching and request.prefix_ids):
            return
        computed = min(request.num_computed_tokens, request.num_prompt_tokens) // self.block_size
        for position in range(request.num_hashed_blocks, computed):
            self.pool.publish(request.blocks[position], self._key(request, position))
        request.num_hashed_blocks = max(request.num_hashed_blocks, computed)

    def publish_own(self, request: Request) -> list[int]:
        """Make all computed full blocks of a request that will return findable, by itself at least.

        So what is not evicted until then need not be recomputed. Returns the blocks whose hashes
        are new (undo record for the pool).
        """
        if not self.prefix_caching:
            return []
        publish, blocks = self.pool.publish, request.blocks
        computed = request.num_computed_tokens // self.block_size
        return [
            blocks[position]
            for position in range(request.num_hashed_blocks, computed)
            if publish(blocks[position], self._key(request, position))
        ]

    def free(self, request: Request) -> list[int]:
        """Give back all blocks, last first; returns them in that order (undo record for the
        pool).
        """
        blocks = request.blocks[::-1]
        self.pool.release(blocks)
        request.blocks = []
        request.num_hashed_blocks = 0
        return blocks
