"""What a policy may see at one instant: the reading half of its context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

from nexusbench.core.batch import Split
from nexusbench.core.request import Request, RequestView
from nexusbench.core.state import EngineState, KvView, Limits, WaitingQueue
from nexusbench.kv.manager import KVCacheManager
from nexusbench.planning.journal import Journal
from nexusbench.planning.order import CacheOrder, Ranking

PreemptionKind = Literal["recompute", "swap"]


class ContextView:
    """Queues, budgets and block counts, read only. There is no clock here but ``now``, no device,
    no tensor, and no true output length.
    """

    def __init__(
        self,
        state: EngineState,
        pools: Sequence[KVCacheManager],
        policy: str,
        order_key: Callable[[RequestView], float],
        preemption: PreemptionKind = "recompute",
        ranking: Ranking | None = None,
    ) -> None:
        self._state = state
        self._pools = pools
        self._kv = pools[0]
        self._policy = policy
        self._static_key = order_key
        self._order = None
        if ranking is not None:
            self._order = CacheOrder(ranking, state.waiting, pools[0], order_key)
        self._preemption = preemption
        self._several = state.device.num_gpus > 1
        self._journal = Journal(state, pools)
        self._drafts = self._journal.drafts
        self.kv_blocked: list[Request] = []  # newly blocked; the engine logs and clears it

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
    def swapped(self) -> Sequence[RequestView]:
        """Requests whose KV blocks rest on the host, in the order in which they came."""
        return self._state.swapped

    def order_key(self, request: RequestView) -> float:
        """Where a request stands in the order of the waiting queue (smaller goes first), or would
        stand if it waited with what it has computed in the cache.
        """
        r = cast(Request, request)
        if self._order is None:
            return self._static_key(r)
        return self._order.key(r, r.num_computed_tokens) if r.blocks else r.order_key

    @property
    def num_layers(self) -> int:
        """Layers of the model; a prompt's launch can be restricted to some of them."""
        return self._state.device.num_layers

    def sms(self, partition: str) -> int:
        """SMs of ``partition`` (or of ``remote`` attention) under the split in force, 0 if it has
        none; the split for this plan comes after it.
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
        """Whether the plan preempts somebody (vLLM then admits nobody in the same step)."""
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
