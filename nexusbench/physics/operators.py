"""What operators of the simulated GPU share: times that add up, bandwidth, clock and L2."""

from __future__ import annotations

from itertools import pairwise

import msgspec

from nexusbench.core.bounds import Curve
from nexusbench.core.specs import GpuSpec
from nexusbench.core.units import MIB


class OperatorClass(msgspec.Struct, frozen=True, gc=False):
    """The dense layers of a launch, or its attention, alone on its SMs.

    ``time`` is ns in all; ``compute`` and ``memory`` are the ns of it in operators bound by tensor
    cores or by HBM (the rest is launches). ``busy`` is all tensor-core ns, ``traffic`` HBM bytes.
    ``kernels`` counts them and ``turns`` their waves of tiles, at least one each: ``time / turns``
    is how long a kernel of a neighbour on the same SMs waits until a wave leaves them. ``held`` is
    ns times the share of the SMs that tiles hold: not launches, nor SMs that a kernel has no tile
    for.
    """

    time: float
    compute: float
    memory: float
    busy: float
    traffic: float
    kernels: float
    turns: float
    held: float


NOTHING = OperatorClass(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def overlapped(
    fixed: float, busy: float, moving: float, exposed: float, traffic: float, tiles: float
) -> OperatorClass:
    """A kernel of ``fixed`` ns, the longer of ``busy`` (compute) and ``moving`` (memory) ns, and
    the share ``exposed`` of the shorter, which overlap does not hide; of ``tiles`` tiles an SM.
    """
    if busy >= moving:
        longer = compute = busy + exposed * moving
        memory = 0.0
    else:
        longer = memory = moving + exposed * busy
        compute = 0.0
    time, turns = fixed + longer, max(1.0, tiles)
    held = longer * filled(tiles)
    return OperatorClass(time, compute, memory, busy, traffic, 1.0, turns, held)


def in_layers(
    layers: int,
    fixed: float,
    longer: float,
    memory: float,
    busy: float,
    traffic: float,
    tiles: float,
) -> OperatorClass:
    """A kernel in each of ``layers`` layers, in ns of one: ``longer`` beside what is ``fixed``, of
    which ``memory`` is bound by HBM; of ``tiles`` tiles an SM.
    """
    return OperatorClass(
        (fixed + longer) * layers,
        (longer - memory) * layers,
        memory * layers,
        busy * layers,
        traffic * layers,
        layers,
        (tiles if tiles > 1.0 else 1.0) * layers,
        longer * (tiles / -(-tiles // 1)) * layers,
    )


def beside(longer: OperatorClass, other: OperatorClass, bandwidth: float) -> OperatorClass:
    """Two operators in streams of their own: what ``other`` reads, at ``bandwidth`` bytes per ns,
    is read in between, and all else of it hides.
    """
    more = min(other.time, other.traffic / bandwidth)
    return OperatorClass(
        longer.time + more, longer.compute, longer.memory + more, longer.busy + other.busy,
        longer.traffic + other.traffic, longer.kernels, longer.turns, longer.held + more,
    )  # fmt: skip


def scaled(made: OperatorClass, factor: float) -> OperatorClass:
    """The same bytes in ``factor`` times the time."""
    return OperatorClass(
        made.time * factor, made.compute * factor, made.memory * factor, made.busy * factor,
        made.traffic, made.kernels, made.turns, made.held * factor,
    )  # fmt: skip


def later(made: OperatorClass, more: float) -> OperatorClass:
    """``made``, which ends ``more`` ns later."""
    return OperatorClass(
        made.time + more, made.compute, made.memory, made.busy, made.traffic, made.kernels,
        made.turns, made.held,
    )  # fmt: skip


def filled(tiles: float) -> float:
    """The share of SMs that have a tile, on average over whole waves of ``tiles`` tiles an SM."""
    return tiles / -(-tiles // 1)


def total(parts: list[OperatorClass]) -> OperatorClass:
    """Operators that run one after the other.

    Not by ``sum``: from Python 3.12 on it compensates the rounding of floats, so times would differ
    from those of 3.11 (I6).
    """
    made = NOTHING
    for part in parts:
        made = scaled_sum(part, 1.0, made)
    return made


def scaled_sum(a: OperatorClass, scale: float, b: OperatorClass) -> OperatorClass:
    """``a`` scaled by ``scale``, then ``b``. Products are rounded before sums: event logs depend on
    this order.
    """
    return OperatorClass(
        a.time * scale + b.time,
        a.compute * scale + b.compute,
        a.memory * scale + b.memory,
        a.busy * scale + b.busy,
        a.traffic * scale + b.traffic,
        a.kernels * scale + b.kernels,
        a.turns * scale + b.turns,
        a.held * scale + b.held,
    )


def attainable(gpu: GpuSpec, sms: int, *, weights: bool = False) -> float:
    """Bytes per ns that ``sms`` SMs draw from HBM: in a plain stream, or with ``weights`` in a
    GEMM.
    """
    curve = (weights and gpu.sim.weights_curve) or gpu.sim.bandwidth_curve
    share = sms / gpu.num_sms
    for (x0, y0), (x1, y1) in pairwise(curve):
        if share <= x1:
            part = y0 + (y1 - y0) * (share - x0) / (x1 - x0)
            return gpu.hbm_gbps * gpu.sim.bandwidth_efficiency * part
    return gpu.hbm_gbps * gpu.sim.bandwidth_efficiency


def stretched(curve: Curve, factor: float) -> Curve:
    """The curve with ``factor`` times the SMs at every bandwidth, cut at all SMs and 1 there; one
    without points stays so.
    """
    if not curve:
        return curve
    points = [(share * factor, drawn) for share, drawn in curve]
    if points[-1][0] <= 1.0:
        points[-1] = (min(1.0, points[-1][0]), 1.0)
        return tuple(points) if points[-1][0] == 1.0 else (*points, (1.0, 1.0))
    inside = [point for point in points if point[0] < 1.0]
    beyond = points[len(inside)]
    (x0, y0), (x1, y1) = inside[-1], beyond
    most = y0 + (y1 - y0) * (1.0 - x0) / (x1 - x0)
    return (*((share, drawn / most) for share, drawn in inside), (1.0, 1.0))


def clock(gain: float, share: float) -> float:
    """How much faster tensor cores run while ``share`` of the SMs compute than while all do.

    A GPU that computes on all SMs is held back by its power limit, one that computes on few is
    not. Measured on A100 and H100: the whole gain up to half of the SMs, and evenly less from there
    on (docs/fidelity.md).
    """
    return 1.0 + gain * min(1.0, max(0.0, 2.0 - 2.0 * share))


class L2:
    """Operands that a benchmark reads again and again stay in L2 if they fit its ``l2_share``."""

    def __init__(self, gpu: GpuSpec) -> None:
        self._bytes = gpu.sim.l2_share * gpu.l2_mib * MIB
        self._ns, self._sms = 1.0 / gpu.sim.l2_gbps, gpu.num_sms

    def per_byte(self, size: float, sms: int, cold: float) -> float:
        """Ns per byte of ``size`` bytes in all; ``cold`` is that of bytes read from HBM."""
        # All of it stays up to the capacity, nothing from 5/4 of it on, linear between. Assumed:
        # what is read in turn evicts what is read next.
        resident = min(1.0, max(0.0, 5.0 - 4.0 * size / self._bytes))
        warm = self._ns * self._sms / sms
        return cold + resident * (warm - cold) if warm < cold else cold
