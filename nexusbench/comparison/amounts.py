"""Statistics in words: values with their units, and by how much one is better."""

from __future__ import annotations

_UNITS = {"output_throughput": " tok/s", "attainment": " %"}


def factor(best: float, value: float, label: str, less: bool) -> str:
    """How much better than ``label``: a factor, a percentage where small, or only the value."""
    small, large = sorted((best, value))
    way = "lower" if less else "higher"
    if small <= 0:
        return f"{label} {value:.3g}"
    ratio = large / small
    if ratio < 1.5:
        # Percent of the other's value, as "x % lower than" is read.
        return f"{100 * abs(best - value) / value:.1f} % {way} than {label}"
    return f"{ratio:.1f}x {way} than {label}"


def amount(value: float, tag: str) -> str:
    """A statistic as text with its unit; what has no unit of its own is milliseconds."""
    if tag in _UNITS:
        return f"{value:,.1f}{_UNITS[tag]}"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.1f} ms"
