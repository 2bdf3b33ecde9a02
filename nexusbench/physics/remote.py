"""Attention that another GPU computes for a decode launch, layer by layer (Adrenaline, arXiv
2503.20552, sections 3.2 and 3.3).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nexusbench.core.batch import Batch, BatchShape
from nexusbench.physics.launches import Physics
from nexusbench.physics.operators import NOTHING, OperatorClass
from nexusbench.physics.sharing import LaunchLoad

# What a layer's round trip costs the decode GPU and no overlap hides: packing q, k and v into one
# message, unpacking the outputs, and the stream's wait for them. Assumed, not measured: two kernels
# of 2 us and some microseconds of signalling. The paper gives no figure, but that 0.5 ms a layer
# would be ruinous.
SYNC_NS = 10_000.0


class Away(msgspec.Struct, frozen=True, gc=False):
    """The part of a launch that runs on another GPU. ``pool`` says which; ns, all layers.

    ``local`` is the attention that it overlaps with, ``wire`` the transfers there and back;
    ``rest`` all that overlaps with neither. ``attention`` are its operators on ``sms`` SMs.
    """

    pool: int
    sms: int
    rest: float
    local: float
    wire: float
    attention: OperatorClass

    def time(self, slower: float = 1.0) -> float:
        """Ns of the launch if the remote attention is ``slower`` times slower than alone.

        All layers are alike, so their maxima add up to the maximum of the sums.
        """
        return self.rest + max(self.local, self.attention.time * slower + self.wire)


def split_launch(physics: Physics, batch: Batch, sms: int, pool: int) -> tuple[LaunchLoad, Away]:
    """The load of the decode GPU (all dense layers, and the attention of what it keeps; its time is
    that of the whole launch), and what the GPU of ``pool`` computes for it.
    """
    shape = batch.shape
    assert shape.remote is not None
    count, context = shape.remote
    kept = BatchShape(shape.num_decodes - count, shape.decode_context - context, shape.chunks)
    whole = physics.load(shape, sms)
    local = physics.attention(kept, sms) if kept.num_decodes or kept.chunks else NOTHING
    attention = physics.attention(BatchShape(count, context), batch.remote_sms)
    layers, link = physics.model.num_layers, physics.gpu
    wire = layers * (physics.message_bytes(count) / link.link_gbps + 2e3 * link.link_latency_us)
    rest = whole.solo - whole.attention.time + layers * SYNC_NS
    away = Away(pool, batch.remote_sms, rest, local.time, wire, attention)
    return LaunchLoad(away.time(), sms, whole.dense, local), away


def ghost(away: Away, during: float) -> LaunchLoad:
    """The remote part as a neighbour on its GPU sees it: that attention within ``during`` ns."""
    return LaunchLoad(during, away.sms, NOTHING, away.attention)


def remote_slowdown(physics: Physics, away: Away, beside: Iterable[LaunchLoad]) -> float:
    """How many times slower the remote attention is while ``beside`` run on its GPU."""
    slower, own = 1.0, ghost(away, away.attention.time)
    for load in beside:
        slower += physics.slowdown(own, load) - 1.0
    return slower
