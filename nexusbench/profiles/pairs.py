"""What two batches do to each other, looked up near the pairs that were measured."""

from __future__ import annotations

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.work import chunk_work, equivalent_context
from nexusbench.profiles.surface import Axes, Corners, corners

Place = tuple[float, float, float, float]  # chunk tokens, their context, batch, mean context


class Slowdowns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Slowdowns of one phase beside the other, over what both compute and over its own SMs.

    ``prefill`` axes are chunk tokens and their context, ``decode`` axes batch and mean context.
    ``values[prefill][decode]``, positions in either grid in row-major order, is a line: over
    ``own`` SMs of disjoint splits, then one value where all SMs are shared.
    """

    prefill: Axes
    decode: Axes
    own: tuple[float, ...]
    values: tuple[tuple[tuple[float, ...], ...], ...]

    def around(self, shape: BatchShape, neighbour: BatchShape) -> tuple[Corners, Corners]:
        """The corners around a pair in the prefill grid and in the decode grid."""
        tokens, context, batch, keys = place_of(shape, neighbour)
        return corners(self.prefill, tokens, context), corners(self.decode, batch, keys)


def place_of(shape: BatchShape, neighbour: BatchShape) -> Place:
    """Where a pair stands on the axes of the slowdowns.

    The prefill is the side that has chunks, the decode the other. Two batches of one phase are
    looked up beside the least of the other phase.
    """
    own = bool(shape.chunks)
    prefill, decode = (shape, neighbour) if own else (neighbour, shape)
    tokens = batch = 0
    context = keys = 0.0
    if prefill.chunks:
        tokens, pairs = chunk_work(prefill.chunks)
        context = equivalent_context(tokens, pairs)
    if decode.num_decodes and decode.chunks == ():
        batch = decode.num_decodes
        keys = decode.decode_context / batch
    return tokens, context, batch, keys


def contested(apart: float, together: float, own: int, shared: int) -> float:
    """The slowdown where ``shared`` of the ``own`` SMs are claimed by the neighbour too."""
    if shared <= 0:
        return apart
    share = min(1.0, shared / own)
    return apart * (1.0 - share) + together * share
