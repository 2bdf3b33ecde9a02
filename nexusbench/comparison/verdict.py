"""One or two sentences that say who wins what, computed from the numbers shown."""

from __future__ import annotations

from collections.abc import Sequence

from nexusbench.comparison.view import Column, Estimate, gpus_differ

# Differences below this are called equal: the simulator's own noise is of that size.
_EQUAL = 0.01
# Of more runs than this only the next best and the worst are named.
_MOST_NAMED = 3
# What is compared: words, tag, statistic, is less better.
CLAIMS = (
    ("mean TTFT", "ttft", "mean", True),
    ("p99 TBT", "tbt", "p99", True),
    ("output throughput", "output_throughput", "value", False),
    ("SLO attainment", "attainment", "value", False),
)
# Tails that a good mean TTFT may be paid with, and from which factor on it is worth a word.
_TAILS = (("p95 TTFT", "ttft", "p95"), ("p99 TBT", "tbt", "p99"))
_DEAR = 1.5
_UNITS = {"output_throughput": " tok/s", "attainment": " %"}


def verdict(columns: Sequence[Column]) -> list[str]:
    """Sentences about the complete runs; none where there are fewer than two."""
    rivals = [column for column in columns if column.complete]
    if len(rivals) < 2:
        return []
    claims = [_sentence(rivals, *claim) for claim in CLAIMS]
    said = (*claims, _why(rivals), _price(rivals), per_gpu(rivals, _winners(rivals)))
    return [sentence for sentence in said if sentence] + _remarks(rivals)


def reasons(columns: Sequence[Column]) -> list[str]:
    """Of the verdict only why, and what must be known to believe it."""
    rivals = [column for column in columns if column.complete]
    why = _why(rivals) if len(rivals) > 1 else None
    return [*([why] if why else []), *(_remarks(rivals) if len(rivals) > 1 else [])]


def per_gpu(columns: Sequence[Column], winners: Sequence[str]) -> str:
    """How winners on more GPUs than others stand per GPU; empty where that is not asked."""
    if not gpus_differ(columns):
        return ""
    least = min(column.gpus for column in columns)
    rates = {c.label: e.value for c in columns if (e := c.per_gpu("output_throughput"))}
    parts = []
    for column in columns:
        if column.gpus == least or column.label not in winners or column.label not in rates:
            continue
        own = rates[column.label]
        others = {c.label: rates[c.label] for c in columns if c.gpus < column.gpus}
        if not others:
            continue
        rival = max(others, key=lambda label: others[label])
        parts.append(
            f"{column.label} uses {column.gpus} GPUs: per GPU its output throughput is "
            f"{amount(own, 'output_throughput')}, {_beside(own, others[rival], rival)}"
        )
    return f"{'; '.join(parts)}." if parts else ""


def _beside(own: float, other: float, label: str) -> str:
    if is_level(Estimate(own), Estimate(other)):
        return f"level with {label}"
    return factor(own, other, label, less=own < other)


def _winners(columns: Sequence[Column]) -> list[str]:
    """Labels of those that are best at something."""
    found = []
    for _, tag, name, less in CLAIMS:
        known = [(c.label, e.value) for c in columns if (e := c.statistic(tag, name)) is not None]
        if known:
            found.append((min if less else max)(known, key=lambda pair: pair[1])[0])
    return found


def _sentence(columns: Sequence[Column], words: str, tag: str, name: str, less: bool) -> str | None:
    known = [(c.label, e) for c in columns if (e := c.statistic(tag, name)) is not None]
    if len(known) < 2:
        return None
    known.sort(key=lambda pair: pair[1].value, reverse=not less)
    (winner, first), rest = known[0], known[1:]
    best = first.value
    level = [label for label, estimate in rest if is_level(first, estimate)]
    seeded = any(estimate.half is not None for _, estimate in known)
    within = "within 1 % or the spread over seeds" if seeded else "within 1 %"
    if len(level) == len(rest):
        return f"{_sentence_case(words)} is the same for all {within} ({amount(best, tag)})."
    verb, degree = ("have" if level else "has"), ("lowest" if less else "highest")
    others = [(label, estimate.value) for label, estimate in rest if label not in level]
    if len(others) > _MOST_NAMED:
        others = [others[0], others[-1]]
    factors = ", ".join(factor(best, value, label, less) for label, value in others)
    names = _names([winner, *level], within)
    return f"{names} {verb} the {degree} {words} ({amount(best, tag)}: {factors})."


def _by_mean_ttft(columns: Sequence[Column]) -> list[Column]:
    """Those with a mean TTFT, best first."""
    known = [(e.value, i) for i, c in enumerate(columns) if (e := c.statistic("ttft", "mean"))]
    return [columns[i] for _, i in sorted(known)]


def _winner_and_rival(columns: Sequence[Column]) -> list[Column]:
    """The one with the lowest mean TTFT and the next that is not level with it; empty if none."""
    ranked = _by_mean_ttft(columns)
    means = [e for column in ranked if (e := column.statistic("ttft", "mean"))]
    for column, mean in zip(ranked[1:], means[1:], strict=True):
        if not is_level(means[0], mean):
            return [ranked[0], column]
    return []


def _why(columns: Sequence[Column]) -> str | None:
    """Where the winner's TTFT and that of the next come from."""
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
    """The tails that the winner of the mean TTFT pays with; none where nobody wins it."""
    pair = _winner_and_rival(columns)
    found = tail_prices(columns, pair[0]) if pair else []
    return f"The price: {pair[0].label}'s {', its '.join(found)}." if found else None


def tail_prices(
    columns: Sequence[Column], winner: Column, without: Sequence[str] = ()
) -> list[str]:
    """The tails of ``winner`` that are much longer than another's, less those named already."""
    prices = [_tail(columns, winner, *tail) for tail in _TAILS if tail[0] not in without]
    return [price for price in prices if price]


def _tail(columns: Sequence[Column], winner: Column, words: str, tag: str, name: str) -> str | None:
    """One tail of the winner, if another's is much shorter."""
    tails = {c.label: e.value for c in columns if (e := c.statistic(tag, name)) and e.value > 0}
    if len(tails) < 2 or winner.label not in tails:
        return None
    own = tails[winner.label]
    label, best = min(tails.items(), key=lambda item: item[1])
    if own <= _DEAR * best:
        return None
    return f"{words} is {amount(own, '')}, {own / best:.1f}x that of {label}"


def is_level(best: Estimate, other: Estimate) -> bool:
    """Too near to call: within 1 %, or with intervals over seeds that overlap."""
    spread = (best.half or 0.0) + (other.half or 0.0)
    return abs(other.value - best.value) <= max(_EQUAL * abs(best.value), spread)


def _names(labels: Sequence[str], within: str) -> str:
    if len(labels) == 1:
        return labels[0]
    if len(labels) > _MOST_NAMED:
        return f"{labels[0]} and {len(labels) - 1} others, {within},"
    return f"{' and '.join(labels)}, {within},"


def _sentence_case(words: str) -> str:
    return words[0].upper() + words[1:]


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


def _remarks(columns: Sequence[Column]) -> list[str]:
    """What must be known to believe the sentences."""
    finished = {c.label: e.value for c in columns if (e := c.statistic("finished", "value"))}
    if len(set(finished.values())) < 2:
        return []
    counts = ", ".join(f"{label} {value:,.0f}" for label, value in finished.items())
    return [
        f"Not all finished the same requests ({counts}): latencies are of the answered ones only."
    ]
