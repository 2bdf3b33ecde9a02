"""The verdict of ``capacity`` in words: which policy keeps the SLO at the highest rate, by how
much, with which certainty, and which bound breaks first.
"""

from __future__ import annotations

from collections.abc import Sequence

from nexusbench.comparison.load import conditions
from nexusbench.comparison.verdict import factor
from nexusbench.experiments.capacity import Capacity
from nexusbench.metrics.summary import interval


def capacity_verdict(labels: Sequence[str], capacities: Sequence[Capacity], ratio: float) -> str:
    """Sentences that rank two policies or more; empty for one. ``ratio`` is the step between
    neighbouring rates of the search: policies within one step are level.
    """
    named = list(zip(labels, capacities, strict=True))
    if len(named) < 2:
        return ""
    overloaded = sum(one.overloaded > 0 for one in capacities)
    simulated = all(one.simulated for one in capacities)
    text = conditions(overloaded, len(capacities), simulated=simulated)
    ranked = sorted((pair for pair in named if not pair[1].none), key=lambda pair: -pair[1].rate)
    if not ranked:
        return text + "none of them keeps the SLO at any rate."
    (label, best), rest = ranked[0], ranked[1:]
    least = "at least " if best.at_least else ""
    text += f"{label} keeps the SLO up to the highest rate ({least}{best.rate:.3g} req/s"
    text += "".join(
        f"{':' if position == 0 else ','} {_beside(best, other, name, ratio)}"
        for position, (name, other) in enumerate(rest)
    )
    sentences = [text + ")."]
    if rest and not _level(best, rest[0][1], ratio):
        sentences.append(_certainty(best, *rest[0]))
    lost = [name for name, one in named if one.none]
    if lost:
        sentences.append(f"{', '.join(lost)}: the SLO is kept at no rate.")
    ends = [f"{name} {next(iter(one.breaks))}" for name, one in ranked if one.breaks]
    if ends:
        sentences.append(f"Broken first beyond that: {'; '.join(ends)}.")
    return " ".join(sentences)


def _beside(best: Capacity, other: Capacity, label: str, ratio: float) -> str:
    if _level(best, other, ratio):
        return f"level with {label}"
    return factor(best.rate, other.rate, label, less=False)


def _level(best: Capacity, other: Capacity, ratio: float) -> bool:
    """Rates one step of the search apart are not distinguishable."""
    return best.rate <= other.rate * ratio


def _certainty(best: Capacity, label: str, other: Capacity) -> str:
    """Whether the draws agree that ``best`` is ahead of the runner-up."""
    if other.at_least:
        return f"Not sure: the trace ended before {label} broke the SLO."
    pairs = list(zip(best.found, other.found, strict=True))
    leads = [mine.kept - theirs.kept for mine, theirs in pairs]
    won = sum(lead > 0 for lead in leads)
    found = interval(leads)
    if found.low is None:
        return "Not sure: one draw only; --seeds 5 says how far draws agree."
    share = f"ahead of {label} in {won} of {len(leads)} draws"
    if found.low > 0:
        return f"It is {share}."
    spread = f"95 % interval of the lead [{found.low:.3g}, {found.high:.3g}] req/s"
    return f"Not sure: {share}, {spread}."
