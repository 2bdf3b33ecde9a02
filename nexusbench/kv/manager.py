"""The paged KV cache: the blocks that each request holds, and the prompt prefixes that can be
reused.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nexusbench.core.request import Request
from nexusbench.kv.blocks import BlockPool


class Allocation(msgspec.Struct, gc=False):
    """What one allocation changed, so that it can be taken back.

    Only the recency of shared cached blocks is not restored: looking them up was a use. ``passed``
    are (place among the request's blocks, block) of those that windows left behind.
    """

    request: Request
    shared: list[int]
    taken: list[int]
    evicted: list[int]
    passed: tuple[tuple[int, int], ...] = ()


class KVCacheManager:
    """Paged KV cache of ``num_blocks`` blocks of ``block_size`` tokens, of models whose layers all
    keep all tokens (:class:`nexusbench.kv.grouped.GroupedKV` has the others).

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
        pool: BlockPool | None = None,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.prefix_caching = prefix_caching
        self.pool = BlockPool(num_blocks) if pool is None else pool
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

    # -- what a policy may ask of sizes: where all layers keep all tokens, a matter of division ----

    @property
    def uniform(self) -> bool:
        """Whether every token takes the same room: no windows, no states."""
        return True

    @property
    def step_blocks(self) -> int:
        """Blocks that a request takes at most when it enters its next block of tokens."""
        return 1

    def next_blocks(self, computed: int) -> int:
        """The same of a request that decodes, after ``computed`` tokens (a multiple of the block
        size), less those that its windows leave behind.
        """
        return 1

    def blocks_for(self, num_tokens: int, computed: int | None = None) -> int:
        """Blocks that ``num_tokens`` tokens fill while those after ``computed`` are being computed
        (default: the last one is).
        """
        return -(-num_tokens // self.block_size)

    def most_blocks(self, num_tokens: int, step: int) -> int:
        """Blocks that a request needs at most until it has ``num_tokens`` tokens, if ``step`` of
        them are computed at a time.
        """
        return -(-num_tokens // self.block_size)

    def cached_blocks(self, num_tokens: int) -> int:
        """Blocks of :meth:`most_blocks` that a cached prefix of ``num_tokens`` tokens saves."""
        return num_tokens // self.block_size

    def growth(self, num_tokens: int, more: int) -> int:
        """Room that ``more`` tokens after ``num_tokens`` take, in ``1 / block_size`` of a block."""
        return more

    def tokens_in(self, num_blocks: int, each: int = 0) -> int:
        """Tokens that so many blocks hold: of one request, or of requests of ``each`` tokens."""
        return num_blocks * self.block_size

    # -- what a request holds ----------------------------------------------------------------------

    def held(self, request: Request) -> int:
        """Blocks that ``request`` holds."""
        return len(request.blocks)

    def covers(self, request: Request) -> bool:
        """Whether ``request`` holds the blocks that the next token attends to (I3)."""
        return len(request.blocks) * self.block_size >= request.num_computed_tokens

    def reserve(self, num_tokens: int, computed: int) -> tuple[list[int], list[int]] | None:
        """Blocks for ``num_tokens`` tokens, of which ``computed`` will be copied there, and the
        undo record for ``pool.untake``; None, and no change, if there are not enough.
        """
        count = -(-num_tokens // self.block_size)
        return self.pool.take(count) if count <= self.pool.num_free else None

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
        if record.passed:
            for place, block in record.passed:
                request.blocks[place] = block
            pool.unrelease([block for _, block in record.passed])
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
