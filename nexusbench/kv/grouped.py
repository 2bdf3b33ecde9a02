"""The paged KV cache of models whose layers do not all keep all tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable

from nexusbench.core.kv_layout import KvPages
from nexusbench.core.request import Request
from nexusbench.kv.manager import Allocation, KVCacheManager
from nexusbench.kv.pages import NONE, PagePool


def kv_cache(
    num_blocks: int, sizes: KvPages, *, hash_block: int = 512, prefix_caching: bool = True
) -> KVCacheManager:
    """The KV cache of ``num_blocks`` blocks (or pages) of a model whose blocks are ``sizes``."""
    if not sizes.is_uniform:
        return GroupedKV(num_blocks, sizes, hash_block=hash_block, prefix_caching=prefix_caching)
    return KVCacheManager(
        num_blocks, sizes.block_size, hash_block=hash_block, prefix_caching=prefix_caching
    )


class GroupedKV(KVCacheManager):
    """KV cache of ``num_blocks`` pages, which the blocks of all groups of ``sizes`` share.

    A request's ``blocks`` hold, for each block of tokens, one entry per group: a block of the
    group, or NONE where a window has passed it; a state is in the first entry of its group. A
    window frees what it has passed when the request enters its next block, and after each chunk; a
    prefix is found where all groups have what the token behind it attends to: groups of all tokens
    the whole prefix, those of windows its end. A state is of the tokens computed so far and no
    block of it is another request's, so with states no prefix is looked for (vLLM's default for
    them). Decision: docs/decisions/0015-kv-groups.md.
    """

    def __init__(
        self,
        num_blocks: int,
        sizes: KvPages,
        *,
        hash_block: int = 512,
        prefix_caching: bool = True,
    ) -> None:
        kinds = [group.kind for group in sizes.groups]
        self._pages = PagePool(num_blocks, sizes.pages)
        super().__init__(
            num_blocks, sizes.block_size, hash_block=hash_block,
            prefix_caching=prefix_caching and "state" not in kinds, pool=self._pages,
        )  # fmt: skip
        self.sizes = sizes
        self._count = len(kinds)
        self._windows = [(g, one) for g, one in enumerate(sizes.groups) if one.window]
        self._step_pages = sizes.step
        # The length from which on no window grows; where pieces begin anew, there is none.
        windows = [one.window if one.kind == "window" else math.inf for _, one in self._windows]
        self._fills_windows = max([1, *windows])
        self._full = [g for g, kind in enumerate(kinds) if kind == "full"]
        # The groups of which a request takes a block with its first block of tokens, and with each
        # one after that.
        self._first = list(range(self._count))
        self._full_pages = sum(sizes.pages[g] for g in self._full)
        self._later = [NONE if kind == "state" else g for g, kind in enumerate(kinds)]

    # -- sizes -------------------------------------------------------------------------------------

    @property
    def uniform(self) -> bool:
        """Never: a model whose layers all keep all tokens has a plain KVCacheManager."""
        return False

    @property
    def step_blocks(self) -> int:
        """Pages that a request takes at most when it enters its next block of tokens."""
        return self._step_pages

    def next_blocks(self, computed: int) -> int:
        """The same after ``computed`` tokens, less what its windows leave behind."""
        before = self.sizes.of(computed, max(0, computed - self.block_size))
        return self.sizes.of(computed + 1, computed) - before

    def blocks_for(self, num_tokens: int, computed: int | None = None) -> int:
        """Pages of so many tokens while those after ``computed`` are being computed."""
        return self.sizes.of(num_tokens, computed)

    def most_blocks(self, num_tokens: int, step: int) -> int:
        """Pages that a request needs at most until it has ``num_tokens`` tokens."""
        return self.sizes.most(num_tokens, step)

    def cached_blocks(self, num_tokens: int) -> int:
        """Pages that a cached prefix saves: of the groups of all tokens. What it has in windows is
        passed while the rest is computed.
        """
        return num_tokens // self.block_size * self._full_pages

    def growth(self, num_tokens: int, more: int) -> int:
        """Room that ``more`` tokens after ``num_tokens`` take, in ``1 / block_size`` of a page.

        Policies ask it of each request at each step, and most requests have filled their windows.
        """
        if num_tokens >= self._fills_windows:
            return more * self._full_pages
        if not num_tokens:
            return self.sizes.room(more)
        total, pages = more * self._step_pages, self.sizes.pages
        for g, one in self._windows:
            passed = one.first_kept(num_tokens + more - 1) - one.first_kept(num_tokens - 1)
            total -= passed * pages[g]
        return total

    def tokens_in(self, num_blocks: int, each: int = 0) -> int:
        """Tokens that so many pages hold: of one request, or of requests of ``each`` tokens."""
        return self.sizes.tokens_in(num_blocks, each)

    # -- what a request holds ----------------------------------------------------------------------

    def held(self, request: Request) -> int:
        """Pages that ``request`` holds, wherever it is."""
        pages, count = self.sizes.pages, self._count
        return sum([pages[i % count] for i, block in enumerate(request.blocks) if block >= 0])

    def covers(self, request: Request) -> bool:
        """Whether ``request`` holds the blocks that the next token attends to (I3)."""
        blocks, count, size = request.blocks, self._count, self.block_size
        computed = request.num_computed_tokens
        end = -(-computed // size)
        for g, one in enumerate(self.sizes.groups):
            begin = 0 if one.kind == "state" else one.first_kept(computed) // size
            upto = min(1, end) if one.kind == "state" else end
            if NONE in blocks[begin * count + g : upto * count : count]:
                return False
        return len(blocks) >= end * count

    def reserve(self, num_tokens: int, computed: int) -> tuple[list[int], list[int]] | None:
        """Blocks for ``num_tokens`` tokens, of which ``computed`` will be copied there."""
        wanted = self._wanted(0, -(-num_tokens // self.block_size), computed)
        needed = self._pages_wanted(wanted)
        return self._pages.draw(wanted, needed) if needed <= self._pages.num_free else None

    def _wanted(self, begin: int, end: int, computed: int) -> list[int]:
        """The group of each entry for the blocks of tokens ``begin`` to ``end``, NONE where none is
        needed any more after ``computed`` tokens.
        """
        wanted = self._later * (end - begin)
        if begin == 0 < end:
            wanted[: self._count] = self._first
        for g, one in self._windows:
            passed = one.first_kept(computed) // self.block_size - begin
            for position in range(min(passed, end - begin)):
                wanted[position * self._count + g] = NONE
        return wanted

    def _pages_wanted(self, wanted: list[int]) -> int:
        pages = self.sizes.pages
        return sum([pages[group] for group in wanted if group >= 0])

    def _passed(self, request: Request, computed: int) -> tuple[tuple[int, int], ...]:
        """(place, block) of what windows have left behind after ``computed`` tokens, last first."""
        blocks, count, size = request.blocks, self._count, self.block_size
        made: list[tuple[int, int]] = []
        for g, one in self._windows:
            place = (min(one.first_kept(computed) // size, len(blocks) // count) - 1) * count + g
            while place >= 0 and blocks[place] >= 0:  # what was passed before is NONE
                made.append((place, blocks[place]))
                place -= count
        return tuple(made)

    # -- prefixes ----------------------------------------------------------------------------------

    def _keys(self, request: Request, position: int) -> range:
        """The hashes of one block of tokens in all groups."""
        key = self._key(request, position) * self._count
        return range(key, key + self._count)

    def find_prefix(self, request: Request) -> list[int]:
        """The blocks of the first group (NONE where a window needs none) of the longest prefix that
        is cached in every group, at least one token short of the request.
        """
        if not self.prefix_caching or (not request.prefix_ids and not request.num_preemptions):
            return []
        find, size, longest = self._pages.find, self.block_size, 0
        since = [0] * len(self._windows)  # from which block on each window's are cached
        for position in range((request.num_tokens - 1) // size):
            keys = self._keys(request, position)
            if any(find(keys[g]) is None for g in self._full):
                break
            end, whole = position + 1, True
            for number, (g, one) in enumerate(self._windows):
                if find(keys[g]) is None:
                    since[number] = end
                whole = whole and since[number] <= one.first_kept(end * size) // size
            longest = end if whole else longest
        return self._shared(request, longest)[:: self._count]

    def _shared(self, request: Request, count: int) -> list[int]:
        """The cached blocks of a prefix of ``count`` blocks of tokens, as a request holds them."""
        groups = self._wanted(0, count, count * self.block_size)
        blocks = []
        for position in range(count):
            for g, key in enumerate(self._keys(request, position)):
                wanted = groups[position * self._count + g] >= 0
                block = self._pages.find(key) if wanted else NONE
                assert block is not None
                blocks.append(block)
        return blocks

    def count_cached(self, requests: Iterable[Request]) -> list[int]:
        """Tokens that :meth:`find_prefix` would find for each."""
        return [len(self.find_prefix(request)) * self.block_size for request in requests]

    # -- changes -----------------------------------------------------------------------------------

    def allocate(self, request: Request, num_tokens: int, prefix: list[int]) -> Allocation | None:
        """Make room for the first ``num_tokens`` tokens, and free what windows have passed; see
        :meth:`KVCacheManager.allocate`.
        """
        pool, size, blocks = self._pages, self.block_size, request.blocks
        computed = len(prefix) * size if not blocks else request.num_computed_tokens
        begin = len(blocks) // self._count + len(prefix)
        end = max(begin, -(-num_tokens // size))
        free, refs = pool.num_blank + pool.num_cached, pool.refs
        passed: tuple[tuple[int, int], ...] = ()
        shared: list[int] = []
        if blocks:  # no window has passed what is not computed yet
            wanted, needed = self._later * (end - begin), self._step_pages * (end - begin)
            passed = self._passed(request, computed)
            free += pool.pages_of([b for _, b in passed if refs[b] == 1])
        else:
            wanted = self._wanted(begin, end, computed)
            needed = self._pages_wanted(wanted)
            shared = self._shared(request, len(prefix))
            free -= pool.pages_of([b for b in shared if b >= 0 and not refs[b]])
        if needed > free:
            return None
        if shared:
            pool.share(shared)
            blocks.extend(shared)
        if passed:
            for place, _ in passed:
                blocks[place] = NONE
            pool.release([block for _, block in passed])
        taken: list[int] = []
        evicted: list[int] = []
        if wanted:
            taken, evicted = pool.draw(wanted, needed)
            blocks.extend(taken)
        return Allocation(request, shared, taken, evicted, passed)

    def publish(self, request: Request) -> None:
        """Make the computed full prompt blocks of ``request`` findable, and free what its windows
        have passed (called when a step completes).
        """
        if self.prefix_caching and request.prefix_ids:
            most = min(request.num_computed_tokens, request.num_prompt_tokens)
            self._publish_to(request, most // self.block_size)
            request.num_hashed_blocks = max(request.num_hashed_blocks, most // self.block_size)
        passed = self._passed(request, request.num_computed_tokens)
        for place, _ in passed:
            request.blocks[place] = NONE
        self._pages.release([block for _, block in passed])

    def publish_own(self, request: Request) -> list[int]:
        """Make all computed full blocks of a request that will return findable; returns those whose
        hashes are new.
        """
        if not self.prefix_caching:
            return []
        return self._publish_to(request, request.num_computed_tokens // self.block_size)

    def _publish_to(self, request: Request, end: int) -> list[int]:
        """Publish the blocks of all groups before the block of tokens ``end``; the new ones."""
        publish, blocks, count, made = self._pages.publish, request.blocks, self._count, []
        for position in range(request.num_hashed_blocks, end):
            for g, key in enumerate(self._keys(request, position)):
                block = blocks[position * count + g]
                if block >= 0 and publish(block, key):
                    made.append(block)
        return made
