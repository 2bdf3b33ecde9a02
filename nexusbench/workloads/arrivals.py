"""Arrival processes of a workload spec: one frozen struct each, named in ``PROCESSES``.

Everything is made of plain uniforms, which are the same for every version of numpy, as its own
exponential or gamma need not be; and times are whole microseconds, which hides the last bit of a
logarithm. So a spec gives the same file everywhere.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import msgspec

from nexusbench.core.units import NS_PER_S, NS_PER_US

if TYPE_CHECKING:
    import numpy as np

PositiveRate = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Rate = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e8)]
_MOST_PAIRS = 300  # each arrival goes through them
_FULL_TURN = 2 * math.pi


class ArrivalProcess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times of arrival; the fields of a subclass are its keys in the ``[arrivals]`` table."""

    @property
    def users(self) -> int:
        """Users of a closed loop; 0 where arrivals have times of their own."""
        return 0

    def span_s(self, n: int) -> float:
        """Seconds that ``n`` arrivals take on average."""
        return 0.0

    def draw(self, n: int, rng: np.random.Generator) -> list[int]:
        """``n`` arrivals in ns, in order, the first at 0."""
        raise NotImplementedError


class Poisson(ArrivalProcess, frozen=True, forbid_unknown_fields=True):
    """Independent exponential gaps; ``rate`` in requests per second."""

    rate: PositiveRate

    def span_s(self, n: int) -> float:
        """So many mean gaps."""
        return (n - 1) / self.rate

    def draw(self, n: int, rng: np.random.Generator) -> list[int]:
        """``n`` arrivals in ns, whole microseconds; gaps are -ln(1 - u) / rate."""
        return _sums([-math.log1p(-u) / self.rate for u in rng.random(n - 1).tolist()])


class Gamma(ArrivalProcess, frozen=True, forbid_unknown_fields=True):
    """Independent gamma gaps: ``rate`` in requests per second, ``cv`` of the gaps (1 is Poisson,
    more is burstier).
    """

    rate: PositiveRate
    cv: Annotated[float, msgspec.Meta(ge=0.01, le=100)]

    def span_s(self, n: int) -> float:
        """So many mean gaps."""
        return (n - 1) / self.rate

    def draw(self, n: int, rng: np.random.Generator) -> list[int]:
        """``n`` arrivals in ns, whole microseconds."""
        shape = 1 / self.cv**2
        scale = 1 / (self.rate * shape)
        return _sums([_gamma(shape, rng) * scale for _ in range(n - 1)])


class Constant(ArrivalProcess, frozen=True, forbid_unknown_fields=True):
    """Equal gaps; ``rate`` in requests per second."""

    rate: PositiveRate

    def span_s(self, n: int) -> float:
        """So many mean gaps."""
        return (n - 1) / self.rate

    def draw(self, n: int, rng: np.random.Generator) -> list[int]:
        """``n`` arrivals in ns, whole microseconds; each rounded by itself, so nothing drifts."""
        return [_whole_us(index / self.rate) for index in range(n)]


class Closed(ArrivalProcess, frozen=True, forbid_unknown_fields=True):
    """A closed loop: each of ``concurrency`` users sends a request when the last one has ended."""

    concurrency: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]

    @property
    def users(self) -> int:
        """Users of the loop."""
        return self.concurrency

    def draw(self, n: int, rng: np.random.Generator) -> list[int]:
        """Zeros: arrivals follow from the run."""
        return [0] * n


class Diurnal(ArrivalProcess, frozen=True, forbid_unknown_fields=True):
    """Poisson arrivals whose rate follows a curve: ``rates`` are (second, requests per second)
    pairs from second 0 on, straight between them.

    After the last pair the curve begins again: give a whole day, with the first rate at its end.
    """

    rates: tuple[tuple[Seconds, Rate], ...]

    def __post_init__(self) -> None:
        times = [time for time, _ in self.rates]
        if len(times) > _MOST_PAIRS:
            raise ValueError(f"{len(times):,} pairs, and at most {_MOST_PAIRS:,} are taken")
        if len(times) < 2 or times[0] != 0:
            raise ValueError("rates must be two pairs or more, the first at second 0")
        if any(after <= before for before, after in pairwise(times)):
            raise ValueError("the seconds must grow from pair to pair")
        if not math.fsum(self._areas()) > 0:
            raise ValueError("a curve of zeros brings no request")

    def span_s(self, n: int) -> float:
        """At the mean rate of a period."""
        return (n - 1) * self.rates[-1][0] / math.fsum(self._areas())

    def draw(self, n: int, rng: np.random.Generator) -> list[int]:
        """``n`` arrivals in ns, whole microseconds: the inverse of the summed rate, at the times of
        a Poisson process of rate 1 (Cinlar 1975).
        """
        areas = self._areas()
        whole, period = math.fsum(areas), self.rates[-1][0]
        times, level = [0], 0.0
        for u in rng.random(n - 1).tolist():
            level -= math.log1p(-u)
            rounds, rest = divmod(level, whole)
            times.append(_whole_us(rounds * period + self._inverse(rest, areas)))
        return times

    def _areas(self) -> list[float]:
        """Requests that each stretch of the curve brings on average."""
        return [(t1 - t0) * (r0 + r1) / 2 for (t0, r0), (t1, r1) in pairwise(self.rates)]

    def _inverse(self, level: float, areas: list[float]) -> float:
        """The second within one period by which ``level`` requests are expected."""
        for ((t0, r0), (t1, r1)), area in zip(pairwise(self.rates), areas, strict=True):
            if level < area:
                # r0 x + slope x^2 / 2 = level, in the form that also serves a slope of 0.
                slope = (r1 - r0) / (t1 - t0)
                root = math.sqrt(max(0.0, r0 * r0 + 2 * slope * level))
                return min(t1, t0 + 2 * level / (r0 + root)) if level else t0
            level -= area
        return self.rates[-1][0]


def _gamma(shape: float, rng: np.random.Generator) -> float:
    """One gamma variate of scale 1 (Marsaglia and Tsang 2000; normals by Box and Muller)."""
    if shape < 1:
        boost: float = (1 - rng.random()) ** (1 / shape)
        return _gamma(shape + 1, rng) * boost
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    while True:
        one, two, three = map(float, rng.random(3))
        normal = math.sqrt(-2 * math.log1p(-one)) * math.cos(_FULL_TURN * two)
        cube: float = (1 + c * normal) ** 3
        if cube > 0 and math.log1p(-three) < normal**2 / 2 + d * (1 - cube + math.log(cube)):
            return d * cube


def _sums(gaps: list[float]) -> list[int]:
    """Arrivals of gaps in seconds, the first at 0."""
    now = 0.0
    times = [0]
    for gap in gaps:
        now += gap
        times.append(_whole_us(now))
    return times


def _whole_us(seconds: float) -> int:
    return round(seconds * (NS_PER_S // NS_PER_US)) * NS_PER_US


PROCESSES: dict[str, type[ArrivalProcess]] = {
    "poisson": Poisson,
    "gamma": Gamma,
    "constant": Constant,
    "closed": Closed,
    "diurnal": Diurnal,
}
