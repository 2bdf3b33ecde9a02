"""The allocator of pages for blocks of several sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nexusbench.kv.blocks import BlockPool

NONE = -1  # in the place of a block: a window has passed it, or there is one per sequence


class PagePool(BlockPool):
    """``num_blocks`` pages of memory; a block of group ``g`` fills ``pages[g]`` of them.

    Which pages these are is of no matter to a simulation, so pages are only counted, and a block is
    a number that is used again once its content cannot be found. Lists of blocks may hold
    :data:`NONE`, which is skipped. What is free and evicted first, and undoing, are as of
    :class:`BlockPool`: pages with nothing in them, then cached blocks of whatever group, least
    recently freed first.
    """

    __slots__ = ("_group_of", "_idle", "num_blank", "num_cached", "pages")

    def __init__(self, num_blocks: int, pages: Sequence[int]) -> None:
        super().__init__(num_blocks, listed=0)
        self.pages = tuple(pages)
        self.num_blank = num_blocks  # pages with nothing in them
        self.num_cached = 0  # pages of free blocks that can be found
        self._group_of: list[int] = []
        self._idle: list[list[int]] = [[] for _ in pages]  # by group; the last is used first

    @property
    def num_free(self) -> int:
        """Pages that no request holds, those of cached blocks included."""
        return self.num_blank + self.num_cached

    def pages_of(self, blocks: Iterable[int]) -> int:
        """Pages that ``blocks`` fill."""
        pages, group_of = self.pages, self._group_of
        return sum([pages[group_of[block]] for block in blocks if block >= 0])

    def take(self, count: int) -> tuple[list[int], list[int]]:
        """``count`` blocks of the first group; see :meth:`draw`."""
        return self.draw([0] * count, count * self.pages[0])

    def draw(self, groups: Sequence[int], needed: int) -> tuple[list[int], list[int]]:
        """A block for each of ``groups`` (NONE for NONE), ``needed`` pages together, for one
        holder, and the undo record: the evicted blocks, each with its hash behind it.

        The caller has checked that ``num_free`` pages suffice.
        """
        pages, group_of, idle, refs = self.pages, self._group_of, self._idle, self.refs
        evicted: list[int] = []
        if needed > self.num_blank:
            self.changes += 1
        while needed > self.num_blank:
            block, _none = self.cached.popitem(last=False)
            key = self._hash_of.pop(block)
            del self._block_of[key]
            evicted += (block, key)
            group = group_of[block]
            self.num_cached -= pages[group]
            self.num_blank += pages[group]
            idle[group].append(block)
        self.num_blank -= needed
        blocks = []
        for group in groups:
            if group < 0:
                blocks.append(NONE)
                continue
            if idle[group]:
                block = idle[group].pop()
                refs[block] = 1
            else:
                block = len(refs)
                refs.append(1)
                group_of.append(group)
            blocks.append(block)
        return blocks, evicted

    def untake(self, blocks: list[int], evicted: list[int]) -> None:
        """Undo :meth:`draw`: the same pages, blank or cached under the same hash, in order."""
        pages, group_of, idle = self.pages, self._group_of, self._idle
        for block in reversed(blocks):
            if block >= 0:
                group = group_of[block]
                self.refs[block] = 0
                self.num_blank += pages[group]
                idle[group].append(block)
        if evicted:
            self.changes += 1
        while evicted:
            key, block = evicted.pop(), evicted.pop()
            group = group_of[block]
            idle[group].pop()  # that block: what was freed last is used first
            self.num_blank -= pages[group]
            self.num_cached += pages[group]
            self._hash_of[block], self._block_of[key] = key, block
            self.cached[block] = None
            self.cached.move_to_end(block, last=False)

    def release(self, blocks: Iterable[int]) -> None:
        """Give up one reference on each block, in this order; the last holder frees it."""
        refs, pages, group_of = self.refs, self.pages, self._group_of
        for block in blocks:
            if block < 0:
                continue
            refs[block] -= 1
            if not refs[block]:
                group = group_of[block]
                if block in self._hash_of:
                    self.cached[block] = None
                    self.num_cached += pages[group]
                else:
                    self._idle[group].append(block)
                    self.num_blank += pages[group]

    def unrelease(self, blocks: list[int]) -> None:
        """Undo :meth:`release` of the same list."""
        refs, pages, group_of = self.refs, self.pages, self._group_of
        for block in reversed(blocks):
            if block < 0:
                continue
            if not refs[block]:
                group = group_of[block]
                if block in self._hash_of:
                    del self.cached[block]
                    self.num_cached -= pages[group]
                else:
                    self._idle[group].pop()
                    self.num_blank -= pages[group]
            refs[block] += 1

    def share(self, blocks: list[int]) -> None:
        """Take one more reference on each published block; :meth:`release` undoes it."""
        refs = self.refs
        for block in blocks:
            if block < 0:
                continue
            if not refs[block]:
                del self.cached[block]
                self.num_cached -= self.pages[self._group_of[block]]
            refs[block] += 1

    def audit(self, holders: Iterable[list[int]]) -> str | None:
        """What breaks invariant I3, or None: as of BlockPool, in blocks and in pages."""
        counts = [0] * len(self.refs)
        for held in holders:
            blocks = [block for block in held if block >= 0]
            if len(set(blocks)) != len(blocks):
                return "a request holds the same block twice"
            for block in blocks:
                counts[block] += 1
        if counts != self.refs:
            block = next(b for b, count in enumerate(counts) if count != self.refs[b])
            return f"block {block} has {self.refs[block]} references recorded, {counts[block]} held"
        free = [*self.cached, *(block for idle in self._idle for block in idle)]
        if len(set(free)) != len(free):
            return "a block is in the free lists twice"
        held_blocks = [block for block, count in enumerate(counts) if count]
        if len(held_blocks) + len(free) != len(counts) or not set(held_blocks).isdisjoint(free):
            return f"{len(held_blocks)} held + {len(free)} free blocks are not {len(counts)}"
        if self.num_cached != self.pages_of(self.cached):
            return f"cached blocks fill {self.pages_of(self.cached)} pages, not {self.num_cached}"
        pages = self.pages_of(held_blocks)
        if pages + self.num_free != self.num_blocks:
            return f"{pages} held + {self.num_free} free pages are not {self.num_blocks}"
        return self.audit_index()
