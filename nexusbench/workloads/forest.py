"""Shared prompt beginnings: trees of prefixes, as system prompts, tools and few-shot examples make
them.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated

import msgspec

if TYPE_CHECKING:
    import numpy as np

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Exponent = Annotated[float, msgspec.Meta(ge=0, le=10)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class Prefixes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[prefixes]`` table: ``trees`` trees of ``depth`` levels, ``fanout`` children per node,
    ``tokens`` tokens per node.

    A prompt begins with the tokens on a path from a root to a leaf, its own input comes on top.
    Trees and children are chosen with weights 1/rank^``zipf`` (0: all alike); ``share`` of the
    sessions (or lone requests) begin so.
    """

    tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    trees: Count = 1
    depth: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    fanout: Count = 1
    zipf: Exponent = 0.0
    share: Share = 1.0


class BlockNames:
    """Numbers for blocks of prompt tokens, each given out once."""

    def __init__(self) -> None:
        self._next = 0

    def fresh(self, count: int) -> range:
        """``count`` numbers that are not in use."""
        names = range(self._next, self._next + count)
        self._next += count
        return names


class Forest:
    """Draws paths through the trees and names their blocks."""

    def __init__(self, spec: Prefixes, hash_block: int, names: BlockNames) -> None:
        self._spec, self._names = spec, names
        self._blocks = spec.tokens // hash_block
        self._trees = zipf_edges(spec.trees, spec.zipf)
        self._children = zipf_edges(spec.fanout, spec.zipf)
        self._nodes: dict[tuple[int, ...], range] = {}

    def draw(self, rng: np.random.Generator) -> list[int]:
        """The hash ids of one path; none for a prompt that shares nothing.

        Each call takes the same amount of random numbers.
        """
        has, tree, *steps = rng.random(self._spec.depth + 1).tolist()
        if has >= self._spec.share:
            return []
        path = [bisect_right(self._trees, tree)]
        path += [bisect_right(self._children, step) for step in steps]
        ids: list[int] = []
        for depth in range(1, len(path) + 1):
            node = tuple(path[:depth])
            if node not in self._nodes:
                self._nodes[node] = self._names.fresh(self._blocks)
            ids.extend(self._nodes[node])
        return ids


def zipf_edges(count: int, exponent: float) -> list[float]:
    """Inner edges of ``count`` shares of [0, 1) in proportion to 1/rank^``exponent``.

    The share that a uniform number falls into is ``bisect_right(edges, number)``.
    """
    sums = list(accumulate((rank + 1) ** -exponent for rank in range(count)))
    return [value / sums[-1] for value in sums[:-1]]
