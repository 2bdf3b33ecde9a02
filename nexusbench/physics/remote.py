"""Attention that another GPU computes for a decode launch, layer by layer (Adrenaline, arXiv
2503.20552, sections 3.2 and 3.3).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nexusbench.core.batch import Batch, BatchShape
from nexusbench.physics.launches import Physics
from nexusbench.physics.mixing import Mixing
from nexusbench.physics.operators import NOTHING, OperatorClass, total
from nexusbench.physics.sharing import LaunchLoad

# What a layer's round trip costs the decode GPU and no overlap hides: packing q, k and v into one
# message, unpacking the outputs, and the stream's wait for them. Assumed, not measured: two kernels
# of 2 us and some microseconds of signalling. The paper gives no figure, but that 0.5 ms a layer
# would be ruinous.
SYNC_NS = 10_000.0


class Away(msgspec.Struct, frozen=True, gc=False):
    """The part of a launch that runs on another GPU. ``pool`` says which; ns, all layers.

    ``kinds`` holds, for the layers of each kind of attention, the time of the attention here, that
    of the attention there, and the transfers there and back; ``rest`` is all that overlaps with
    none of them. ``attention`` are the operators there on ``sms`` SMs.
    """

    pool: int
    sms: int
    rest: float
    kinds: tuple[tuple[float, float, float], ...]
    attention: OperatorClass

    def time(self, slower: float = 1.0) -> float:
        """Ns of the launch if the remote attention is ``slower`` times slower than alone.

        All layers of a kind are alike, so their maxima add up to the maximum of the sums.
        """
        made = self.rest
        for local, remote, wire in self.kinds:
            made += max(local, remote * slower + wire)
        return made


def split_launch(physics: Physics, batch: Batch, sms: int, pool: int) -> tuple[LaunchLoad, Away]:
    """The load of the decode GPU (all dense layers, and the attention of what it keeps; its time is
    that of the whole launch), and what the GPU of ``pool`` computes for it.
    """
    shape = batch.shape
    assert shape.remote is not None
    count, context = shape.remote
    kept = BatchShape(
        shape.num_decodes - count, shape.decode_context - context, shape.chunks,
        unequal=shape.unequal,
    )  # fmt: skip
    away_shape = BatchShape(count, context)
    whole = physics.load(shape, sms)
    local = attention_of(physics, kept, sms)
    remote = attention_of(physics, away_shape, batch.remote_sms)
    link, kinds, layers = physics.gpu, [], 0
    for one, here, there in zip(physics.mixing, local, remote, strict=True):
        wire = message_bytes(physics, one, count) / link.link_gbps + 2e3 * link.link_latency_us
        kinds.append((here.time, there.time, one.layers * wire))
        layers += one.layers
    rest = whole.solo - whole.attention.time + layers * SYNC_NS
    away = Away(pool, batch.remote_sms, rest, tuple(kinds), total(remote))
    return LaunchLoad(away.time(), sms, whole.dense, total(local)), away


def attention_of(physics: Physics, shape: BatchShape, sms: int) -> list[OperatorClass]:
    """The attention of each kind of layers; nothing for no tokens."""
    if shape.num_decodes or shape.chunks:
        return physics.attention_by_kind(shape, sms)
    return [NOTHING for _ in physics.mixing]


def message_bytes(physics: Physics, kind: Mixing, rows: int) -> float:
    """Bytes between GPUs for the attention of ``rows`` tokens in one layer: queries, keys and
    values (or the latent that stands for them) one way, outputs back. Of one GPU of a group: each
    has a link of its own.
    """
    return rows * kind.work.message_values * physics.activation_bytes


def ghost(away: Away, during: float) -> LaunchLoad:
    """The remote part as a neighbour on its GPU sees it: that attention within ``during`` ns."""
    return LaunchLoad(during, away.sms, NOTHING, away.attention)


def remote_slowdown(physics: Physics, away: Away, beside: Iterable[LaunchLoad]) -> float:
    """How many times slower the remote attention is while ``beside`` run on its GPU."""
    slower, own = 1.0, ghost(away, away.attention.time)
    for load in beside:
        slower += physics.slowdown(own, load) - 1.0
    return slower
