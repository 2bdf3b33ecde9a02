"""One or two sentences that say who wins what, computed from the numbers shown."""

from __future__ import annotations

from collections.abc import Sequence

from nexusbench.cli._view import Column

# Differences below this are called equal: the simulator's own noise is of that size.
_EQUAL = 0.01
# What is compared: words, tag, statistic, is less better.
_CLAIMS = (
    ("mean TTFT", "ttft", "mean", True),
    ("p99 TBT", "tbt", "p99", True),
    ("output throughput", "output_throughput", "value", False),
    ("SLO attainment", "attainment", "value", False),
)
_UNITS = {"output_throughput": " tok/s", "attainment": " %"}


def verdict(columns: Sequence[Column]) -> list[str]:
    """Sentences about the complete runs; none where there are fewer than two."""
    rivals = [column for column in columns if column.complete]
    if len(rivals) < 2:
        return []
    return [
        sentence for claim in _CLAIMS if (sentence := _sentence(rivals, *claim)) is not None
    ] + _remarks(rivals)


def _sentence(columns: Sequence[Column], words: str, tag: str, name: str, less: bool) -> str | None:
    found = [(c.label, e.value) for c in columns if (e := c.statistic(tag, name)) is not None]
    if len(found) < 2:
        return None
    found.sort(key=lambda pair: pair[1], reverse=not less)
    (winner, best), rest = found[0], found[1:]
    level = [label for label, value in rest if abs(value - best) <= _EQUAL * abs(best)]
    if len(level) == len(rest):
        return f"{_sentence_case(words)} is the same for all within 1 % ({_amount(best, tag)})."
    names = " and ".join([winner, *level])
    verb, degree = ("have" if level else "has"), ("lowest" if less else "highest")
    others = [pair for pair in rest if pair[0] not in level]
    factors = ", ".join(_factor(best, value, label, less) for label, value in others)
    return f"{names} {verb} the {degree} {words} ({_amount(best, tag)}: {factors})."


def _sentence_case(words: str) -> str:
    return words[0].upper() + words[1:]


def _factor(best: float, value: float, label: str, less: bool) -> str:
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


def _amount(value: float, tag: str) -> str:
    if tag in _UNITS:
        return f"{value:,.1f}{_UNITS[tag]}"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.1f} ms"


def _remarks(columns: Sequence[Column]) -> list[str]:
    """What must be known to believe the sentences."""
    finished = {c.label: e.value for c in columns if (e := c.statistic("finished", "value"))}
    if len(set(finished.values())) < 2:
        return []
    counts = ", ".join(f"{label} {value:,.0f}" for label, value in finished.items())
    return [
        f"Not all finished the same requests ({counts}): latencies are of the answered ones only."
    ]
