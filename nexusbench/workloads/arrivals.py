"""Arrival processes of a workload spec: one frozen struct each, named in ``PROCESSES``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import msgspec

from nexusbench.core.units import NS_PER_S, NS_PER_US

if TYPE_CHECKING:
    import numpy as np

PositiveRate = Annotated[float, msgspec.Meta(gt=0, le=1e6)]


class ArrivalProcess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times of arrival; the fields of a subclass are its keys in the ``[arrivals]`` table."""

    def draw(self, n: int, rng: np.random.Generator) -> list[int]:
        """``n`` arrivals in ns, in order, the first at 0."""
        raise NotImplementedError


class Poisson(ArrivalProcess, frozen=True, forbid_unknown_fields=True):
    """Independent exponential gaps; ``rate`` in requests per second."""

    rate: PositiveRate

    def draw(self, n: int, rng: np.random.Generator) -> list[int]:
        """``n`` arrivals in ns, whole microseconds.

        Gaps are -ln(1 - u) / rate from plain uniforms: those are the same for every version of
        numpy, which its own exponential need not be; whole microseconds hide the last bit of a
        logarithm. So a spec gives the same file everywhere.
        """
        now = 0.0
        times = [0]
        for uniform in rng.random(n - 1).tolist():
            now -= math.log1p(-uniform) / self.rate
            times.append(round(now * (NS_PER_S // NS_PER_US)) * NS_PER_US)
        return times


PROCESSES: dict[str, type[ArrivalProcess]] = {"poisson": Poisson}
