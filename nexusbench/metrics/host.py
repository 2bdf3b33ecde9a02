"""How long the device stands still between two launches because the host is not ready."""

from __future__ import annotations

from abc import abstractmethod

from nexusbench.core.units import NS_PER_US
from nexusbench.core.work import HostGap
from nexusbench.metrics.base import Place, Scalar
from nexusbench.metrics.run_events import RunEvents


class _Gap(Scalar):
    """Over all launches of the run, the warm-up too, that followed another at once."""

    needs_engine = True
    unit, direction = "us", "lower"

    @abstractmethod
    def of(self, gaps: list[HostGap]) -> float:
        """Nanoseconds."""

    def value(self, run: RunEvents) -> float | None:
        """Microseconds; None on a device that does not measure it."""
        gaps = [gap for gap in run.facts.host_gaps.values() if gap.count]
        return self.of(gaps) / NS_PER_US if gaps else None

    def reason(self, run: RunEvents) -> str:
        """Who measures it."""
        return "this device does not measure when a partition stands still"


class MeanGap(_Gap):
    """The mean over launches, whatever partition they ran on."""

    tag, title = "host_gap", "host gap"
    formula = "mean(y_j), j submitted as soon as its partition's launch before had ended"
    place = Place("host", 20, title="host gap, mean", unit="µs")

    def of(self, gaps: list[HostGap]) -> float:
        """All gaps over their number."""
        return sum(gap.total_ns for gap in gaps) / sum(gap.count for gap in gaps)


class LongestGap(_Gap):
    """The longest of all: a pause of the host, or a graph that was captured."""

    tag, title = "host_gap_longest", "longest host gap"
    formula = "max(y_j), j as in host_gap"

    def of(self, gaps: list[HostGap]) -> float:
        """Of any partition."""
        return float(max(gap.longest_ns for gap in gaps))
