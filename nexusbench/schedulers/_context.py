"""SchedulerContext: everything a policy can see and do, journalled on the real KV pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from nexusbench.core.batch import Batch, BatchShape, Chunk, Plan, Preemption
from nexusbench.core.errors import PlanRefused
from nexusbench.core.request import Request, RequestView
from nexusbench.core.state import EngineState, KvView, Limits, WaitingQueue
from nexusbench.kv.manager import KVCacheManager, Undo

Victim = Callable[[RequestView], RequestView | None]


class Draft:
    """One batch being put together."""

    __slots__ = ("chunks", "context", "decodes", "layers", "repeat", "tokens")

    def __init__(self) -> None:
        self.decodes: list[Request] = []
        self.context = 0
        self.chunks: list[Chunk] = []
        self.tokens = 0
        self.layers: tuple[int, int] | None = None
        self.repeat = 1


class Admission(msgspec.Struct, gc=False):
    """Journal entry: a request left the waiting queue with this many cached tokens."""

    request: Request
    cached: int
    cached_before: int  # at the admission before, if any


class Eviction(msgspec.Struct, gc=False):
    """Journal entry: a request was preempted; what it held and how far it was."""

    request: Request
    blocks: list[int]
    published: list[int]
    num_computed: int
    num_hashed: int
    layers_done: int
    order_key: float
    queue: list[Request]
    position: int


class SchedulerContext:
    """One scheduling instant, as a policy sees it.

    Reading is free; ``schedule_decodes``, ``try_schedule`` and ``preempt`` act on the real
    allocator and are journalled, so that :meth:`rollback` (or a refused plan) leaves everything as
    it was. There is no clock here but ``now``, no device, no tensor, and no true output length.
    """

    def __init__(
        self,
        state: EngineState,
        kv: KVCacheManager,
        policy: str,
        order_key: Callable[[RequestView], float],
    ) -> None:
        self._state = state
        self._kv = kv
        self._policy = policy
        self._order_key = order_key
        self._journal: list[Undo | Admission | Eviction | Chunk | list[Request]] = []
        self._drafts: dict[str, Draft] = {}
        self._preempted: list[Preemption] = []
        self.kv_blocked: list[Request] = []  # newly blocked; the engine logs and clears it

    # -- what a policy may see ---------------------------------------------------------------------

    @property
    def now(self) -> int:
        """Nanoseconds on the device's clock."""
        return self._state.now

    @property
    def limits(self) -> Limits:
        """The budgets of this run."""
        return self._state.limits

    @property
    def kv(self) -> KvView:
        """Block counts of the KV cache."""
        return self._kv

    @property
    def waiting(self) -> WaitingQueue:
        """Requests without KV blocks, in this scheduler's order."""
        return self._state.waiting

    @property
    def decoding(self) -> Sequence[RequestView]:
        """Running requests with one token left to compute, in order of joining."""
        return self._state.decoding

    @property
    def prefilling(self) -> Sequence[RequestView]:
        """Running requests with more than one token left to compute, in order of joining."""
        return self._state.prefilling

    @property
    def num_running(self) -> int:
        """Requests that hold KV blocks."""
        return self._state.num_running

    @property
    def preempted(self) -> bool:
        """Whether the plan preempts somebody (vLLM then admits nobody in the same step)."""
        return bool(self._preempted)

    def free_slots(self, partition: str = "all") -> int:
        """Batches that can still be queued on ``partition``; 0 while it is busy."""
        return self._state.free_slots(partition)

    def budget(self, partition: str = "all") -> int:
        """Tokens that this plan's batch on ``partition`` may still take."""
        draft = self._drafts.get(partition)
        return self._state.limits.max_num_batched_tokens - (draft.tokens if draft else 0)

    def cached_tokens(self, request: RequestView) -> int:
        """Prompt tokens of a waiting request that the prefix cache holds now."""
        return len(self._kv.find_prefix(cast(Request, request))) * self._kv.block_size

    # -- what a policy may do ----------------------------------------------------------------------

    def schedule_decodes(
        self, partition: str = "all", *, victim: Victim | None = None, repeat: int = 1
    ) -> int:
        """Put every decoding request that is not in flight into ``partition``'s batch, one token
        each.

        Where no block is free, ``victim(request)`` names whom to preempt for it (None: leave the
        request out this time). ``repeat`` plans that many decode steps in one launch. Returns how
        many were scheduled.
        """
        decoding = self._state.decoding
        if not decoding or self._state.free_slots(partition) < 1:
            return 0
        draft = self._drafts.setdefault(partition, Draft())
        if draft.decodes and draft.repeat != repeat:
            raise PlanRefused("contract", self._policy, "mixes repetitions in one batch")
        room = self._state.limits.max_num_batched_tokens - draft.tokens
        ready = [r for r in decoding if not r.in_flight][:room]
        ready = self._make_room(ready, victim, repeat)
        context = 0
        for request in ready:
            request.in_flight = True
            context += request.num_computed_tokens
        draft.decodes.extend(ready)
        draft.context += context
        draft.tokens += len(ready)
        draft.repeat = repeat
        self._journal.append(ready)
        return len(ready)

    def _make_room(self, ready: list[Request], victim: Victim | None, repeat: int) -> list[Request]:
        """Blocks for the next ``repeat`` tokens of each; returns those that got them."""
        size = self._kv.block_size
        needy = [r for r in ready if not r.num_computed_tokens % size] if repeat == 1 else ready
        allocate, journal = self._kv.allocate, self._journal
        left_out: list[Request] = []
        for request in needy:
            if request.in_flight or not request.blocks:
                continue  # preempted a moment ago, for the sake of an earlier one
            wanted = request.num_computed_tokens + repeat
            undo = allocate(request, wanted, [])
            while undo is None:
                chosen = victim(request) if victim is not None else None
                if chosen is None:
                    left_out.append(request)
                    break
                self.preempt(chosen)
                if chosen is request:
                    break
                undo = allocate(request, wanted, [])
            if undo is not None:
                journal.append(undo)
        if left_out or self._preempted:
            return [r for r in ready if r.blocks and r not in left_out]
        return ready

    def try_schedule(
        self,
        request: RequestView,
        num_tokens: int | None = None,
        partition: str = "all",
        *,
        layers: tuple[int, int] | None = None,
    ) -> int:
        """Put the next tokens of a waiting or prefilling request into ``partition``'s batch.

        At most ``num_tokens`` (default: all that are left), at most the budget. Returns the tokens
        scheduled, or 0 and no change if there is no slot, budget, seat (``max_num_seqs``) or block
        for them.
        """
        r = cast(Request, request)
        state = self._state
        if r.in_flight or state.free_slots(partition) < 1:
            return 0
        is_waiting = not r.blocks
        if not is_waiting and r not in state.prefilling:
            raise PlanRefused(
                "contract", self._policy, f"gives '{r.id}', which is decoding, to try_schedule; "
                "schedule_decodes takes those",
            )  # fmt: skip
        if is_waiting and state.num_running >= state.limits.max_num_seqs:
            return 0
        prefix = self._kv.find_prefix(r) if is_waiting else []
        computed = len(prefix) * self._kv.block_size if is_waiting else r.num_computed_tokens
        count = min(r.num_tokens - computed, self.budget(partition))
        if num_tokens is not None:
            count = min(count, num_tokens)
        if count <= 0:
            return 0
        draft = self._drafts.get(partition)
        if draft is not None and draft.chunks and draft.layers != layers:
            raise PlanRefused("contract", self._policy, "mixes layer ranges in one batch")
        undo = self._kv.allocate(r, computed + count, prefix)
        if undo is None:
            if is_waiting and not r.kv_blocked:
                r.kv_blocked = True
                self.kv_blocked.append(r)
            return 0
        self._journal.append(undo)
        if is_waiting:
            state.waiting.remove(r)
            state.prefilling.append(r)
            self._journal.append(Admission(r, computed, r.num_cached_tokens))
            r.num_computed_tokens = r.num_cached_tokens = computed
        r.in_flight = True
        chunk = Chunk(r, count, computed)
        draft = self._drafts.setdefault(partition, Draft())
        draft.chunks.append(chunk)
        draft.tokens += count
        draft.layers = layers
        self._journal.append(chunk)
        return count

    def preempt(self, request: RequestView) -> None:
        """Take all blocks of a running request; it waits again and recomputes what the cache loses.

        Raises PlanRefused (I11) if the request is in flight, or holds nothing.
        """
        r = cast(Request, request)
        if r.in_flight:
            raise PlanRefused("I11", self._policy, f"preempts request '{r.id}', which is in flight")
        if not r.blocks:
            raise PlanRefused(
                "I11", self._policy, f"preempts request '{r.id}', which holds no blocks"
            )
        state = self._state
        queue = state.decoding if r in state.decoding else state.prefilling
        position = queue.index(r)
        computed, hashed = r.num_computed_tokens, r.num_hashed_blocks
        published = self._kv.publish_own(r)
        blocks = self._kv.free(r)
        del queue[position]
        entry = Eviction(
            r, blocks, published, computed, hashed, r.layers_done, r.order_key, queue, position
        )
        r.num_computed_tokens = 0
        r.layers_done = 0
        r.num_preemptions += 1
        r.order_key = self._order_key(r)
        state.waiting.add(r)
        self._journal.append(entry)
        self._preempted.append(Preemption(r, lost_tokens=entry.num_computed))

    def last_running(self, request: RequestView) -> RequestView | None:
        """The usual victim (vLLM): the request that joined last and is not in flight, maybe
        ``request``.
        """
        for queue in (self._state.prefilling, self._state.decoding):
            for candidate in reversed(queue):
                if not candidate.in_flight:
                    return candidate
        return None

    def plan(self, *, wake_at: int | None = None) -> Plan:
        """What was scheduled since the instant began, as a value for the engine."""
        batches = []
        for partition, draft in self._drafts.items():
            if draft.decodes or draft.chunks:
                chunks = tuple([(c.num_tokens, c.context) for c in draft.chunks])
                shape = BatchShape(
                    len(draft.decodes), draft.context, chunks, draft.layers, draft.repeat
                )
                batches.append(
                    Batch(partition, draft.decodes, draft.chunks, shape, draft.layers, draft.repeat)
                )
        return Plan(batches, list(self._preempted), [], wake_at)

    def built(self, batch: Batch) -> bool:
        """Whether ``batch`` is the one that was put together here in this instant."""
        draft = self._drafts.get(batch.partition)
        return draft is not None and (
            batch.decodes is draft.decodes and batch.chunks is draft.chunks
        )

    # -- the journal -------------------------------------------------------------------------------

    def begin(self) -> None:
        """A new instant (the engine calls this, not a policy)."""
        self._journal.clear()
        self._drafts.clear()
        self._preempted.clear()

    def savepoint(self) -> int:
        """A mark to :meth:`rollback` to."""
        return len(self._journal)

    def rollback(self, mark: int = 0) -> None:
        """Undo everything after ``mark``, newest first."""
        while len(self._journal) > mark:
            entry = self._journal.pop()
            if isinstance(entry, Undo):
                self._kv.undo(entry)
            elif isinstance(entry, Chunk):
                self._undo_chunk(entry)
            elif isinstance(entry, Admission):
                self._state.prefilling.remove(entry.request)
                entry.request.num_computed_tokens = 0
                entry.request.num_cached_tokens = entry.cached_before
                self._state.waiting.add(entry.request)
            elif isinstance(entry, Eviction):
                self._undo_eviction(entry)
            else:
                self._undo_decodes(entry)
        for partition, draft in list(self._drafts.items()):
            if not draft.chunks:
                draft.layers = None
            if not draft.decodes:
                draft.repeat = 1
                if not draft.chunks:
                    del self._drafts[partition]

    def _undo_chunk(self, chunk: Chunk) -> None:
        chunk.request.in_flight = False
        for draft in self._drafts.values():
            if chunk in draft.chunks:
                draft.chunks.remove(chunk)
                draft.tokens -= chunk.num_tokens

    def _undo_decodes(self, decodes: list[Request]) -> None:
        for draft in self._drafts.values():
            if decodes and decodes[0] in draft.decodes:
                draft.decodes = [r for r in draft.decodes if r not in decodes]
                draft.tokens -= len(decodes)
                draft.context -= sum(r.num_computed_tokens for r in decodes)
        for request in decodes:
            request.in_flight = False

    def _undo_eviction(self, entry: Eviction) -> None:
        request = entry.request
        self._preempted.pop()
        self._state.waiting.remove(request)
        self._kv.pool.unrelease(entry.blocks)
        self._kv.pool.unpublish(entry.published)
        request.blocks = entry.blocks[::-1]
        request.num_hashed_blocks = entry.num_hashed
        request.num_computed_tokens = entry.num_computed
        request.layers_done = entry.layers_done
        request.num_preemptions -= 1
        request.order_key = entry.order_key
        entry.queue.insert(entry.position, request)
