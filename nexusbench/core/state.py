"""The state of a run: queues, launches in flight, the split in force."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from nexusbench.core.batch import Batch, BatchShape, Plan, Split
from nexusbench.core.request import Request, RequestView
from nexusbench.core.specs import DeviceSpec


class Limits(msgspec.Struct, frozen=True):
    """Budgets of a step and of the engine, with vLLM's names and meanings."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    ttft_ms: float | None = None  # bounds of --goodput, where it was given
    tbt_ms: float | None = None

    @property
    def budgets(self) -> dict[str, int]:
        """The bounds of a step, without those of latency."""
        return {
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "max_model_len": self.max_model_len,
        }


class KvView(Protocol):
    """What a policy may read of the KV cache; counts are blocks, of ``block_size`` tokens where all
    layers keep all tokens (``uniform``), else pages that blocks of several sizes fill. So what a
    number of tokens takes is asked, not divided; KVCacheManager says what each method gives.
    """

    @property
    def block_size(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_free(self) -> int: ...
    @property
    def num_used(self) -> int: ...
    @property
    def usage(self) -> float: ...
    @property
    def uniform(self) -> bool: ...
    @property
    def step_blocks(self) -> int: ...
    def next_blocks(self, computed: int) -> int: ...
    def blocks_for(self, num_tokens: int, computed: int | None = None) -> int: ...
    def most_blocks(self, num_tokens: int, step: int) -> int: ...
    def cached_blocks(self, num_tokens: int) -> int: ...
    def growth(self, num_tokens: int, more: int) -> int: ...
    def tokens_in(self, num_blocks: int, each: int = 0) -> int: ...


class QueueView(Protocol):
    """What a policy may read of the waiting queue, in its order."""

    @property
    def head(self) -> RequestView | None: ...
    def __iter__(self) -> Iterator[RequestView]: ...
    def __len__(self) -> int: ...


class WaitingQueue:
    """Requests that hold no KV blocks, in the policy's order: ``order_key``, then arrival.

    The keys do not change while a request waits, unless they depend on what the prefix cache holds
    (:meth:`reorder`), so the head is found in constant time and an insertion costs one binary
    search: a queue of 100,000 is as cheap to schedule from as one of ten.
    """

    __slots__ = ("_items",)

    def __init__(self) -> None:
        # Descending, so that the head is the cheap end of the list.
        self._items: list[tuple[float, int, Request]] = []

    def add(self, request: Request) -> None:
        """Put ``request`` in its place."""
        insort(self._items, (-request.order_key, -request.index, request))

    @property
    def head(self) -> Request | None:
        """The next request, or None."""
        return self._items[-1][2] if self._items else None

    def remove(self, request: Request) -> None:
        """Take ``request`` out (constant time for the head)."""
        items = self._items
        if items and items[-1][2] is request:
            items.pop()
            return
        # A shorter tuple sorts before the longer one that it begins.
        position = bisect_left(items, (-request.order_key, -request.index))
        if position == len(items) or items[position][2] is not request:
            raise KeyError(request.id)
        del items[position]

    def reorder(self, keys: Sequence[float]) -> None:
        """Give all waiting requests new keys, listed in the present order, and sort them."""
        for request, key in zip(list(self), keys, strict=True):
            request.order_key = key
        self._items = sorted([(-r.order_key, -r.index, r) for _, _, r in self._items])

    def __iter__(self) -> Iterator[Request]:
        """In order; the queue may lose requests that were already yielded while this runs."""
        for position in range(len(self._items) - 1, -1, -1):
            yield self._items[position][2]

    def __len__(self) -> int:
        return len(self._items)


class InFlight(msgspec.Struct, gc=False, eq=False):
    """A batch that was submitted and has not ended; ``predicted`` is believed ns, -1 for none."""

    step: int
    batch: Batch
    sms: int
    predicted: int = -1
    since: int = 0  # ns: when it was submitted, or its latest repetition ended


class EngineState:
    """The engine's whole state, read by partitioners as it is and by schedulers through their
    context.

    ``decoding`` and ``prefilling`` together are what vLLM calls running: requests that hold KV
    blocks, in the order in which they joined; a decoding request has exactly one token left to
    compute. ``swapped`` are those whose blocks are in host memory, in order of their copies' ends;
    ``moving`` counts copies of blocks under way, ``swapping_blocks`` the GPU blocks that copies to
    the host will free.
    """

    __slots__ = (
        "decoding",
        "device",
        "in_flight",
        "kv",
        "limits",
        "moving",
        "now",
        "pools",
        "prefilling",
        "split",
        "swapped",
        "swapping_blocks",
        "waiting",
    )

    def __init__(
        self,
        device: DeviceSpec,
        kv: KvView,
        limits: Limits,
        partitions: tuple[str, ...],
        split: Split,
        others: Sequence[KvView] = (),
    ) -> None:
        self.now = 0
        self.device = device
        self.kv = kv
        self.pools: tuple[KvView, ...] = (kv, *others)
        self.swapped: list[Request] = []
        self.moving = 0
        self.swapping_blocks = 0
        self.limits = limits
        self.waiting = WaitingQueue()
        self.decoding: list[Request] = []
        self.prefilling: list[Request] = []
        self.in_flight: dict[str, list[InFlight]] = {name: [] for name in partitions}
        self.split = split

    @property
    def num_running(self) -> int:
        """Requests that hold KV blocks."""
        return len(self.decoding) + len(self.prefilling)

    @property
    def outside(self) -> bool:
        """Whether a request has no blocks on a GPU: waiting, or swapped out."""
        return bool(self.waiting) or bool(self.swapped)

    @property
    def busy(self) -> bool:
        """Something is in flight."""
        return self.moving > 0 or any(self.in_flight.values())

    def pool_of(self, partition: str) -> int:
        """The KV pool of the GPU that ``partition`` runs on."""
        return self.device.pool_of.get(partition, 0)

    def free_slots(self, partition: str) -> int:
        """How many more batches ``partition`` can queue."""
        return self.device.depth - len(self.in_flight[partition])


def shapes_to_run(plan: Plan, state: EngineState) -> dict[str, BatchShape]:
    """What each partition will be running once ``plan`` is launched: its new batch, else the one in
    flight.
    """
    shapes = {batch.partition: batch.shape for batch in plan.batches}
    for partition, running in state.in_flight.items():
        if running and partition not in shapes:
            shapes[partition] = running[0].batch.shape
    return shapes
