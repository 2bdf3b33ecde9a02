"""Bandwidth over SMs as a law of two numbers, from which a GPU's curves are written."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import numpy as np

from nexusbench.core.bounds import Curve
from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.fidelity.nelder_mead import Vector, nelder_mead

MOST_KNEE = 0.99
POINTS = 16  # of a written curve, evenly from no SMs to all
_START_EVALUATIONS = 120


class DrawLaw(msgspec.Struct, frozen=True):
    """``sms`` SMs could draw ``gbps`` GB/s each; HBM attains so much in all.

    Of x, what they could draw over what HBM attains, they draw the share y that solves
    ``knee y^2 - (x + 1) y + x = 0`` (the non-rectangular hyperbola of photosynthesis, Thornley,
    Ann. Bot. 40, 1976): knee 0 is x / (x + 1), knee 1 the smaller of x and 1. Scaled so that all
    SMs draw what HBM attains.
    """

    gbps: float
    knee: float

    def curve(self, gpu: GpuSpec) -> Curve:
        """(share of SMs, share of the attainable bandwidth) points, rounded as they are written."""
        one = gpu.num_sms * self.gbps / attained(gpu)
        whole = self._share(one)
        inner = [
            (round(i / POINTS, 4), round(self._share(one * i / POINTS) / whole, 4))
            for i in range(1, POINTS)
        ]
        return ((0.0, 0.0), *inner, (1.0, 1.0))

    def _share(self, x: float) -> float:
        if self.knee < 1e-6:
            return x / (x + 1.0)
        total = x + 1.0
        return (total - math.sqrt(total * total - 4.0 * self.knee * x)) / (2.0 * self.knee)


def attained(gpu: GpuSpec) -> float:
    """GB/s that all SMs draw together."""
    return gpu.hbm_gbps * gpu.sim.bandwidth_efficiency


def gbps_bounds(gpu: GpuSpec) -> tuple[float, float]:
    """What one SM may draw in a law: from half of its equal share of HBM to twenty times of it."""
    share = attained(gpu) / gpu.num_sms
    return 0.5 * share, 20.0 * share


def nearest_law(curve: Curve, gpu: GpuSpec) -> DrawLaw:
    """The law that is closest in squares to ``curve``."""
    low, high = gbps_bounds(gpu)
    scale = attained(gpu) / gpu.num_sms
    shares = np.arange(1, POINTS) / POINTS
    wanted = np.array([_at(curve, float(share)) for share in shares])

    def law(values: Vector) -> DrawLaw:
        return DrawLaw(
            float(np.clip(values[0] * scale, low, high)), float(np.clip(values[1], 0.0, MOST_KNEE))
        )

    def loss(values: Vector) -> float:
        made = np.array([y for _, y in law(values).curve(gpu)[1:-1]])
        outside = abs(values[1] - law(values).knee)
        return float(np.square(made - wanted).mean()) + float(outside)

    return law(nelder_mead(loss, np.array([2.0, 0.5]), _START_EVALUATIONS)[0])


def _at(curve: Curve, share: float) -> float:
    for (x0, y0), (x1, y1) in pairwise(curve):
        if share <= x1:
            return y0 + (y1 - y0) * (share - x0) / (x1 - x0)
    return 1.0
