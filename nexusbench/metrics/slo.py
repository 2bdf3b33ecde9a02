"""Service-level objectives as text: ``ttft:p99<2000`` bounds a statistic of a run, ``ttft:2000``
each request; and the presets of data/slos.toml.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

import msgspec

from nexusbench.core.errors import UsageError
from nexusbench.core.registry import did_you_mean
from nexusbench.metrics.run_events import SLO_ALIASES, SLO_KEYS

DEFAULT_SHARE = 90.0  # percent of the requests that must keep bounds on each request
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "p99.9", "max")
# Bounds on a statistic may also concern the queue: Sarathi's capacity search does.
STATISTIC_KEYS = (*SLO_KEYS, "queueing")
_ALIASES = {**SLO_ALIASES, "ttft_queueing": "queueing"}
_EXAMPLE = "'ttft:p99<2000,tbt:p99<100' or ttft:2000,tbt:100"
_STATISTIC = re.compile(r"([a-z][a-z0-9.]*)(?:<=|<|:|=)(.*)")


class Bound(msgspec.Struct, frozen=True):
    """``statistic`` of ``key`` over a run is to be at most ``limit`` ms; without a statistic each
    request's own value is.
    """

    key: str
    statistic: str
    limit: float

    def __str__(self) -> str:
        if self.statistic:
            return f"{self.key}:{self.statistic}<{self.limit:g}"
        return f"{self.key}:{self.limit:g}"

    @property
    def title(self) -> str:
        """As in ``p99 TTFT``."""
        name = self.key if self.key == "queueing" else self.key.upper()
        return f"{self.statistic} {name}".strip()


class Slo(msgspec.Struct, frozen=True):
    """All bounds, and the percentage of offered requests that must keep those on each request."""

    bounds: tuple[Bound, ...]
    share: float = DEFAULT_SHARE

    @property
    def of_statistics(self) -> tuple[Bound, ...]:
        """Bounds that a statistic of the run must keep."""
        return tuple(bound for bound in self.bounds if bound.statistic)

    @property
    def of_requests(self) -> tuple[Bound, ...]:
        """Bounds that each request keeps or not."""
        return tuple(bound for bound in self.bounds if not bound.statistic)

    def per_request(self) -> dict[str, float]:
        """Every bound as one on each request, ms: what goodput is counted by. Of several on one key
        the tightest; those on the queue have no such form.
        """
        found: dict[str, float] = {}
        for bound in self.bounds:
            if bound.key in SLO_KEYS:
                found[bound.key] = min(bound.limit, found.get(bound.key, math.inf))
        return found

    def __str__(self) -> str:
        text = ",".join(map(str, self.bounds))
        return f"{text} (for {self.share:g} % of requests)" if self.of_requests else text


def parse_slo(values: Sequence[str], share: float | None = None, flag: str = "--goodput") -> Slo:
    """Bounds from one or more values of ``flag``, separated by commas or blanks.

    ``KEY:STATISTIC<MS`` (also ``KEY:STATISTIC:MS``, which needs no quotes in a shell) or
    ``KEY:MS``. A ``share`` in percent turns every bound into one on each request, to be kept by so
    many. Raises UsageError that names the flag and the piece of text.
    """
    bounds: list[Bound] = []
    for text in (piece for value in values for piece in value.replace(",", " ").split()):
        bound = _bound(text, flag)
        if any((b.key, b.statistic) == (bound.key, bound.statistic) for b in bounds):
            raise UsageError(f"{flag}: '{bound.title.lower()}' is bounded twice")
        bounds.append(bound)
    if not bounds:
        raise UsageError(f"{flag} holds no bound. Write {_EXAMPLE}")
    if share is None:
        return Slo(tuple(bounds))
    if not 0 < share <= 100:
        raise UsageError(f"an attainment of {share:g} % is impossible. Choose above 0, at most 100")
    single = Slo(tuple(bounds)).per_request()
    for bound in bounds:
        if bound.key not in single:
            raise UsageError(
                f"{flag}: '{bound}' bounds the queue, which no attainment is counted by. Leave it "
                "out, or --attainment"
            )
    return Slo(tuple(Bound(key, "", limit) for key, limit in single.items()), share)


def _bound(text: str, flag: str) -> Bound:
    name, colon, rest = text.partition(":")
    if not colon:
        hint = f"Write {_EXAMPLE}"
        if "<" in name or "=" in name:
            hint = "Say whose: of a statistic, as in 'ttft:p99<2000', or of each request, ttft:2000"
        raise UsageError(f"{flag} '{text}' is no bound. {hint}")
    key = _ALIASES.get(name, name)
    if key not in STATISTIC_KEYS:
        raise UsageError(f"{flag}: no SLO on '{name}'. {did_you_mean(name, list(STATISTIC_KEYS))}")
    found = _STATISTIC.fullmatch(rest)
    statistic, number = (found[1], found[2]) if found else ("", rest)
    if statistic and statistic not in STATISTICS:
        raise UsageError(
            f"{flag} '{text}': no statistic '{statistic}'. "
            f"{did_you_mean(statistic, list(STATISTICS))}"
        )
    if not statistic and key not in SLO_KEYS:
        raise UsageError(f"{flag} '{text}': bound a statistic, as in '{name}:p50<2000'")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not (math.isfinite(limit) and limit > 0):
        raise UsageError(
            f"{flag} '{text}': '{number}' is no number of milliseconds above 0. Write {_EXAMPLE}"
        )
    return Bound(key, statistic, limit)


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named SLO: ``slo`` as ``--goodput`` takes it, ``source`` where its numbers stand."""

    slo: str
    source: str


@cache
def presets() -> Mapping[str, Preset]:
    """The shipped SLOs by name."""
    text = resources.files("nexusbench.data").joinpath("slos.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, Preset])


def preset(name: str) -> Preset:
    """The SLO called ``name``. Raises UsageError if there is none."""
    known = presets()
    if name not in known:
        raise UsageError(f"--slo: no SLO called '{name}'. {did_you_mean(name, list(known))}")
    return known[name]
