"""What the device did: batches, busy time, and the time lost to a neighbour."""

from __future__ import annotations

import numpy as np

from nexusbench.metrics.base import Distribution, Place, Scalar
from nexusbench.metrics.intervals import FloatArray
from nexusbench.metrics.pieces import continued
from nexusbench.metrics.run_events import RunEvents


class BatchSize(Distribution):
    """Requests in a launch."""

    needs_engine = True
    tag, unit, direction = "batch_size", "requests", "none"
    title = "batch size"
    formula = "x_j + h_j (decodes and chunks of launch j)"

    def values(self, run: RunEvents) -> FloatArray:
        """One value per launch."""
        return (run.of_launches("decodes") + run.of_launches("chunks")).astype(np.float64)


class TokensPerStep(Distribution):
    """Rows of the dense layers in one forward pass, however many launches it was cut into."""

    needs_engine = True
    tag, unit, direction = "tokens_per_step", "tokens", "none"
    title = "tokens per step"
    formula = "x_j + q_j (decodes and prompt tokens of launch j, with a pass's first layers)"

    def values(self, run: RunEvents) -> FloatArray:
        """One value per launch; one that repeats its decode step counts one pass, one that goes on
        with the layers of a chunk counts none.
        """
        tokens = run.of_launches("decodes") + run.of_launches("prefill_tokens")
        return tokens[~continued(run)[run.launches.row]].astype(np.float64)


class BusyShare(Scalar):
    """Share of the window in which at least one partition computed."""

    needs_engine = True
    tag, unit, direction = "busy", "%", "none"
    title = "device busy"
    formula = "100 B / T"

    def value(self, run: RunEvents) -> float | None:
        """Percent of the window."""
        return 100 * run.busy.length / run.makespan if run.makespan else None


class ContentionShare(Scalar):
    """Share of computing time that launches would not have taken without a neighbour."""

    needs_engine = True
    tag, unit, direction = "contention", "%", "lower"
    title = "contention"
    formula = "100 sum(max(0, d_j - b_j - z_j)) / sum(d_j - b_j), z_j known"
    # What runs one batch at a time has no contention: that is no merit.
    place = Place("splits", 60, unit="% of compute", better="none")

    def value(self, run: RunEvents) -> float | None:
        """Percent; None where the device cannot know the time alone."""
        launches = run.launches
        known = launches.solo >= 0
        actual = (launches.end - launches.start)[known]
        total = int(actual.sum())
        if not total:
            return None
        return 100 * int(np.maximum(actual - launches.solo[known], 0).sum()) / total

    def reason(self, run: RunEvents) -> str:
        """A real device only sees the time with the neighbour."""
        return "the device does not know the time of a launch without its neighbour"
