"""What a sequence keeps in KV memory, by groups of layers that keep the same tokens, and how blocks
of each group fill one pool of pages.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from nexusbench.core.errors import UsageError
from nexusbench.core.layers import DTYPE_BYTES
from nexusbench.core.mixers import (
    CompressedAttention,
    FullAttention,
    Mixer,
    SparseAttention,
    StateMixer,
    WindowAttention,
)
from nexusbench.core.specs import ModelSpec
from nexusbench.core.units import bytes_text, ceil_div

KvKind = Literal["full", "window", "chunk", "state"]


class KvGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Layers that keep the same tokens: all of them (``full``), the last ``window``, those of the
    same piece of ``window`` tokens (``chunk``), or a ``state``.

    ``num_bytes`` are of all layers of the group, on all GPUs that hold a part of one sequence: of a
    token, or of the state.
    """

    kind: KvKind
    num_bytes: float
    window: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a window that is none."""
        if (self.window > 0) != (self.kind in ("window", "chunk")):
            raise ValueError(f"a group of kind '{self.kind}' with a window of {self.window}")

    def first_kept(self, computed: int) -> int:
        """The first token that the one after ``computed`` tokens attends to."""
        if self.kind == "window":
            return max(0, computed - self.window + 1)
        return computed - computed % self.window if self.kind == "chunk" else 0

    @property
    def label(self) -> str:
        """How much is kept of what, in a few words."""
        size = bytes_text(self.num_bytes)
        if self.kind == "state":
            return f"{size} of states"
        if self.kind == "full":
            return f"{size} a token"
        kept = "the last" if self.kind == "window" else "the same piece of"
        return f"{size} a token of {kept} {self.window:,}"


class KvLayout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The groups of a model: that of all tokens first, then windows, then states."""

    groups: tuple[KvGroup, ...]

    @property
    def label(self) -> str:
        """What its groups keep, in a few words."""
        return " + ".join(group.label for group in self.groups)

    def bytes_of(self, num_tokens: int) -> float:
        """Bytes that a sequence of ``num_tokens`` tokens (at least one) keeps."""
        total = 0.0
        for group in self.groups:
            kept = 1 if group.kind == "state" else num_tokens - group.first_kept(num_tokens - 1)
            total += kept * group.num_bytes
        return total

    @property
    def token_bytes(self) -> float:
        """Bytes of a token that no layer has passed."""
        return sum(group.num_bytes for group in self.groups if group.kind != "state")

    def paged(self, block_size: int) -> KvPages:
        """The layout in blocks of ``block_size`` tokens.

        The page is the largest number of bytes of which blocks of all groups are multiples, so none
        of a group's blocks has a part that is not used; a state fills whole pages. This is vLLM's
        pool of pages of one size, which groups of equally many layers share, without the layers
        that it adds to make them equal (docs/decisions/0015-kv-groups.md).
        """
        if all(group.kind == "full" for group in self.groups):
            return KvPages(block_size, self.token_bytes * block_size, (1,), self.groups)
        sizes = [
            math.ceil(group.num_bytes * (1 if group.kind == "state" else block_size))
            for group in self.groups
        ]
        tokens = [s for s, one in zip(sizes, self.groups, strict=True) if one.kind != "state"]
        page = math.gcd(*tokens) if tokens else sizes[0]
        pages = tuple(ceil_div(size, page) for size in sizes)
        return KvPages(block_size, float(page), pages, self.groups)


