"""Rules: by how much a metric may worsen, ``METRIC[.STAT]:RELATIVE%[:ABSOLUTE+unit]``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from nexusbench.core.errors import UsageError
from nexusbench.core.registry import did_you_mean
from nexusbench.metrics.base import load_metrics
from nexusbench.metrics.summary import STATISTICS

Better = Literal["lower", "higher"]

# Five, so that five runs against five can fire for every one of them (docs/ci.md).
DEFAULT_RULES = (
    "ttft.mean:5%:1ms",
    "ttft.p99:10%:2ms",
    "tbt.p99:5%:1ms",
    "output_throughput:3%",
    "finished:0%",
)
# Real time per scheduling decision: of the host, so never exact, whatever the device is.
HOST_METRIC, HOST_UNIT = "decision_us", "us"
HOST_STATISTICS = ("mean", "p50", "p99")
# What every series keeps besides: how many of the requests offered finished, and how many samples
# a distribution has (turned_away.py).
NAMES_OF_SAMPLES = ".n"
# Gaps between tokens: there are fewer where answers were cut short.
GAPS = "tbt.n"
_TEXT = re.compile(
    r"(?P<metric>.+?):(?P<relative>[^:%]+)%(?::(?P<absolute>[-+.\deE]*\d)\s*(?P<unit>.*))?",
    re.DOTALL,
)
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0}
_SHAPE = "Write METRIC[.STAT]:RELATIVE%[:ABSOLUTE+unit], as in ttft.p99:5%:2ms"


class Rule(msgspec.Struct, frozen=True):
    """A metric has worsened when it has by more than ``relative`` (a share of the baseline) and by
    more than ``absolute`` ``unit``; an empty unit is the metric's own.
    """

    metric: str
    relative: float
    absolute: float = 0.0
    unit: str = ""

    @property
    def text(self) -> str:
        """The rule as it is written."""
        bound = f":{self.absolute:.6g}{self.unit}" if self.absolute else ""
        return f"{self.metric}:{100 * self.relative:.6g}%{bound}"

    def floor(self, unit: str) -> float:
        """``absolute`` in ``unit``. Raises UsageError if the two units do not measure the same."""
        if self.unit in ("", unit):
            return self.absolute
        if self.unit in _SECONDS and unit in _SECONDS:
            return self.absolute * _SECONDS[self.unit] / _SECONDS[unit]
        raise UsageError(f"rule '{self.text}': '{self.metric}' is in '{unit}', not '{self.unit}'")


class Measure(msgspec.Struct, frozen=True):
    """What a gated number is: its unit, which way is better, and whether runs repeat it exactly on
    a simulated device.
    """

    unit: str
    better: Better
    repeatable: bool = True


GUARDS: Mapping[str, Measure] = {
    "offered": Measure("requests", "higher"),
    "finished": Measure("requests", "higher"),
    "finished_work": Measure("%", "higher"),
}
SAMPLES = Measure("samples", "higher")


def is_guard(metric: str) -> bool:
    """Whether a series keeps it for the guard's sake, asked or not."""
    return metric in GUARDS or metric.endswith(NAMES_OF_SAMPLES)


def parse_rule(text: str) -> Rule:
    """One rule; names are not checked here. Raises UsageError saying how to write one."""
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"rule '{text}' cannot be read. {_SHAPE}")
    try:
        relative = float(found["relative"]) / 100
        absolute = float(found["absolute"] or 0)
    except ValueError:
        raise UsageError(f"rule '{text}' has a bound that is no number. {_SHAPE}") from None
    if not all(math.isfinite(bound) and bound >= 0 for bound in (relative, absolute)):
        raise UsageError(f"rule '{text}': bounds are finite and not negative. {_SHAPE}")
    return Rule(found["metric"].strip(), relative, absolute, (found["unit"] or "").strip())


def parse_rules(texts: Sequence[str], measures: Mapping[str, Measure]) -> list[Rule]:
    """Rules for some of ``measures``; a distribution's name alone means its mean.

    Raises UsageError for an unknown metric, one without a better side, a unit that does not fit,
    and two rules for one metric.
    """
    rules: dict[str, Rule] = {}
    for text in texts:
        rule = parse_rule(text)
        name = rule.metric
        if name not in measures and f"{name}.mean" in measures:
            name = f"{name}.mean"
        if name not in measures:
            hint = did_you_mean(name, sorted(measures))
            raise UsageError(f"rule '{text}': no metric '{name}' that has a better side. {hint}")
        rule = msgspec.structs.replace(rule, metric=name)
        rule.floor(measures[name].unit)
        if name in rules:
            raise UsageError(f"two rules for '{name}': '{rules[name].text}' and '{rule.text}'")
        rules[name] = rule
    return list(rules.values())


def run_measures() -> dict[str, Measure]:
    """Everything about a run that a rule may name: each statistic of each metric with a better
    side, and the real time per decision.
    """
    found: dict[str, Measure] = {}
    for tag, metric in load_metrics().items():
        if metric.direction == "none":
            continue
        measure = Measure(metric.unit, metric.direction)
        if metric.kind == "scalar":
            found[tag] = measure
        else:
            found |= {f"{tag}.{name}": measure for name in STATISTICS}
    host = Measure(HOST_UNIT, "lower", repeatable=False)
    return found | {f"{HOST_METRIC}.{name}": host for name in HOST_STATISTICS}
