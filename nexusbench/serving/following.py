"""Beliefs that follow the device while it serves: another belief, times what was measured over
what it predicted. Plain arithmetic on simulated or measured times, so a simulated run stays
reproducible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from nexusbench.core.batch import BatchShape
from nexusbench.costs.base import CostModel
from nexusbench.profiles.surface import bracket

LEAST, MOST = 0.2, 5.0  # a ratio beyond these is a wrong belief or profile, not an inexact one
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of the SMs: where Calibrated keeps an alpha
CALIBRATED_WEIGHT = 0.1  # of the latest launch
RECALIBRATED_WEIGHT = 0.05  # of the latest launch: about the last 20 launches of a phase count
MOST_KEPT = 4096  # raw predictions of prompts

Phase = Literal["prefill", "decode"]


class FollowingBelief(CostModel):
    """``belief`` and what is learned about it; options, parameters and name are the belief's."""

    learns = True

    def __init__(self, belief: CostModel) -> None:
        self.belief = belief
        self.options, self.parameters = belief.options, belief.parameters

    @property
    def name(self) -> str:
        """The name of what is followed up."""
        return self.belief.name


class Calibrated(FollowingBelief):
    """``belief`` times alpha(phase, SMs), which is measured over predicted, linear between five
    shares of the SMs: Bullet's calibration (arXiv 2504.19516, Eq. 2).

    With the analytic ``roofline``, whose operators take max(FLOPs/C_p, bytes/D_p), this is Bullet's
    SM-scaling roofline. An alpha that nothing was measured near follows the latest launch of its
    phase, as Bullet extrapolates from two samples. A partition has fewer than all SMs only while
    the other one runs, so these alphas include what the neighbour costs. Deviation: Bullet keeps
    one alpha per state (lengths and batch sizes too), from a profiling of less than an hour;
    ``--profile`` gives that, and this follows on top.
    """

    monotone = False  # alpha may grow faster along the SMs than the belief falls

    def __init__(self, belief: CostModel, num_sms: int) -> None:
        super().__init__(belief)
        self.axis = tuple([share * num_sms for share in SHARES])
        self.alpha = {"prefill": [1.0] * len(SHARES), "decode": [1.0] * len(SHARES)}
        self._measured = {"prefill": [False] * len(SHARES), "decode": [False] * len(SHARES)}
        self._kept: dict[tuple[BatchShape, int], float] = {}

    def predict(
        self, shape: BatchShape, sms: int, neighbour: tuple[BatchShape, int] | None = None
    ) -> float:
        """The belief's nanoseconds times alpha."""
        return self._raw(shape, sms, neighbour) * self._alpha(_phase(shape), sms)

    def _raw(self, shape: BatchShape, sms: int, neighbour: tuple[BatchShape, int] | None) -> float:
        """What the belief says; kept for prompts alone, of which the same are asked for often."""
        if neighbour is not None or shape.num_decodes:
            return self.belief.predict(shape, sms, neighbour)
        known = self._kept.get((shape, sms))
        if known is None:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            known = self._kept[shape, sms] = self.belief.predict(shape, sms)
        return known

    def predict_splits(
        self,
        shape: BatchShape,
        sms: Sequence[int],
        neighbour: BatchShape | None = None,
        neighbour_sms: Sequence[int] = (),
    ) -> list[float]:
        """The same for many splits."""
        phase = _phase(shape)
        made = self.belief.predict_splits(shape, sms, neighbour, neighbour_sms)
        return [time * self._alpha(phase, own) for time, own in zip(made, sms, strict=True)]

    def observe(self, shape: BatchShape, sms: int, predicted_ns: float, actual_ns: float) -> None:
        """Move the alphas on both sides of ``sms`` towards this launch's, the nearer one faster."""
        if predicted_ns <= 0.0 or actual_ns <= 0.0:
            return
        phase = _phase(shape)
        alpha, measured = self.alpha[phase], self._measured[phase]
        k, u = bracket(self.axis, sms)
        v = 1.0 - u
        taken = (v * alpha[k] + u * alpha[k + 1]) * actual_ns / predicted_ns
        for knot, part in ((k, v), (k + 1, u)):
            moved = alpha[knot] + CALIBRATED_WEIGHT * part * (taken - alpha[knot])
            alpha[knot] = min(MOST, max(LEAST, moved))
            measured[knot] = measured[knot] or part > 0.0
        latest = v * alpha[k] + u * alpha[k + 1]
        for knot, known in enumerate(measured):
            if not known:
                alpha[knot] = latest

    def _alpha(self, phase: str, sms: int) -> float:
        k, u = bracket(self.axis, sms)
        alpha = self.alpha[phase]
        return (1.0 - u) * alpha[k] + u * alpha[k + 1]


class Recalibrated(FollowingBelief):
    """``belief`` times what the last launches of that phase took over what was predicted.

    An exponentially weighted ratio of each phase, from 1 on. Bullet (2504.19516, Eq. 2) refreshes
    its alpha online in the same spirit.
    """

    def __init__(self, belief: CostModel) -> None:
        super().__init__(belief)
        self.monotone = belief.monotone
        self.ratios = {"prefill": 1.0, "decode": 1.0}

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
        ratio = self.ratios[phase] * (1.0 + RECALIBRATED_WEIGHT * (actual_ns / predicted_ns - 1.0))
        self.ratios[phase] = min(MOST, max(LEAST, ratio))


def _phase(shape: BatchShape) -> Phase:
    return "prefill" if shape.chunks else "decode"
