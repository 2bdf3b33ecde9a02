"""How much of the device's measured limits the model's own work used."""

from __future__ import annotations

from abc import abstractmethod

from nexusbench.core.units import NS_PER_S
from nexusbench.core.work import Work
from nexusbench.metrics._work import Counts, count_work
from nexusbench.metrics.base import Place, Scalar
from nexusbench.metrics.run_events import RunEvents


class _Utilization(Scalar):
    """A share of one limit over the time in which the device computed."""

    needs_engine = True
    unit, direction = "%", "higher"

    @abstractmethod
    def share(self, counts: Counts, work: Work) -> float:
        """Seconds that the work takes at the limit."""

    def value(self, run: RunEvents) -> float | None:
        """Percent; None where work or limit are not known."""
        work, busy = run.facts.work, run.busy.length
        if work is None or not busy:
            return None
        counts = count_work(run, work)
        return None if counts is None else 100 * self.share(counts, work) * NS_PER_S / busy

    def reason(self, run: RunEvents) -> str:
        """What is not known."""
        if run.facts.work is None:
            return "the limits of this device were not measured"
        if not run.busy.length:
            return "nothing was computed"
        return "prompts were computed layer by layer, and the log does not say how many at a time"


class FlopUtilization(_Utilization):
    """MFU: the model's FLOPs against a large GEMM's rate (PaLM, arXiv 2204.02311, appendix B)."""

    tag, title = "mfu", "MFU"
    formula = "100 sum(o_j) / (P B)"
    place = Place("splits", 70, unit="% of GEMM rate")

    def share(self, counts: Counts, work: Work) -> float:
        """Seconds of GEMM."""
        return counts.flops / work.peak_flops


class BandwidthUtilization(_Utilization):
    """MBU: weights, keys and values against the rate of reading memory."""

    tag, title = "mbu", "MBU"
    formula = "100 sum(r_j) / (W B)"
    place = Place("splits", 80, unit="% of read rate")

    def share(self, counts: Counts, work: Work) -> float:
        """Seconds of reading."""
        return counts.bytes / work.peak_bytes
