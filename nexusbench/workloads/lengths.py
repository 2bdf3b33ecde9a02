"""Laws of a workload spec (lengths, turns, times), named in ``LAWS``; tables of lengths as seen."""

from __future__ import annotations

import math
import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.workloads.base import MAX_TOKENS
from nexusbench.workloads.readers._csv import count_in, layout_of, rows_of
from nexusbench.workloads.source import read_source

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

COLUMNS = ("num_prefill_tokens", "num_decode_tokens")


Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Length = Annotated[float, msgspec.Meta(ge=1, le=2**31 - 1)]

_MAX_EXPONENT = 16.0
_MOST_EXPONENT = 600.0  # e to this is still finite
_MOST_PAIRS = 1000
_GRID = 2000  # midpoints per segment; the mean is then right to five digits


class LengthLaw(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A distribution of counts (tokens, turns, milliseconds); the fields of a subclass are its keys
    in the spec.
    """

    def lengths(self, uniform: Floats) -> list[int]:
        """Counts of 1 or more for uniform numbers in [0, 1): the inverse distribution function."""
        raise NotImplementedError


class FixedLength(LengthLaw, frozen=True, forbid_unknown_fields=True):
    """Always ``value``."""

    value: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]

    def lengths(self, uniform: Floats) -> list[int]:
        """The value, as often as asked for."""
        return [self.value] * len(uniform)


class Exponential(LengthLaw, frozen=True, forbid_unknown_fields=True):
    """Exponential of the given ``mean``, at least 1."""

    mean: Length

    def lengths(self, uniform: Floats) -> list[int]:
        """Counts, rounded to the nearest."""
        return [max(1, round(-self.mean * math.log1p(-u))) for u in uniform.tolist()]


class Lognormal(LengthLaw, frozen=True, forbid_unknown_fields=True):
    """Lognormal, by ``median`` and ``sigma`` (of the logarithm), or by ``mean`` and ``cv``.

    What falls outside ``least`` to ``most`` is set to the nearer of them, so that a narrow range
    moves the mean.
    """

    median: Length | None = None
    sigma: Annotated[float, msgspec.Meta(ge=0, le=10)] | None = None
    mean: Length | None = None
    cv: Annotated[float, msgspec.Meta(ge=0, le=1000)] | None = None
    least: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] = 1
    most: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] = 2**31 - 1

    def __post_init__(self) -> None:
        given = [
            name for name in ("median", "sigma", "mean", "cv") if getattr(self, name) is not None
        ]
        if given not in (["median", "sigma"], ["mean", "cv"]):
            raise ValueError("a lognormal law needs median and sigma, or mean and cv")
        if self.least > self.most:
            raise ValueError(f"least {self.least} is above most {self.most}")

    def lengths(self, uniform: Floats) -> list[int]:
        """Counts, rounded to the nearest."""
        from statistics import NormalDist

        if self.median is not None:
            middle, sigma = self.median, self.sigma or 0.0
        else:
            variance = math.log1p((self.cv or 0.0) ** 2)
            middle, sigma = (self.mean or 1.0) / math.exp(variance / 2), math.sqrt(variance)
        inverse = NormalDist().inv_cdf
        counts = []
        for u in uniform.tolist():
            # 0 has no finite normal value; the smallest number that the generator can draw does.
            exponent = min(sigma * inverse(max(u, 2.0**-53)), _MOST_EXPONENT)
            value = min(middle * math.exp(exponent), float(self.most))
            counts.append(max(self.least, round(value)))
        return counts


class Quantiles(LengthLaw, frozen=True, forbid_unknown_fields=True):
    """Known quantiles, as papers print them: (share, tokens) pairs from share 0 to share 1.

    Between two quantiles a < b the inverse distribution function is ((1-t) a^k + t b^k)^(1/k), t
    from 0 to 1: straight for k = 1, straight in the logarithm for k -> 0. Straight lines put the
    mean 4 to 32 % above what the Nexus paper prints, as lengths crowd towards the lower quantile;
    so one k for all segments is solved such that the law has the ``mean``. Without one, k is 0.
    """

    quantiles: tuple[tuple[Share, Length], ...]
    mean: Length | None = None

    def __post_init__(self) -> None:
        shares = [share for share, _ in self.quantiles]
        values = [value for _, value in self.quantiles]
        if len(shares) > _MOST_PAIRS:
            raise ValueError(f"{len(shares):,} quantiles, and at most {_MOST_PAIRS:,} are taken")
        if len(shares) < 2 or shares[0] != 0 or shares[-1] != 1:
            raise ValueError("quantiles must begin with share 0 and end with share 1")
        if any(after <= before for before, after in pairwise(shares)):
            raise ValueError("shares must grow from quantile to quantile")
        if any(after < before for before, after in pairwise(values)):
            raise ValueError("lengths must not fall from quantile to quantile")
        self.exponent()

    def exponent(self) -> float:
        """The k that gives the mean. Raises ValueError if no curve through the quantiles has it."""
        if self.mean is None:
            return 0.0
        low, high = -_MAX_EXPONENT, _MAX_EXPONENT
        least, most = self._mean(low), self._mean(high)
        if not least <= self.mean <= most:
            raise ValueError(
                f"a mean of {self.mean:g} cannot be: the quantiles allow {least:.1f} to {most:.1f}"
            )
        # The mean grows with k. Six decimals move it by far less than a token, and hide the last
        # bits of powers and logarithms, so that a spec gives the same lengths everywhere.
        while high - low > 1e-7:
            middle = (low + high) / 2
            low, high = (middle, high) if self._mean(middle) < self.mean else (low, middle)
        return round(low, 6)

    def lengths(self, uniform: Floats) -> list[int]:
        """Token counts, rounded to the nearest."""
        import numpy as np

        # Rounding can turn a number just below 1 into 1, which would belong to no segment.
        uniform = np.minimum(uniform, np.nextafter(1.0, 0.0))
        values = np.empty_like(uniform)
        k = self.exponent()
        for (low, a), (high, b) in pairwise(self.quantiles):
            here = (uniform >= low) & (uniform < high)
            values[here] = _between(a, b, k, (uniform[here] - low) / (high - low))
        counts: list[int] = np.rint(values).astype(np.int64).tolist()
        return counts

    def _mean(self, k: float) -> float:
        import numpy as np

        grid = (np.arange(_GRID) + 0.5) / _GRID
        return sum(
            (high - low) * float(_between(a, b, k, grid).mean())
            for (low, a), (high, b) in pairwise(self.quantiles)
        )


def _between(a: float, b: float, k: float, t: Floats) -> Floats:
    """The interpolation of :class:`Quantiles`, in ratios so that large powers do not overflow."""
    ratio = b / a
    curve: Any = ratio**t if abs(k) < 1e-6 else (1 + t * (ratio**k - 1)) ** (1 / k)
    return a * curve  # type: ignore[no-any-return]


LAWS: dict[str, type[LengthLaw]] = {
    "quantiles": Quantiles,
    "fixed": FixedLength,
    "lognormal": Lognormal,
    "exponential": Exponential,
}


class LengthTable(msgspec.Struct, frozen=True):
    """``rows`` of (prompt, output) tokens; ``name`` and ``sha256`` are those of the file."""

    name: str
    sha256: str
    rows: list[tuple[int, int]]
    path: Path


def load_table(path: str | os.PathLike[str]) -> LengthTable:
    """Read a CSV with the columns ``num_prefill_tokens`` and ``num_decode_tokens`` (others are left
    alone), plain or gzip. Raises InputError that names file, line and column.
    """
    source = read_source(path)
    layout = layout_of(source, COLUMNS)
    prompt, output = (layout.places[column] for column in COLUMNS)
    rows = [
        (
            count_in(cells[prompt], COLUMNS[0], 1, MAX_TOKENS, source, line),
            count_in(cells[output], COLUMNS[1], 1, MAX_TOKENS, source, line),
        )
        for line, cells in rows_of(source, layout)
    ]
    if not rows:
        raise InputError("there are no rows", file=source.path, hint="Is the download complete?")
    return LengthTable(source.path.name, source.sha256, rows, source.path)
