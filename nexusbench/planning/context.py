"""SchedulerContext: what a policy can see and do in one scheduling instant, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from nexusbench.core.batch import Chunk, Plan, PreemptionKind, Split
from nexusbench.core.errors import PlanRefused
from nexusbench.core.request import Request, RequestView
from nexusbench.core.state import KvView, Limits, QueueView
from nexusbench.planning.journal import Decodes, Draft, Journal

Victim = Callable[[RequestView], RequestView | None]


class SchedulerContext:
    """One scheduling instant, as a policy sees it.

    Reading is free; ``schedule_decodes``, ``try_schedule``, ``preempt``, ``transfer`` and
    ``swap_in`` act on the real allocator and are journalled, so that :meth:`rollback` (or a refused
    plan) leaves everything as it was. There is no clock here but ``now``, no device, no tensor, and
    no true output length. What the engine needs of an instant is the Journal's.
    """

    def __init__(self, journal: Journal, preemption: PreemptionKind = "recompute") -> None:
        self._journal, self._preemption = journal, preemption
        self._state, self._pools, self._policy = journal.state, journal.pools, journal.policy
        self._kv = journal.pools[0]
        self._drafts = journal.drafts
        self._several = journal.state.device.num_gpus > 1

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
    def waiting(self) -> QueueView:
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
    def swapped(self) -> Sequence[RequestView]:
        """Requests whose KV blocks are in host memory, in order of their copies' ends."""
        return self._state.swapped

    def order_key(self, request: RequestView) -> float:
        """Where a request stands in the order of the waiting queue (smaller goes first), or would
        stand if it waited with what it has computed in the cache.
        """
        order, r = self._journal.order, cast(Request, request)
        if order is None:
            return self._journal.order_key(r)
        return order.key(r, r.num_computed_tokens) if r.blocks else r.order_key

    @property
    def num_layers(self) -> int:
        """Layers of the model; a prompt's launch can be restricted to some of them."""
        return self._state.device.num_layers

    def sms(self, partition: str) -> int:
        """SMs of ``partition`` (or of ``remote`` attention) under the split in force, 0 if it has
        none; the split for this plan is chosen after the plan.
        """
        split = self._state.split
        return split.of(partition) if partition in split.partitions else 0

    def kv_of(self, partition: str) -> KvView:
        """Block counts of the GPU that ``partition`` runs on."""
        return self._state.pools[self._state.pool_of(partition)]

    @property
    def split(self) -> Split:
        """The split in force: how many SMs each partition has while all of them run."""
        return self._state.split

    @property
    def splits(self) -> Sequence[Split]:
        """The splits that the partitioner may choose from."""
        return self._state.device.splits

    @property
    def num_sms(self) -> int:
        """SMs of the device: what a lone batch gets where partitions expand."""
        return self._state.device.num_sms

    @property
    def host(self) -> KvView | None:
        """Block counts of the host's memory for swapped KV, None where there is none."""
        host = self._state.device.host
        return None if host is None else self._state.pools[host]

    def is_at(self, request: RequestView, partition: str) -> bool:
        """Whether a running request's blocks are on the GPU of ``partition``."""
        return request.pool == self._state.pool_of(partition)

    @property
    def num_running(self) -> int:
        """Requests that hold KV blocks."""
        return self._state.num_running

    @property
    def blocks_coming(self) -> int:
        """Blocks that swaps to the host under way will free, on all GPUs together."""
        return max(0, self._journal.coming)

    @property
    def preempted(self) -> bool:
        """Whether the plan preempts a request (vLLM then admits none in the same step)."""
        return bool(self._journal.preempted)

    @property
    def idle(self) -> bool:
        """Nothing is in flight, and so far this plan neither launches nor moves anything."""
        drafted = any(draft.tokens for draft in self._drafts.values())
        return not (self._state.busy or self._journal.transfers or drafted)

    def free_slots(self, partition: str = "all") -> int:
        """Batches that can still be queued on ``partition``; 0 while it is busy."""
        return self._state.free_slots(partition)

    def budget(self, partition: str = "all") -> int:
        """Tokens that this plan's batch on ``partition`` may still take."""
        draft = self._drafts.get(partition)
        return self._state.limits.max_num_batched_tokens - (draft.tokens if draft else 0)

    def cached_tokens(self, request: RequestView) -> int:
        """Prompt tokens of a waiting request that the (first) prefix cache holds now."""
        return len(self._kv.find_prefix(cast(Request, request))) * self._kv.block_size

    def last_running(self, request: RequestView) -> RequestView | None:
        """The usual victim (vLLM): the request that joined last and is not in flight, maybe
        ``request``; on the same GPU, where there are several.
        """
        for queue in (self._state.prefilling, self._state.decoding):
            for candidate in reversed(queue):
                if not candidate.in_flight and candidate.pool == request.pool:
                    return candidate
        return None

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

        Where no block is free, ``victim(request)`` names the request to preempt for it (None: leave
        the request out this time). ``repeat`` plans that many decode steps in one launch. Where
        there are several GPUs, a partition decodes what its own GPU's memory holds; requests on
        ``remote``'s GPU are added if it is given, and their attention is computed there. Returns
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
            made = allocate(request, wanted, [])
            while made is None:
                # Blocks that swaps will free are as good as there: this one waits for them.
                waits = journal.claim_block(request)
                chosen = None if waits or victim is None else victim(request)
                if chosen is None:
                    left_out.append(request)
                    break
                self.preempt(chosen)
                if chosen is request or request.in_flight:
                    break
                made = allocate(request, wanted, [])
            if made is not None:
                journal.entries.append(made)
        if left_out or journal.preempted:
            return [r for r in ready if r.blocks and not r.in_flight and r not in left_out]
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
        state, journal = self._state, self._journal
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
        made = kv.allocate(r, computed + count, prefix)
        if made is None:
            if is_waiting and not r.kv_blocked:
                r.kv_blocked = True
                journal.kv_blocked.append(r)
            return 0
        if is_waiting:
            journal.admit(r, home, computed)
        journal.entries.append(made)  # last: taken back first, while the pool is known
        r.in_flight = True
        chunk = Chunk(r, count, computed)
        draft = self._drafts.setdefault(partition, Draft())
        draft.chunks.append(chunk)
        draft.tokens += count
        draft.layers = layers
        journal.entries.append(chunk)
        return count

    def preempt(self, request: RequestView, kind: PreemptionKind | None = None) -> None:
        """Take the blocks of a running request away.

        ``recompute``: at once; it waits again and recomputes what the cache loses. ``swap``: they
        are copied to the host, free when that has ended, and copied back by :meth:`swap_in`; where
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
        host, journal = self._state.device.host, self._journal
        swaps = (self._preemption if kind is None else kind) == "swap" and not r.layers_done
        if host is None or not swaps or not journal.copy(r, host, True):
            journal.evict(r)

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
        return self._journal.copy(r, target, False)

    def swap_in(self, request: RequestView) -> bool:
        """Start to copy a swapped request back; it joins its queue and is in flight until then.

        Returns False, and changes nothing, if there is no seat or no room.
        """
        r, state = cast(Request, request), self._state
        if r not in state.swapped or state.num_running >= state.limits.max_num_seqs:
            return False
        return self._journal.copy(r, 0, False, state.swapped.index(r))

    def swap_in_all(self) -> bool:
        """Copy back the swapped requests that there is room for, in order; whether one is left.

        Policies call this before they admit a waiting request, and admit none if it is True; while
        others run, a hundredth of the blocks stays free (both as vLLM v0 did).
        """
        swapped, kv = self._state.swapped, self._kv
        while swapped and not self._journal.preempted:
            left = kv.num_free - kv.held(swapped[0])
            if (self.num_running and left * 100 < kv.num_blocks) or not self.swap_in(swapped[0]):
                break
        return bool(swapped)

    def savepoint(self) -> int:
        """A mark to :meth:`rollback` to."""
        return len(self._journal.entries)

    def rollback(self, mark: int = 0) -> None:
        """Undo what was scheduled after ``mark``, newest first."""
        self._journal.rollback(mark)

    def plan(self, *, wake_at: int | None = None) -> Plan:
        """What was scheduled since the instant began, as a value for the engine."""
        lengths = self._state.device.times_lengths
        batches = [
            draft.batch(partition, lengths)
            for partition, draft in self._drafts.items()
            if draft.decodes or draft.chunks
        ]
        journal = self._journal
        return Plan(batches, list(journal.preempted), list(journal.transfers), wake_at)
