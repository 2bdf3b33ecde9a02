"""SchedulerContext: everything a policy can see and do, journalled on the real KV pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from nexusbench.core.batch import Batch, BatchShape, Chunk, Plan, Preemption, Transfer
from nexusbench.core.errors import PlanRefused
from nexusbench.core.request import Request, RequestView
from nexusbench.planning.journal import Admission, Claim, Decodes, Draft, Eviction, Move
from nexusbench.planning.view import ContextView, PreemptionKind

Victim = Callable[[RequestView], RequestView | None]


class SchedulerContext(ContextView):
    """One scheduling instant, as a policy sees it.

    Reading is free; ``schedule_decodes``, ``try_schedule`` and ``preempt`` act on the real
    allocator and are journalled, so that :meth:`rollback` (or a refused plan) leaves everything as
    it was. There is no clock here but ``now``, no device, no tensor, and no true output length.
    """

    # -- what a policy may do ----------------------------------------------------------------------

    def schedule_decodes(
        self,
        partition: str = "all",
        *,
        victim: Victim | None = None,
        repeat: int = 1,
        chosen: Sequence[RequestView] | None = None,
        remote: str | None = None,
    ) -> int:
        """Put every decoding request that is not in flight into ``partition``'s batch, one token
        each; or those of ``chosen`` alone, in that order.

        Where no block is free, ``victim(request)`` names whom to preempt for it (None: leave the
        request out this time). ``repeat`` plans that many decode steps in one launch. Where there
        are several GPUs, a partition decodes what its own GPU's memory holds; requests on
        ``remote``'s GPU come along if it is given, and their attention is computed there. Returns
        how many were scheduled.
        """
        decoding = self._state.decoding if chosen is None else cast(Sequence[Request], chosen)
        if not decoding or self._state.free_slots(partition) < 1:
            return 0
        draft = self._drafts.setdefault(partition, Draft())
        if draft.decodes and draft.repeat != repeat:
            raise PlanRefused("contract", self._policy, "mixes repetitions in one batch")
        room = self._state.limits.max_num_batched_tokens - draft.tokens
        ready = [r for r in decoding if not r.in_flight]
        if self._several:
            homes = {self._state.pool_of(partition)}
            if remote is not None:
                draft.remote = self._state.pool_of(remote)
                homes.add(draft.remote)
            ready = [r for r in ready if r.pool in homes]
        ready = self._make_room(ready[:room], victim, repeat)
        context = 0
        for request in ready:
            request.in_flight = True
            context += request.num_computed_tokens
        draft.decodes.extend(ready)
        draft.context += context
        draft.tokens += len(ready)
        draft.repeat = repeat
        self._journal.entries.append(Decodes(ready))
        return len(ready)

    def _make_room(self, ready: list[Request], victim: Victim | None, repeat: int) -> list[Request]:
        """Blocks for the next ``repeat`` tokens of each; returns those that got them."""
        size = self._kv.block_size
        needy = [r for r in ready if not r.num_computed_tokens % size] if repeat == 1 else ready
        pools, journal = self._pools, self._journal
        left_out: list[Request] = []
        for request in needy:
            if request.in_flight or not request.blocks:
                continue  # preempted a moment ago, for the sake of an earlier one
            wanted = request.num_computed_tokens + repeat
            allocate = pools[request.pool].allocate
            undo = allocate(request, wanted, [])
            while undo is None:
                # Blocks that swaps will free are as good as there: this one waits for them.
                waits = self._wait_for_swap(request)
                chosen = None if waits or victim is None else victim(request)
                if chosen is None:
                    left_out.append(request)
                    break
                self.preempt(chosen)
                if chosen is request or request.in_flight:
                    break
                undo = allocate(request, wanted, [])
            if undo is not None:
                journal.entries.append(undo)
        if left_out or journal.preempted:
            return [r for r in ready if r.blocks and not r.in_flight and r not in left_out]
        return ready

    def _wait_for_swap(self, request: Request) -> bool:
        """Claim one of the blocks that swaps under way will free, if any is left."""
        journal = self._journal
        if journal.coming <= 0:
            return False
        journal.coming -= 1
        journal.entries.append(Claim(request))
        return True

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
        home = state.pool_of(partition) if self._several else 0
        if not is_waiting and (r not in state.prefilling or r.pool != home):
            raise PlanRefused(
                "contract", self._policy, f"gives '{r.id}', which is decoding or elsewhere, to "
                "try_schedule; schedule_decodes takes decoding requests",
            )  # fmt: skip
        if is_waiting and state.num_running >= state.limits.max_num_seqs:
            return 0
        kv = self._pools[home]
        prefix = kv.find_prefix(r) if is_waiting else []
        computed = len(prefix) * kv.block_size if is_waiting else r.num_computed_tokens
        count = min(r.num_tokens - computed, self.budget(partition))
        if num_tokens is not None:
            count = min(count, num_tokens)
        if count <= 0:
            return 0
        draft = self._drafts.get(partition)
        if draft is not None and draft.chunks and draft.layers != layers:
            raise PlanRefused("contract", self._policy, "mixes layer ranges in one batch")
        undo = kv.allocate(r, computed + count, prefix)
        if undo is None:
            if is_waiting and not r.kv_blocked:
                r.kv_blocked = True
                self.kv_blocked.append(r)
            return 0
        if is_waiting:
            entry = Admission(r, computed, r.num_cached_tokens, r.pool)
            self._journal.entries.append(entry)
            r.pool = home
            state.waiting.remove(r)
            state.prefilling.append(r)
            r.num_computed_tokens = r.num_cached_tokens = computed
        self._journal.entries.append(undo)  # last: taken back first, while the pool is known
        r.in_flight = True
        chunk = Chunk(r, count, computed)
        draft = self._drafts.setdefault(partition, Draft())
        draft.chunks.append(chunk)
        draft.tokens += count
        draft.layers = layers
        self._journal.entries.append(chunk)
        return count

    def preempt(self, request: RequestView, kind: PreemptionKind | None = None) -> None:
        """Take the blocks of a running request away.

        ``recompute``: at once; it waits again and recomputes what the cache loses. ``swap``: they
        are copied to the host, free when that has ended, and come back by :meth:`swap_in`; where
        the host has no room (or the device no host memory), recompute. Default: the scheduler's
        option. Raises PlanRefused (I11) if the request is in flight, or holds nothing.
        """
        r = cast(Request, request)
        if r.in_flight:
            raise PlanRefused("I11", self._policy, f"preempts request '{r.id}', which is in flight")
        if not r.blocks:
            raise PlanRefused(
                "I11", self._policy, f"preempts request '{r.id}', which holds no blocks"
            )
        host = self._state.device.host
        kind = self._preemption if kind is None else kind
        if kind == "swap" and host is not None and not r.layers_done and self._copy(r, host, True):
            return
        state, kv = self._state, self._pools[r.pool]
        queue = state.decoding if r in state.decoding else state.prefilling
        position = queue.index(r)
        computed, hashed = r.num_computed_tokens, r.num_hashed_blocks
        published = kv.publish_own(r)
        blocks = kv.free(r)
        del queue[position]
        entry = Eviction(
            r, blocks, published, computed, hashed, r.layers_done, r.order_key, queue, position
        )
        r.num_computed_tokens = 0
        r.layers_done = 0
        r.num_preemptions += 1
        r.order_key = self.joining_key(r)
        state.waiting.add(r)
        self._journal.entries.append(entry)
        self._journal.preempted.append(Preemption(r, lost_tokens=entry.num_computed))

    def transfer(self, request: RequestView, partition: str) -> bool:
        """Start to move a running request's blocks to the GPU of ``partition``.

        Until the copy has ended it is in flight. Returns False, and changes nothing, if there is no
        room there. Raises PlanRefused for a request in flight, or that is there already.
        """
        r, target = cast(Request, request), self._state.pool_of(partition)
        if r.in_flight or not r.blocks or r.pool == target:
            raise PlanRefused(
                "I11", self._policy, f"moves request '{r.id}' to '{partition}', which is in "
                "flight, holds nothing or is there",
            )  # fmt: skip
        return self._copy(r, target, False)

    def swap_in(self, request: RequestView) -> bool:
        """Start to bring a swapped request back; it joins its queue and is in flight until then.

        Returns False, and changes nothing, if there is no seat or no room.
        """
        r, state = cast(Request, request), self._state
        if r not in state.swapped or state.num_running >= state.limits.max_num_seqs:
            return False
        return self._copy(r, 0, False, state.swapped.index(r))

    def swap_in_all(self) -> bool:
        """Bring back whom there is room for, first come first; whether somebody is still out.

        Policies call this before they admit anybody new, and admit nobody if it is True; while
        others run, a hundredth of the blocks stays free (both as vLLM v0 did).
        """
        swapped, kv = self._state.swapped, self._kv
        while swapped and not self._journal.preempted:
            left = kv.num_free - len(swapped[0].blocks)
            if (self.num_running and left * 100 < kv.num_blocks) or not self.swap_in(swapped[0]):
                break
        return bool(swapped)

    def _copy(self, r: Request, target: int, preempted: bool, position: int = -1) -> bool:
        """Plan a copy of ``r``'s blocks, with one more at home for its next token."""
        kv, state = self._pools[target], self._state
        count = kv.blocks_for(r.num_computed_tokens if preempted else r.num_computed_tokens + 1)
        if count > kv.num_free:
            return False
        blocks, evicted = kv.pool.take(count)
        transfer = Transfer(r, r.pool, target, blocks)
        if preempted:
            r.num_preemptions += 1
            self._journal.preempted.append(Preemption(r, "swap"))
            self._journal.coming += len(r.blocks)
        if position >= 0:
            del state.swapped[position]
            decoding = r.num_computed_tokens + 1 == r.num_tokens
            (state.decoding if decoding else state.prefilling).append(r)
        r.in_flight = True
        self._journal.transfers.append(transfer)
        self._journal.entries.append(Move(transfer, evicted, preempted, position))
        return True

    def last_running(self, request: RequestView) -> RequestView | None:
        """The usual victim (vLLM): the request that joined last and is not in flight, maybe
        ``request``; on the same GPU, where there are several.
        """
        for queue in (self._state.prefilling, self._state.decoding):
            for candidate in reversed(queue):
                if not candidate.in_flight and candidate.pool == request.pool:
                    return candidate
        return None

    def plan(self, *, wake_at: int | None = None) -> Plan:
        """What was scheduled since the instant began, as a value for the engine."""
        batches = []
        for partition, draft in self._drafts.items():
            if draft.decodes or draft.chunks:
                shape = BatchShape(
                    len(draft.decodes),
                    draft.context,
                    tuple([(c.num_tokens, c.context) for c in draft.chunks]),
                    draft.layers,
                    draft.repeat,
                    None if draft.remote is None else self._remote(draft),
                )
                batches.append(
                    Batch(partition, draft.decodes, draft.chunks, shape, draft.layers, draft.repeat)
                )
        journal = self._journal
        return Plan(batches, list(journal.preempted), list(journal.transfers), wake_at)

    def _remote(self, draft: Draft) -> tuple[int, int] | None:
        """How many decodes of a draft have their KV on the other GPU, and their context."""
        away = [r.num_computed_tokens for r in draft.decodes if r.pool == draft.remote]
        return (len(away), sum(away)) if away else None

    def built(self, batch: Batch) -> bool:
        """Whether ``batch`` is the one that was put together here in this instant."""
        draft = self._drafts.get(batch.partition)
        return draft is not None and (
            batch.decodes is draft.decodes and batch.chunks is draft.chunks
        )

    def moved(self, plan: Plan) -> bool:
        """Whether the plan's preemptions and transfers are those that were made here."""
        journal = self._journal
        return plan.preemptions == journal.preempted and plan.transfers == journal.transfers

    # -- the journal -------------------------------------------------------------------------------

    def begin(self) -> None:
        """A new instant (the engine calls this, not a policy)."""
        self._journal.begin()
        if self._order is not None:
            self._order.begin()

    def joining_key(self, request: Request) -> float:
        """The key of a request that starts to wait (for the engine, too)."""
        order = self._order
        key = self._static_key(request) if order is None else order.joining(request)
        if not isinstance(key, float | int) or key != key:  # a queue with NaN in it has no order
            raise PlanRefused("contract", self._policy, f"gives {key!r:.40} as order_key")
        return key

    def savepoint(self) -> int:
        """A mark to :meth:`rollback` to."""
        return len(self._journal.entries)

    def rollback(self, mark: int = 0) -> None:
        """Undo everything after ``mark``, newest first."""
        self._journal.rollback(mark)
