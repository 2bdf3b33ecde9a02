"""One or two sentences that say what wins what, computed from the numbers shown."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nexusbench.comparison.level import fully_served, is_level, noise, rivals_in, within
from nexusbench.comparison.view import Column, Estimate, gpus_differ

# Of more runs than this only the next best and the worst are named.
_MOST_NAMED = 3
# What is compared: words, tag, statistic, is less better.
CLAIMS = (
    ("mean TTFT", "ttft", "mean", True),
    ("p99 TBT", "tbt", "p99", True),
    ("output throughput", "output_throughput", "value", False),
    ("SLO attainment", "attainment", "value", False),
)


def verdict(columns: Sequence[Column]) -> list[str]:
    """Sentences about the complete runs; none where there are fewer than two."""
    rivals = [column for column in columns if column.complete]
    if len(rivals) < 2:
        return []
    claims = [_sentence(rivals, *claim) for claim in CLAIMS]
    said = (*claims, _why(rivals), _price(rivals), per_gpu(rivals, _winners(rivals)))
    return [sentence for sentence in said if sentence] + remarks(rivals)


def prices(columns: Sequence[Column]) -> list[Price]:
    """What winners pay with; none where there is no winner."""
    rivals = [column for column in columns if column.complete]
    winners = _leaders(rivals) if len(rivals) > 1 else []
    return [price for winner in winners for price in find_prices(rivals, winner)]


def _leaders(columns: Sequence[Column]) -> list[Column]:
    """The best in each claim that is not level for all, and those level with the best mean TTFT."""
    found: dict[str, None] = {}
    for _, tag, name, less in CLAIMS:
        known = ranked(columns, tag, name, less=less)
        level = [label for label, estimate in known if is_level(known[0][1], estimate)]
        if len(level) < len(known):
            found |= dict.fromkeys(level[:_MOST_NAMED] if tag == "ttft" else level[:1])
    by_label = {column.label: column for column in columns}
    return [by_label[label] for label in found]


def reasons(columns: Sequence[Column]) -> list[str]:
    """Of the verdict only why, and what must be known to believe it."""
    rivals = [column for column in columns if column.complete]
    why = _why(rivals) if len(rivals) > 1 else None
    return [*([why] if why else []), *(remarks(rivals) if len(rivals) > 1 else [])]


def per_gpu(columns: Sequence[Column], winners: Sequence[str]) -> str:
    """How winners on more GPUs than others stand per GPU; empty where that is not asked."""
    if not gpus_differ(columns):
        return ""
    least = min(column.gpus for column in columns)
    rates = {c.label: e for c in columns if (e := c.per_gpu("output_throughput"))}
    parts = []
    for column in columns:
        if column.gpus == least or column.label not in winners or column.label not in rates:
            continue
        own = rates[column.label]
        others = {c.label: rates[c.label] for c in columns if c.gpus < column.gpus}
        if not others:
            continue
        rival = max(others, key=lambda label: others[label].value)
        parts.append(
            f"{column.label} uses {column.gpus} GPUs: per GPU its output throughput is "
            f"{amount(own.value, 'output_throughput')}, {_beside(own, others[rival], rival)}"
        )
    return f"{'; '.join(parts)}." if parts else ""


def _beside(own: Estimate, other: Estimate, label: str) -> str:
    if is_level(own, other):
        return f"level with {label}"
    return factor(own.value, other.value, label, less=own.value < other.value)


def _winners(columns: Sequence[Column]) -> list[str]:
    """Labels of those that are best at something."""
    found = [ranked(columns, tag, name, less=less) for _, tag, name, less in CLAIMS]
    return [known[0][0] for known in found if known]


def ranked(
    columns: Sequence[Column], tag: str, name: str, *, less: bool
) -> list[tuple[str, Estimate]]:
    """Label and value of those that may be ranked in a statistic, best first."""
    found = [column.statistic(tag, name) for column in columns]
    rivals = rivals_in(columns, tag, found, less=less)
    known = [
        (column.label, estimate)
        for column, estimate in zip(columns, found, strict=True)
        if estimate is not None and column in rivals
    ]
    return sorted(known, key=lambda pair: pair[1].value, reverse=not less)


def _sentence(columns: Sequence[Column], words: str, tag: str, name: str, less: bool) -> str | None:
    known = ranked(columns, tag, name, less=less)
    if len(known) < 2:
        return None
    (winner, first), rest = known[0], known[1:]
    best = first.value
    near = [(label, estimate) for label, estimate in rest if is_level(first, estimate)]
    level = [label for label, _ in near]
    within_what = within(first, [estimate for _, estimate in near])
    if len(level) == len(rest):
        alike = "all" if len(known) == len(columns) else listed([winner, *level])
        return (
            f"{_sentence_case(words)} is the same for {alike} {within_what} ({amount(best, tag)})."
        )
    verb, degree = ("have" if level else "has"), ("lowest" if less else "highest")
    others = [(label, estimate.value) for label, estimate in rest if label not in level]
    if len(others) > _MOST_NAMED:
        others = [others[0], others[-1]]
    factors = ", ".join(factor(best, value, label, less) for label, value in others)
    names = _names([winner, *level], within_what)
    return f"{names} {verb} the {degree} {words} ({amount(best, tag)}: {factors})."


def _by_mean_ttft(columns: Sequence[Column]) -> list[Column]:
    """Those with a mean TTFT, best first."""
    by_label = {column.label: column for column in columns}
    return [by_label[label] for label, _ in ranked(columns, "ttft", "mean", less=True)]


def _winner_and_rival(columns: Sequence[Column]) -> list[Column]:
    """The one with the lowest mean TTFT and the next that is not level with it; empty if none."""
    ranked = _by_mean_ttft(columns)
    means = [e for column in ranked if (e := column.statistic("ttft", "mean"))]
    for column, mean in zip(ranked[1:], means[1:], strict=True):
        if not is_level(means[0], mean):
            return [ranked[0], column]
    return []


def _why(columns: Sequence[Column]) -> str | None:
    """How the mean TTFT of the winner and of the next divides into queueing and service."""
    pair = _winner_and_rival(columns)
    parts = []
    for column in pair:
        waits = column.statistic("ttft_queueing", "mean")
        serves = column.statistic("ttft_service", "mean")
        if waits is None or serves is None:
            return None
        parts.append(
            f"{column.label} {amount(waits.value, '')} in the queue + "
            f"{amount(serves.value, '')} in service"
        )
    return f"Why: mean TTFT is {'; '.join(parts)}." if len(parts) == 2 else None


def _price(columns: Sequence[Column]) -> str | None:
    """The tails that each winner pays with; None where there are none."""
    found: dict[str, list[str]] = {}
    for price in prices(columns):
        found.setdefault(price.winner, []).append(price.text)
    parts = [f"{label}'s {', its '.join(texts)}" for label, texts in found.items()]
    return f"The price: {'; '.join(parts)}." if parts else None


def _names(labels: Sequence[str], near: str) -> str:
    if len(labels) == 1:
        return labels[0]
    if len(labels) > _MOST_NAMED:
        return f"{labels[0]} and {len(labels) - 1} others, {near},"
    return f"{' and '.join(labels)}, {near},"


def _sentence_case(words: str) -> str:
    return words[0].upper() + words[1:]


def remarks(columns: Sequence[Column]) -> list[str]:
    """What must be known to believe the sentences."""
    served = fully_served(columns)
    if len(served) == len(columns):
        return []
    counts = ", ".join(
        f"{column.label} {finished:,.0f} of {offered:,.0f}"
        for column in columns
        if (finished := _count(column, "finished")) is not None
        and (offered := _count(column, "offered")) is not None
    )
    text = (
        f"Not all finished the same requests ({counts}): latency and throughput are of those only"
    )
    out = [column.label for column in columns if column not in served]
    if len(columns) > 1:
        text += f", so that {listed(out)} cannot lead in them"
    return [f"{text}."]


def _count(column: Column, tag: str) -> float | None:
    found = column.statistic(tag, "value")
    return None if found is None else found.value


def listed(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


# Words, tag, statistic.
TAILS = (
    ("p95 TTFT", "ttft", "p95"),
    ("p99 TTFT", "ttft", "p99"),
    ("p99 end to end", "e2e", "p99"),
    ("p99 TBT", "tbt", "p99"),
    ("mean TTFT of the longest prompts", "ttft_long_prompts", "mean"),
)


class Price(msgspec.Struct, frozen=True):
    """One tail, ms: the winner's, the best of the others, and the noise of their difference. It is
    the price of whatever ``winner`` leads in.
    """

    words: str
    tag: str
    statistic: str
    value: float
    best: str
    best_value: float
    noise: float
    winner: str

    @property
    def text(self) -> str:
        """As in ``p95 TTFT is 73.2 s, 2.4x that of sglang``."""
        ratio = self.value / self.best_value
        size = f"{ratio:.1f}x that" if ratio >= 1.5 else f"{100 * (ratio - 1):.0f} % above that"
        return f"{self.words} is {amount(self.value, '')}, {size} of {self.best}"


def find_prices(
    columns: Sequence[Column], winner: Column, without: Sequence[str] = ()
) -> list[Price]:
    """The tails of ``winner`` that are worse than another's, less those named already."""
    found = [_tail_price(columns, winner, *tail) for tail in TAILS if tail[0] not in without]
    return [price for price in found if price is not None]


def _tail_price(
    columns: Sequence[Column], winner: Column, words: str, tag: str, name: str
) -> Price | None:
    own = winner.statistic(tag, name)
    others = [
        (column.label, estimate)
        for column in rivals_in(columns, tag, less=True)
        if column is not winner and (estimate := column.statistic(tag, name)) is not None
    ]
    if own is None or not others:
        return None
    label, best = min(others, key=lambda other: other[1].value)
    if best.value <= 0 or own.value <= best.value or is_level(best, own):
        return None
    return Price(words, tag, name, own.value, label, best.value, noise(own, best), winner.label)


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
