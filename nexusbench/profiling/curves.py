"""Latency over SMs: one batch's curve, where it saturates, what each further tenth of SMs saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

from nexusbench.profiles.points import Point
from nexusbench.profiling._statistics import falling

Value = Callable[[Point], float | None]


class LatencyCurve(msgspec.Struct, frozen=True):
    """Latency (ns) at growing SM counts, made non-increasing; between them linear in 1/SMs."""

    sms: tuple[int, ...]
    ns: tuple[float, ...]

    @classmethod
    def of(cls, points: Iterable[Point], value: Value) -> LatencyCurve | None:
        """From the points of one batch alone; None with fewer than three SM counts."""
        found = {p.setting.sms: value(p) for p in points}
        known = sorted((sms, ns) for sms, ns in found.items() if ns is not None and ns > 0)
        if len(known) < 3:
            return None
        return cls(tuple(sms for sms, _ in known), tuple(falling([ns for _, ns in known])))

    def at(self, sms: float) -> float | None:
        """Latency on ``sms`` SMs; None outside of what was measured."""
        positions = self.sms
        if not positions[0] <= sms <= positions[-1]:
            return None
        for low, high, before, after in zip(
            positions, positions[1:], self.ns, self.ns[1:], strict=False
        ):
            if sms <= high:
                weight = (1 / sms - 1 / high) / (1 / low - 1 / high)
                return after + weight * (before - after)
        return self.ns[-1]

    def saturation(self, within: float, legal: Sequence[int]) -> int:
        """The fewest of the ``legal`` SM counts whose latency is at most ``1 + within`` times that
        on all SMs. The fewest measured, if that is enough already.
        """
        limit = (1 + within) * self.ns[-1] * (1 + 1e-9)
        for sms in legal:
            ns = self.at(sms)
            if ns is not None and ns <= limit:
                return sms
        return self.sms[-1]

    def savings(self, num_sms: int) -> list[tuple[int, float | None, float | None]]:
        """(per cent of SMs, ns there, share saved by the ten per cent that led there)."""
        rows: list[tuple[int, float | None, float | None]] = []
        before = None
        for percent in range(10, 101, 10):
            ns = self.at(percent * num_sms / 100)
            saved = None if ns is None or before is None else 1 - ns / before
            rows.append((percent, ns, saved))
            before = ns
        return rows


def lines_of(points: Iterable[Point], phase: str) -> dict[tuple[object, ...], list[Point]]:
    """Points of ``phase`` alone, neither held out nor skewed, by batch; the reference batch first:
    of those measured on the most SM counts, and of these of the largest chunk, the middle one by
    latency.
    """
    lines: dict[tuple[object, ...], list[Point]] = {}
    for point in points:
        setting = point.setting
        if setting.kind == phase and not setting.held_out and not setting.contexts:
            shape = setting.shape
            lines.setdefault((shape.num_decodes, shape.decode_context, shape.chunks), []).append(
                point
            )
    most = max([len(line) for line in lines.values()], default=0)
    covered = [batch for batch, line in lines.items() if len(line) == most]
    if covered:
        size = {batch: sum(n for n, _ in lines[batch][0].setting.shape.chunks) for batch in covered}
        covered = [batch for batch in covered if size[batch] == max(size.values())]
        covered.sort(key=lambda batch: max(lines[batch], key=lambda p: p.setting.sms).ns)
        middle = covered[len(covered) // 2]
        lines = {middle: lines.pop(middle), **lines}
    return lines


def step_time(point: Point) -> float | None:
    """The whole step."""
    return point.ns


def operator_time(name: str) -> Value:
    """One operator class; None where the device does not report it."""

    def value(point: Point) -> float | None:
        return point.operators_ns.get(name)

    return value


def rounded(value: float | None, digits: int = 4) -> float | None:
    """To so many significant digits, for files that people read."""
    if value is None or not math.isfinite(value) or value == 0:
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))
