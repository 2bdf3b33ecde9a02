"""The engine's side of a scheduling instant: every change that a plan makes to queues and KV pools,
and how each is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from nexusbench.core.batch import (
    Batch,
    BatchShape,
    Chunk,
    Plan,
    Preemption,
    Transfer,
    spread_of,
)  # fmt: skip
from nexusbench.core.errors import PlanRefused
from nexusbench.core.request import Request, RequestView
from nexusbench.core.state import EngineState
from nexusbench.kv.manager import Allocation, KVCacheManager
from nexusbench.planning.order import CacheOrder, Ranking


class Draft:
    """One batch being put together."""

    __slots__ = ("chunks", "context", "decodes", "layers", "remote", "repeat", "tokens")

    def __init__(self) -> None:
        self.decodes: list[Request] = []
        self.context = 0
        self.chunks: list[Chunk] = []
        self.tokens = 0
        self.layers: tuple[int, int] | None = None
        self.repeat = 1
        self.remote: int | None = None  # pool of the decodes whose attention is computed there

    def batch(self, partition: str, times_lengths: bool) -> Batch:
        """What was drafted, as a launch on ``partition`` of a device that does so or not."""
        remote: tuple[int, int] | None = None
        unequal: tuple[int, int] | UnsetType = UNSET
        if times_lengths:
            unequal = spread_of(
                [r.num_computed_tokens for r in self.decodes if r.pool != self.remote]
            )
        if self.remote is not None:
            away = [r.num_computed_tokens for r in self.decodes if r.pool == self.remote]
            remote = (len(away), sum(away)) if away else None
        shape = BatchShape(
            len(self.decodes),
            self.context,
            tuple([(c.num_tokens, c.context) for c in self.chunks]),
            self.layers,
            self.repeat,
            remote,
            unequal,
        )
        return Batch(partition, self.decodes, self.chunks, shape, self.layers, self.repeat)


class Admission(msgspec.Struct, gc=False):
    """A request left the waiting queue with this many cached tokens."""

    request: Request
    cached: int
    cached_before: int  # at the admission before, if any
    pool_before: int  # where it was then


class Eviction(msgspec.Struct, gc=False):
    """A request was preempted: what it held and what it had computed."""

    request: Request
    blocks: list[int]
    published: list[int]
    num_computed: int
    num_hashed: int
    layers_done: int
    order_key: float
    queue: list[Request]
    position: int


class Move(msgspec.Struct, gc=False):
    """A copy of a request's blocks was planned; ``preempted`` if that was a swap out, ``position``
    is its place among the swapped if it was a swap in (-1 if not).
    """

    transfer: Transfer
    evicted: list[int]
    preempted: bool
    position: int


class Decodes(msgspec.Struct, gc=False):
    """Decodes that were put into a draft."""

    requests: list[Request]


class BlockClaim(msgspec.Struct, gc=False):
    """A decode waits for blocks that swaps under way will free."""

    request: Request
    count: int


Entry = Allocation | Admission | Eviction | Chunk | Move | Decodes | BlockClaim


class Journal:
    """Entries of one scheduling instant on the real pools, taken back newest first.

    The engine begins each instant, rolls a refused plan back, and asks whether a plan is the one
    that was journalled; a policy reaches it only through its ``SchedulerContext``. ``order_key``
    and ``ranking`` are the scheduler's order of the waiting queue, ``policy`` its name.
    """

    def __init__(
        self,
        state: EngineState,
        pools: Sequence[KVCacheManager],
        policy: str,
        order_key: Callable[[RequestView], float],
        ranking: Ranking | None = None,
    ) -> None:
        self.state, self.pools, self.policy, self.order_key = state, pools, policy, order_key
        self.order: CacheOrder | None = None
        if ranking is not None:
            self.order = CacheOrder(ranking, state.waiting, pools[0], order_key)
        self.entries: list[Entry] = []
        self.drafts: dict[str, Draft] = {}
        self.preempted: list[Preemption] = []
        self.transfers: list[Transfer] = []
        self.kv_blocked: list[Request] = []  # newly blocked; the engine logs and clears it
        self.coming = 0  # blocks that swaps under way will free, less those that are claimed

    def begin(self) -> None:
        """A new instant: forget the one before, order the queue by what the cache holds now."""
        self.coming = self.state.swapping_blocks
        self.entries.clear()
        self.drafts.clear()
        self.preempted.clear()
        self.transfers.clear()
        if self.order is not None:
            self.order.begin()

    def matches(self, plan: Plan) -> bool:
        """Whether the plan's preemptions and transfers are those that were journalled."""
        return plan.preemptions == self.preempted and plan.transfers == self.transfers

    def drafted(self, batch: Batch) -> bool:
        """Whether ``batch`` is the one that was put together in this instant."""
        draft = self.drafts.get(batch.partition)
        return draft is not None and (
            batch.decodes is draft.decodes and batch.chunks is draft.chunks
        )

    def joining_key(self, request: Request) -> float:
        """The key of a request that starts to wait. Raises PlanRefused for one without an order."""
        key = self.order_key(request) if self.order is None else self.order.joining(request)
        if not isinstance(key, float | int) or key != key:  # a queue with NaN in it has no order
            raise PlanRefused("contract", self.policy, f"gives {key!r:.40} as order_key")
        return key

    # -- changes -----------------------------------------------------------------------------------

    def admit(self, request: Request, pool: int, computed: int) -> None:
        """``request`` leaves the waiting queue for ``pool`` with ``computed`` cached tokens."""
        state = self.state
        entry = Admission(request, computed, request.num_cached_tokens, request.pool)
        self.entries.append(entry)
        request.pool = pool
        state.waiting.remove(request)
        state.prefilling.append(request)
        request.num_computed_tokens = request.num_cached_tokens = computed

    def evict(self, request: Request) -> None:
        """Preempt by recomputation: the request's blocks are free at once, and it waits again."""
        state, kv = self.state, self.pools[request.pool]
        queue = state.decoding if request in state.decoding else state.prefilling
        position = queue.index(request)
        computed, hashed = request.num_computed_tokens, request.num_hashed_blocks
        published = kv.publish_own(request)
        blocks = kv.free(request)
        del queue[position]
        entry = Eviction(
            request, blocks, published, computed, hashed, request.layers_done, request.order_key,
            queue, position,
        )  # fmt: skip
        request.num_computed_tokens = 0
        request.layers_done = 0
        request.num_preemptions += 1
        request.order_key = self.joining_key(request)
        state.waiting.add(request)
        self.entries.append(entry)
        self.preempted.append(Preemption(request, lost_tokens=computed))

    def copy(self, request: Request, target: int, preempted: bool, position: int = -1) -> bool:
        """Plan a copy of the request's blocks to pool ``target``, on a GPU with one more for its
        next token; False, and no change, where there is no room. ``position``: see Move.
        """
        kv, state = self.pools[target], self.state
        computed = request.num_computed_tokens
        made = kv.reserve(computed if preempted else computed + 1, computed)
        if made is None:
            return False
        blocks, evicted = made
        transfer = Transfer(request, request.pool, target, blocks)
        if preempted:
            request.num_preemptions += 1
            self.preempted.append(Preemption(request, "swap"))
            self.coming += self.pools[request.pool].held(request)
        if position >= 0:
            del state.swapped[position]
            decoding = computed + 1 == request.num_tokens
            (state.decoding if decoding else state.prefilling).append(request)
        request.in_flight = True
        self.transfers.append(transfer)
        self.entries.append(Move(transfer, evicted, preempted, position))
        return True

    def claim_block(self, request: Request) -> bool:
        """Claim what a decode lacks of the blocks that swaps under way will free, if enough."""
        count = self.pools[request.pool].next_blocks(request.num_computed_tokens)
        if self.coming < count:
            return False
        self.coming -= count
        self.entries.append(BlockClaim(request, count))
        return True

    # -- the same, taken back ----------------------------------------------------------------------

    def rollback(self, mark: int = 0) -> None:
        """Undo everything after the first ``mark`` entries."""
        while len(self.entries) > mark:
            entry = self.entries.pop()
            if isinstance(entry, Allocation):
                self.pools[entry.request.pool].undo(entry)
            elif isinstance(entry, Chunk):
                self._undo_chunk(entry)
            elif isinstance(entry, Admission):
                self._undo_admission(entry)
            elif isinstance(entry, Eviction):
                self._undo_eviction(entry)
            elif isinstance(entry, Move):
                self._undo_move(entry)
            elif isinstance(entry, BlockClaim):
                self.coming += entry.count
            else:
                self._undo_decodes(entry.requests)
        for partition, draft in list(self.drafts.items()):
            if not draft.chunks:
                draft.layers = None
            if not draft.decodes:
                draft.repeat, draft.remote = 1, None
                if not draft.chunks:
                    del self.drafts[partition]

    def _undo_chunk(self, chunk: Chunk) -> None:
        chunk.request.in_flight = False
        for draft in self.drafts.values():
            if chunk in draft.chunks:
                draft.chunks.remove(chunk)
                draft.tokens -= chunk.num_tokens

    def _undo_decodes(self, decodes: list[Request]) -> None:
        for draft in self.drafts.values():
            if decodes and decodes[0] in draft.decodes:
                draft.decodes = [r for r in draft.decodes if r not in decodes]
                draft.tokens -= len(decodes)
                draft.context -= sum(r.num_computed_tokens for r in decodes)
        for request in decodes:
            request.in_flight = False

    def _undo_admission(self, entry: Admission) -> None:
        request = entry.request
        self.state.prefilling.remove(request)
        request.num_computed_tokens = 0
        request.num_cached_tokens = entry.cached_before
        request.pool = entry.pool_before
        self.state.waiting.add(request)

    def _undo_eviction(self, entry: Eviction) -> None:
        request, pool = entry.request, self.pools[entry.request.pool].pool
        self.preempted.pop()
        self.state.waiting.remove(request)
        pool.unrelease(entry.blocks)
        pool.unpublish(entry.published)
        request.blocks = entry.blocks[::-1]
        request.num_hashed_blocks = entry.num_hashed
        request.num_computed_tokens = entry.num_computed
        request.layers_done = entry.layers_done
        request.num_preemptions -= 1
        request.order_key = entry.order_key
        entry.queue.insert(entry.position, request)

    def _undo_move(self, entry: Move) -> None:
        transfer, state = entry.transfer, self.state
        request = transfer.request
        self.transfers.pop()
        self.pools[transfer.target].pool.untake(transfer.blocks, entry.evicted)
        request.in_flight = False
        if entry.preempted:
            self.preempted.pop()
            request.num_preemptions -= 1
            self.coming -= self.pools[request.pool].held(request)
        if entry.position >= 0:
            queue = state.decoding if request in state.decoding else state.prefilling
            queue.remove(request)
            state.swapped.insert(entry.position, request)
