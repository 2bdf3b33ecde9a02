"""Copies of KV blocks between simulated memories: one queue for each direction of each link."""

from __future__ import annotations

from bisect import insort

from nexusbench.core.errors import UsageError
from nexusbench.core.specs import DeviceSpec, GpuSpec
from nexusbench.core.units import NS_PER_S

# 146 years, the limit of arrivals too: twice that still fits 63 bits.
LAST_NS = 4_611_686_018_427_387_904.0  # 2^62
_NS_PER_YEAR = 31_557_600 * NS_PER_S


def past_the_clock(device: str, what: str, end_ns: float) -> UsageError:
    """The error for a simulated device so slow that its times exceed the clock's 63 bits."""
    return UsageError(
        f"--device {device}: {what} would end {end_ns / _NS_PER_YEAR:.3g} years after the start, "
        f"more than the {LAST_NS / _NS_PER_YEAR:.0f} that its clock can count. Look at the GPU's "
        "description: rates are too low or overheads too high for this model, or else the trace is "
        "too long"
    )


class Links:
    """When copies end. A copy takes the data-sheet rate of its link, and copies of one direction
    follow each other; their HBM traffic is left out (a PCIe 4.0 link draws 3 % of an L20's).
    """

    def __init__(self, gpu: GpuSpec, spec: DeviceSpec) -> None:
        self._gpu, self._host, self._name = gpu, spec.host, spec.name
        self._lanes = float(spec.tensor_parallel)  # each GPU of a group has its own link
        self._free_ns: dict[tuple[int, int], int] = {}
        self._ends: list[tuple[int, int]] = []  # (ns, number), the latest first

    @property
    def busy(self) -> bool:
        """A copy is under way."""
        return bool(self._ends)

    @property
    def next_ns(self) -> int:
        """When the next one ends, in ns; only while busy."""
        return -self._ends[-1][0]

    def start(self, number: int, source: int, target: int, num_bytes: float, now: int) -> None:
        """Queue copy ``number`` of ``num_bytes`` bytes between two pools at ``now`` ns. Raises
        UsageError if it would end beyond the clock's 63 bits.
        """
        gpu = self._gpu
        host = self._host in (source, target)
        rate = (gpu.host_gbps if host else gpu.link_gbps) * self._lanes
        begin = max(now, self._free_ns.get((source, target), 0))
        taken = num_bytes / rate + gpu.link_latency_us * 1e3
        if not begin + taken < LAST_NS:
            raise past_the_clock(self._name, "a copy of KV blocks", begin + taken)
        end = begin + int(taken) + 1
        self._free_ns[source, target] = end
        insort(self._ends, (-end, -number))

    def pop(self) -> int:
        """The number of the copy that ends next; the earlier one where two end together."""
        return -self._ends.pop()[1]