class KvPages(msgspec.Struct, frozen=True):
    """A layout in blocks of ``block_size`` tokens (or of one state), which fill ``pages`` pages of
    ``page_bytes`` each, by group. What a pool counts as its blocks are pages.
    """

    block_size: int
    page_bytes: float
    pages: tuple[int, ...]
    groups: tuple[KvGroup, ...]

    def __post_init__(self) -> None:
        """Raises ValueError where a group has no size."""
        if len(self.pages) != len(self.groups) or min(self.pages, default=0) < 1:
            raise ValueError(f"pages {self.pages} of {len(self.groups)} groups")

    @property
    def is_uniform(self) -> bool:
        """Whether every block is of all layers and keeps all of its tokens: a page is a block."""
        return all(group.kind == "full" for group in self.groups)

    @property
    def step(self) -> int:
        """Pages that a sequence takes at most when it enters its next block."""
        each = zip(self.pages, self.groups, strict=True)
        return sum(pages for pages, group in each if group.kind != "state")

    def of(self, num_tokens: int, computed: int | None = None) -> int:
        """Pages of a sequence of ``num_tokens`` tokens while those after the first ``computed`` are
        being computed; default: the last one is.
        """
        if num_tokens <= 0:
            return 0
        size = self.block_size
        done = num_tokens - 1 if computed is None else computed
        blocks, total = ceil_div(num_tokens, size), 0
        for pages, group in zip(self.pages, self.groups, strict=True):
            if group.kind == "state":
                total += pages
            else:
                total += pages * (blocks - group.first_kept(done) // size)
        return total

    def most(self, num_tokens: int, step: int) -> int:
        """Pages that a sequence needs at most until it has ``num_tokens`` tokens, if ``step`` of
        them are computed at a time: those of its window and of the step.
        """
        size = self.block_size
        blocks, total = ceil_div(num_tokens, size), 0
        for pages, group in zip(self.pages, self.groups, strict=True):
            held = blocks
            if group.kind == "state":
                held = 1
            elif group.window:
                held = min(blocks, (group.window + step - 3) // size + 2)
            total += pages * held
        return total

    def room(self, num_tokens: int) -> int:
        """What ``num_tokens`` tokens take in ``1 / block_size`` of a page, windows cut to their
        tokens; whole states.
        """
        if num_tokens <= 0:
            return 0
        total = 0
        for pages, group in zip(self.pages, self.groups, strict=True):
            kept = num_tokens - group.first_kept(num_tokens - 1)
            total += pages * (self.block_size if group.kind == "state" else kept)
        return total

    def tokens_in(self, num_pages: int, each: int = 0) -> int:
        """Tokens that ``num_pages`` pages hold: of one sequence that grows to them, or of sequences
        of ``each``.
        """
        size = self.block_size
        if each:
            return num_pages * size * each // max(1, self.room(each))
        low, high = 0, num_pages * size + 1  # with windows and states alone there is no bound
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._peak(middle) <= num_pages else (low, middle)
        return low

    def _peak(self, num_tokens: int) -> int:
        """``of``, or what the last piece that a sequence has gone through took at its end."""
        ends = (num_tokens // g.window * g.window for g in self.groups if g.kind == "chunk")
        return max(self.of(num_tokens), *map(self.of, ends), 0)


def uniform_pages(block_size: int) -> KvPages:
    """Blocks of all layers, of a size in bytes that is of no matter."""
    return KvPages(block_size, 0.0, (1,), (KvGroup("full", 0.0),))


def kv_layout(model: ModelSpec, gpus: int = 1, *, frees_windows: bool = True) -> KvLayout:
    """What sequences of ``model`` keep on ``gpus`` GPUs of a tensor-parallel group together.

    Where there are more GPUs than KV heads, each head is kept on several of them; latents, which
    all heads share, and index keys on all. Where not ``frees_windows``, layers with a window keep
    all tokens, as engines do whose blocks hold all layers. Raises UsageError for a model that keeps
    nothing.
    """
    each = DTYPE_BYTES[model.dtypes.kv]
    full = state = 0.0
    windows: dict[tuple[KvKind, int], float] = {}
    for group in model.groups:
        mixer, count = group.mixer, group.count
        if mixer is None:
            continue
        copies = _copies(mixer, gpus)
        full += count * (mixer.kv_values * each * copies + mixer.index_bytes * gpus)
        state += count * mixer.state_bytes * copies
        if isinstance(mixer, WindowAttention | CompressedAttention) and mixer.window_values:
            kept = count * mixer.window_values / mixer.window * each * copies
            if frees_windows:
                chunked = isinstance(mixer, WindowAttention) and mixer.chunked
                key: tuple[KvKind, int] = ("chunk" if chunked else "window", mixer.window)
                windows[key] = windows.get(key, 0.0) + kept
            else:
                full += kept
    if not (full or windows or state):
        raise UsageError(
            f"{model.name} has no layer that keeps keys, values or a state, so there is no KV "
            "cache to serve it from. Take a model with attention"
        )
    made = [KvGroup("full", full)] if full else []
    made += [KvGroup(kind, size, window) for (kind, window), size in windows.items()]
    if state:
        made.append(KvGroup("state", state))
    return KvLayout(tuple(made))


def _copies(mixer: Mixer, gpus: int) -> int:
    """On how many of ``gpus`` GPUs each value of a sequence is kept."""
    if isinstance(mixer, SparseAttention):
        return _copies(mixer.base, gpus)
    if isinstance(mixer, FullAttention):
        return max(1, gpus // mixer.num_kv_heads)
    if isinstance(mixer, StateMixer):
        return max(1, gpus // mixer.heads) if mixer.heads else 1
    return gpus  # one head for all queries
