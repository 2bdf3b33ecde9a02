"""Two launches on one simulated GPU: how much they slow each other down, on SMs of their own or on
the same ones.

What was measured, and what the constants were fitted on: docs/fidelity.md, "Partitions".
"""

from __future__ import annotations

import msgspec

from nexusbench.core.specs import GpuSpec
from nexusbench.physics.operators import OperatorClass, clock


class LaunchLoad(msgspec.Struct, frozen=True, gc=False):
    """A launch on ``sms`` SMs: ``solo`` ns without a neighbour, and the operator classes that a
    neighbour slows down.
    """

    solo: float
    sms: int
    dense: OperatorClass
    attention: OperatorClass


class Sharing:
    """Slow-downs of pairs of launches on one GPU."""

    def __init__(self, gpu: GpuSpec) -> None:
        self._sim, self._num_sms = gpu.sim, gpu.num_sms
        self._bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency  # bytes per ns, on all SMs

    def slowdown(self, side: LaunchLoad, other: LaunchLoad) -> float:
        """How many times slower ``side`` runs while ``other`` does (at least 1).

        Each operator class of one side overlaps with each class of the other for the product of
        their shares of time. Host and launch gaps of either side delay nothing. On SMs that both
        claim, kernels alternate instead of running side by side as far as tiles of both hold these
        SMs, for the share ``turn_taking`` of the time; else they overlap.
        """
        sim, sms = self._sim, self._num_sms
        shared = side.sms + other.sms - sms
        on_shared = shared / side.sms if shared > 0 else 0.0
        alternating = on_shared * sim.turn_taking * _holding(side) * _holding(other)
        overlapping = on_shared - alternating
        reach = other.sms / sms
        # What tensor cores lose of their clock because more SMs compute than the side's own.
        own, both = side.sms / sms, min(sms, side.sms + other.sms) / sms
        slower = clock(sim.clock_gain, own) / clock(sim.clock_gain, both) - 1.0
        extra = 0.0
        for mine in (side.dense, side.attention):
            if mine.time <= 0.0:
                continue
            clocked = slower * mine.compute if mine is side.dense else 0.0
            for theirs, disturbs in (
                (other.dense, sim.dense_interference * reach),
                (other.attention, sim.attention_interference * reach),
            ):
                if theirs.time > 0.0:
                    delay = clocked + (1.0 - alternating) * self._apart(mine, theirs, disturbs)
                    if overlapping > 0.0:
                        demand = mine.busy / mine.time + theirs.busy / theirs.time
                        delay += overlapping * max(0.0, demand - 1.0) * mine.compute
                    extra += delay * theirs.time
        if alternating > 0.0:
            extra += alternating * _waiting(side, other, sim.wave_yield)
        return 1.0 + extra / (side.solo * other.solo)

    def _apart(self, mine: OperatorClass, theirs: OperatorClass, disturbs: float) -> float:
        """Extra ns that ``mine`` takes if ``theirs`` runs beside it all the time, on any SMs.

        HBM is shared fairly: each draws up to half, and what the other leaves. ``disturbs`` is how
        much longer memory-bound operators take beside a neighbour that computes all the time (by
        way of L2 and interconnect); one that streams delays compute-bound operators.
        """
        total = self._bandwidth
        wanted, beside = mine.traffic / mine.time, theirs.traffic / theirs.time
        starved = 0.0
        if wanted + beside > total and wanted > 0.5 * total:
            starved = wanted / max(0.5 * total, total - beside) - 1.0
        delay = mine.memory * (starved + disturbs * theirs.busy / theirs.time)
        return delay + mine.compute * self._sim.stream_interference * min(1.0, beside / total)


def _waiting(side: LaunchLoad, other: LaunchLoad, wave_yield: float) -> float:
    """Ns that the kernels of ``side`` wait for those of ``other`` on the same SMs, times the ns of
    ``other``, if kernels only alternate.

    Tiles of one launch wait until a turn of the other's tiles leaves their SMs, one turn of each
    after the other: a wave of tiles with ``wave_yield`` 1, a whole kernel with 0. So both progress
    in proportion to how long their own turns last: short decode kernels wait long for the large
    tiles of a prefill, which hardly waits for them.
    """
    theirs, turns = other.dense.time + other.attention.time, _turns(other, wave_yield)
    if turns <= 0.0:
        return 0.0
    return _turns(side, wave_yield) * (theirs / turns) * theirs


def _turns(load: LaunchLoad, wave_yield: float) -> float:
    """How often its tiles leave their SMs to a neighbour's."""
    waves = load.dense.turns + load.attention.turns
    kernels = load.dense.kernels + load.attention.kernels
    return waves - (1.0 - wave_yield) * (waves - kernels)


def _holding(load: LaunchLoad) -> float:
    """The share of its kernels' time and SMs in which a launch holds the SMs with tiles."""
    time = load.dense.time + load.attention.time
    return (load.dense.held + load.attention.held) / time if time > 0.0 else 0.0
