"""What a plan changed on the way, so that it can be taken back: the context's journal."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nexusbench.core.batch import Chunk, Preemption, Transfer
from nexusbench.core.request import Request
from nexusbench.core.state import EngineState
from nexusbench.kv.manager import KVCacheManager, Undo


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


class Admission(msgspec.Struct, gc=False):
    """A request left the waiting queue with this many cached tokens."""

    request: Request
    cached: int
    cached_before: int  # at the admission before, if any
    pool_before: int  # where it was then


class Eviction(msgspec.Struct, gc=False):
    """A request was preempted; what it held and how far it was."""

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


class Claim(msgspec.Struct, gc=False):
    """A decode waits for one of the blocks that swaps under way will free."""

    request: Request


Entry = Undo | Admission | Eviction | Chunk | Move | Decodes | Claim


class Journal:
    """Entries of one scheduling instant on the real pools, taken back newest first."""

    def __init__(self, state: EngineState, pools: Sequence[KVCacheManager]) -> None:
        self._state, self._pools = state, pools
        self.entries: list[Entry] = []
        self.drafts: dict[str, Draft] = {}
        self.preempted: list[Preemption] = []
        self.transfers: list[Transfer] = []
        self.coming = 0  # blocks that swaps under way will free, less those that are claimed

    def begin(self) -> None:
        """Forget the instant before."""
        self.coming = self._state.swapping_blocks
        self.entries.clear()
        self.drafts.clear()
        self.preempted.clear()
        self.transfers.clear()

    def rollback(self, mark: int) -> None:
        """Undo everything after the first ``mark`` entries."""
        while len(self.entries) > mark:
            entry = self.entries.pop()
            if isinstance(entry, Undo):
                self._pools[entry.request.pool].undo(entry)
            elif isinstance(entry, Chunk):
                self._undo_chunk(entry)
            elif isinstance(entry, Admission):
                self._undo_admission(entry)
            elif isinstance(entry, Eviction):
                self._undo_eviction(entry)
            elif isinstance(entry, Move):
                self._undo_move(entry)
            elif isinstance(entry, Claim):
                self.coming += 1
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
        self._state.prefilling.remove(request)
        request.num_computed_tokens = 0
        request.num_cached_tokens = entry.cached_before
        request.pool = entry.pool_before
        self._state.waiting.add(request)

    def _undo_eviction(self, entry: Eviction) -> None:
        request, pool = entry.request, self._pools[entry.request.pool].pool
        self.preempted.pop()
        self._state.waiting.remove(request)
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
        transfer, state = entry.transfer, self._state
        request = transfer.request
        self.transfers.pop()
        self._pools[transfer.target].pool.untake(transfer.blocks, entry.evicted)
        request.in_flight = False
        if entry.preempted:
            self.preempted.pop()
            request.num_preemptions -= 1
            self.coming -= len(request.blocks)
        if entry.position >= 0:
            queue = state.decoding if request in state.decoding else state.prefilling
            queue.remove(request)
            state.swapped.insert(entry.position, request)
