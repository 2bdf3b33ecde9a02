"""What the simulated GPU knows of a group of kernels on some SMs, and how such groups add up."""

from __future__ import annotations

import msgspec

from nexusbench.core.specs import GpuSpec
from nexusbench.core.units import MIB


class OperatorClass(msgspec.Struct, frozen=True, gc=False):
    """One side's dense layers, or its attention, alone on its SMs.

    ``compute`` and ``memory`` are the ns in operators bound by tensor cores or by HBM (the rest of
    ``time`` is launches); ``busy`` is all tensor-core time, ``traffic`` all HBM bytes.
    """

    time: float
    compute: float
    memory: float
    busy: float
    traffic: float


NOTHING = OperatorClass(0.0, 0.0, 0.0, 0.0, 0.0)


def overlapped(
    fixed: float, busy: float, moving: float, exposed: float, traffic: float
) -> OperatorClass:
    """A kernel whose compute and memory ns overlap but for the share ``exposed`` of the shorter."""
    if busy >= moving:
        longer = busy + exposed * moving
        return OperatorClass(fixed + longer, longer, 0.0, busy, traffic)
    longer = moving + exposed * busy
    return OperatorClass(fixed + longer, 0.0, longer, busy, traffic)


def total(parts: list[OperatorClass]) -> OperatorClass:
    """One after the other.

    Not by ``sum``: from Python 3.12 on it compensates the rounding of floats, which gives other
    times than 3.11 (I6).
    """
    time = compute = memory = busy = traffic = 0.0
    for part in parts:
        time += part.time
        compute += part.compute
        memory += part.memory
        busy += part.busy
        traffic += part.traffic
    return OperatorClass(time, compute, memory, busy, traffic)


def scaled_sum(a: OperatorClass, scale: float, b: OperatorClass) -> OperatorClass:
    """``scale`` times ``a``, then ``b``."""
    return OperatorClass(
        a.time * scale + b.time,
        a.compute * scale + b.compute,
        a.memory * scale + b.memory,
        a.busy * scale + b.busy,
        a.traffic * scale + b.traffic,
    )


class L2:
    """Operands that a benchmark goes round stay in L2 if they fit its ``l2_share``."""

    def __init__(self, gpu: GpuSpec) -> None:
        self._bytes = gpu.sim.l2_share * gpu.l2_mib * MIB
        self._ns, self._sms = 1.0 / gpu.sim.l2_gbps, gpu.num_sms

    def per_byte(self, size: float, sms: int, cold: float) -> float:
        """Time (ns) per byte of ``size`` bytes in all, ``cold`` if they come from HBM."""
        resident = min(1.0, max(0.0, 5.0 - 4.0 * size / self._bytes))
        warm = self._ns * self._sms / sms
        return cold + resident * (warm - cold) if warm < cold else cold
