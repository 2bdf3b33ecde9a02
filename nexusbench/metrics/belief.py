"""How well the belief that policies ask predicted what the device did, launch by launch."""

from __future__ import annotations

import numpy as np

from nexusbench.metrics.base import Distribution, Place
from nexusbench.metrics.intervals import FloatArray
from nexusbench.metrics.run_events import BoolArray, RunEvents


def _any_launch(run: RunEvents) -> BoolArray:
    return np.ones(len(run.launches.row), dtype=np.bool_)


def _alone(run: RunEvents) -> BoolArray:
    """Launches that no neighbour slowed down; none where solo is unknown."""
    duration = run.launches.end - run.launches.start
    return (run.launches.solo >= 0) & (run.launches.solo >= duration)


def _corunning(run: RunEvents) -> BoolArray:
    duration = run.launches.end - run.launches.start
    return (run.launches.solo >= 0) & (run.launches.solo < duration)


class _Belief(Distribution):
    """Relative error of the predicted time of launches that had a prediction."""

    needs_engine = True
    unit = "%"

    def error(self, run: RunEvents, which: BoolArray) -> FloatArray:
        """Signed error in percent of the actual time."""
        actual = run.launches.end - run.launches.start
        predicted = run.of_launches("predicted")
        keep = which & (predicted >= 0) & (actual > 0)
        error: FloatArray = 100 * (predicted[keep] - actual[keep]) / actual[keep]
        return error

    def reason(self, run: RunEvents) -> str:
        """No prediction was logged, or none of this kind of launch."""
        return "no such launch had a prediction"


class BeliefError(_Belief):
    """Size of the error; its mean is the MAPE."""

    tag, direction, title = "belief_error", "lower", "belief error (mean is MAPE)"
    formula = "100 |w_j - (d_j - b_j)| / (d_j - b_j), w_j known"
    place = Place("splits", 90, title="belief error, MAPE", statistics=("mean",))

    def values(self, run: RunEvents) -> FloatArray:
        """One value per predicted launch."""
        return np.abs(self.error(run, _any_launch(run)))


class BeliefBias(_Belief):
    """Signed error; above 0 the belief is too slow."""

    tag, direction, title = "belief_bias", "none", "belief bias (signed)"
    formula = "100 (w_j - (d_j - b_j)) / (d_j - b_j), w_j known"
    place = Place("splits", 100, title="belief bias", statistics=("mean",))

    def values(self, run: RunEvents) -> FloatArray:
        """One value per predicted launch."""
        return self.error(run, _any_launch(run))


class BeliefErrorAlone(_Belief):
    """Size of the error of launches without a neighbour."""

    tag, direction, title = "belief_error_alone", "lower", "belief error, alone"
    formula = "belief_error of j with z_j = d_j - b_j"

    def values(self, run: RunEvents) -> FloatArray:
        """One value per predicted launch that ran alone."""
        return np.abs(self.error(run, _alone(run)))


class BeliefBiasAlone(_Belief):
    """Signed error of launches without a neighbour."""

    tag, direction, title = "belief_bias_alone", "none", "belief bias, alone"
    formula = "belief_bias of j with z_j = d_j - b_j"

    def values(self, run: RunEvents) -> FloatArray:
        """One value per predicted launch that ran alone."""
        return self.error(run, _alone(run))


class BeliefErrorCorunning(_Belief):
    """Size of the error of launches that a neighbour slowed down."""

    tag, direction, title = "belief_error_corunning", "lower", "belief error, co-running"
    formula = "belief_error of j with z_j < d_j - b_j"

    def values(self, run: RunEvents) -> FloatArray:
        """One value per predicted launch that was slowed down."""
        return np.abs(self.error(run, _corunning(run)))


class BeliefBiasCorunning(_Belief):
    """Signed error of launches that a neighbour slowed down."""

    tag, direction, title = "belief_bias_corunning", "none", "belief bias, co-running"
    formula = "belief_bias of j with z_j < d_j - b_j"

    def values(self, run: RunEvents) -> FloatArray:
        """One value per predicted launch that was slowed down."""
        return self.error(run, _corunning(run))
