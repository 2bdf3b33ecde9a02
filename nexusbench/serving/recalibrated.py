"""A belief that follows the device: an exponentially weighted ratio per phase."""

from __future__ import annotations

from collections.abc import Sequence

from nexusbench.core.batch import BatchShape
from nexusbench.costs.base import CostModel

WEIGHT = 0.05  # of the latest launch: about the last 20 launches of a phase count
LEAST, MOST = 0.2, 5.0  # a ratio beyond these is a wrong profile, not drift


class Recalibrated(CostModel):
    """``belief`` times what the last launches of that phase took over what was predicted.

    Bullet (2504.19516, Eq. 2) refreshes its alpha online in the same spirit. ``ratios`` starts at 1
    and is plain arithmetic on simulated or measured times, so a simulated run stays reproducible.
    """

    learns = True

    def __init__(self, belief: CostModel) -> None:
        self.belief = belief
        self.options, self.parameters = belief.options, belief.parameters
        self.monotone = belief.monotone
        self.ratios = {"prefill": 1.0, "decode": 1.0}

    @property
    def name(self) -> str:
        """The name of what is recalibrated."""
        return self.belief.name

    def predict(
        self, shape: BatchShape, sms: int, neighbour: tuple[BatchShape, int] | None = None
    ) -> float:
        """The belief's nanoseconds times the phase's ratio."""
        return self.belief.predict(shape, sms, neighbour) * self.ratios[_phase(shape)]

    def predict_splits(
        self,
        shape: BatchShape,
        sms: Sequence[int],
        neighbour: BatchShape | None = None,
        neighbour_sms: Sequence[int] = (),
    ) -> list[float]:
        """The same for many splits."""
        ratio = self.ratios[_phase(shape)]
        made = self.belief.predict_splits(shape, sms, neighbour, neighbour_sms)
        return [time * ratio for time in made]

    def observe(self, shape: BatchShape, sms: int, predicted_ns: float, actual_ns: float) -> None:
        """Move the phase's ratio towards what this launch took."""
        if predicted_ns <= 0.0 or actual_ns <= 0.0:
            return
        phase = _phase(shape)
        ratio = self.ratios[phase] * (1.0 + WEIGHT * (actual_ns / predicted_ns - 1.0))
        self.ratios[phase] = min(MOST, max(LEAST, ratio))


def _phase(shape: BatchShape) -> str:
    return "prefill" if shape.chunks else "decode"
