"""How the SMs were split, for how long, and how often that changed."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from nexusbench.core.units import NS_PER_S
from nexusbench.metrics.base import Place, Scalar
from nexusbench.metrics.intervals import time_with_several
from nexusbench.metrics.run_events import RunEvents


class _MeanSms(Scalar):
    """SMs that one partition had, averaged over the time it computed."""

    needs_engine = True
    unit, direction = "SMs", "none"
    partition: ClassVar[str]

    def value(self, run: RunEvents) -> float | None:
        """SMs; None where the partition computed nothing."""
        if self.partition not in run.facts.partitions:
            return None
        code = run.facts.partitions.index(self.partition)
        keep = run.of_launches("partition") == code
        time = (run.launches.end - run.launches.start)[keep]
        total = int(time.sum())
        return int((run.of_launches("sms")[keep] * time).sum()) / total if total else None

    def reason(self, run: RunEvents) -> str:
        """Names the partition."""
        return f"the partition '{self.partition}' computed nothing"


class PrefillSms(_MeanSms):
    """SMs of the prefill partition."""

    tag, title, partition = "sms_prefill", "SMs of prefill", "prefill"
    formula = "sum(m_j (d_j - b_j)) / sum(d_j - b_j), j on partition prefill"
    place = Place("splits", 10, title="SMs of prefill, mean", unit="")


class DecodeSms(_MeanSms):
    """SMs of the decode partition."""

    tag, title, partition = "sms_decode", "SMs of decode", "decode"
    formula = "sum(m_j (d_j - b_j)) / sum(d_j - b_j), j on partition decode"
    place = Place("splits", 20, title="SMs of decode, mean", unit="")


class WholeSms(_MeanSms):
    """SMs of the undivided device."""

    tag, title, partition = "sms_all", "SMs undivided", "all"
    formula = "sum(m_j (d_j - b_j)) / sum(d_j - b_j), j on partition all"
    place = Place("splits", 30, title="SMs undivided, mean", unit="")


class TimeInForce(Scalar):
    """Share of busy time with two partitions computing: only then is a split in force."""

    needs_engine = True
    tag, unit, direction = "split_in_force", "%", "none"
    title = "split in force"
    formula = "100 |{t : two partitions compute}| / B"
    place = Place("splits", 40, unit="% of busy")

    def value(self, run: RunEvents) -> float | None:
        """Percent of the device's busy time."""
        codes = np.unique(run.of_launches("partition"))
        together = time_with_several([run.busy_of(int(code)) for code in codes])
        return 100 * together / run.busy.length if run.busy.length else None


def _count_changes(run: RunEvents) -> int:
    """Changes of the split after the first launch; setting the first split is no change."""
    changes, launched = run.tables["repartitioned"]["time"], run.tables["submitted"]["time"]
    if not len(launched):
        return 0
    return int(((changes > launched.min()) & (changes >= run.facts.warmup_ns)).sum())


class Repartitions(Scalar):
    """How often the split changed after the first launch."""

    needs_engine = True
    tag, unit, direction = "repartitions", "times", "none"
    title = "re-partitions"
    formula = "R = |{changes of the split after the first launch}|"
    place = Place("splits", 50, unit="")

    def value(self, run: RunEvents) -> float:
        """A count."""
        return _count_changes(run)


class RepartitionRate(Scalar):
    """Changes of the split per minute."""

    needs_engine = True
    tag, unit, direction = "repartition_rate", "1/min", "none"
    title = "re-partitions per minute"
    formula = "60 R / T"

    def value(self, run: RunEvents) -> float:
        """Per minute of the window; 0 in a window of no length."""
        return _count_changes(run) * 60 * NS_PER_S / run.makespan if run.makespan else 0.0


def split_shares(run: RunEvents) -> dict[str, float]:
    """Percent of launched time under each split, e.g. ``{"36/56": 80.0}``; no metric, but a view of
    them.
    """
    code, time = run.of_launches("split"), run.launches.end - run.launches.start
    known = (code >= 0) & (code < len(run.facts.splits))
    totals = np.bincount(code[known], weights=time[known], minlength=len(run.facts.splits))
    shares: dict[str, float] = {}
    for split, total in zip(run.facts.splits, totals.tolist(), strict=True):
        if total:
            name = "/".join(map(str, split))
            shares[name] = shares.get(name, 0.0) + 100 * total / float(totals.sum())
    return shares
