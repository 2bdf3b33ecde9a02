"""What wins, and at what price, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nexusbench.comparison.alike import different_loads
from nexusbench.comparison.level import fully_served, is_level
from nexusbench.comparison.load import is_overloaded
from nexusbench.comparison.verdict import (
    CLAIMS,
    amount,
    factor,
    find_prices,
    listed,
    per_gpu,
    prices,
    ranked,
    remarks,
    verdict,
)
from nexusbench.comparison.view import Column, Estimate
from nexusbench.core.documents import JsonObject


class Claim(msgspec.Struct, frozen=True):
    """Which run is best at one thing. ``level`` are those too near to call, ``next`` the best of
    the others (None if there are none); ``margin`` says how far behind it is.
    """

    words: str
    degree: str
    winner: str
    value: str
    level: tuple[str, ...]
    next: str | None
    margin: str

    @property
    def open(self) -> bool:
        """None wins: all are level."""
        return self.next is None

    @property
    def winners(self) -> tuple[str, ...]:
        """The best and those that are level with it."""
        return (self.winner, *self.level)


def find_claims(columns: Sequence[Column]) -> list[Claim]:
    """What the complete runs can be compared by; none where there are fewer than two."""
    rivals = [column for column in columns if column.complete]
    found = [_claim(rivals, *claim) for claim in CLAIMS] if len(rivals) > 1 else []
    return [claim for claim in found if claim is not None]


def _claim(columns: Sequence[Column], words: str, tag: str, name: str, less: bool) -> Claim | None:
    known = ranked(columns, tag, name, less=less)
    if len(known) < 2:
        return None
    (winner, best), rest = known[0], known[1:]
    behind = [(label, estimate) for label, estimate in rest if not is_level(best, estimate)]
    margin = factor(best.value, behind[0][1].value, behind[0][0], less) if behind else ""
    return Claim(
        words=words,
        degree="lowest" if less else "highest",
        winner=winner,
        value=amount(best.value, tag),
        level=tuple(label for label, estimate in rest if is_level(best, estimate)),
        next=behind[0][0] if behind else None,
        margin=margin,
    )


class Headline(msgspec.Struct, frozen=True):
    """What wins, and the price of it; without a price where there is none, or no winner. What a
    winner on more GPUs than others does per GPU is part of the price.
    """

    claim: str
    price: str = ""

    @property
    def text(self) -> str:
        """Both as one line."""
        return f"{self.claim} {self.price}".strip()


def headline(columns: Sequence[Column]) -> Headline:
    """About all runs of one load; about what there is, where nothing is comparable. Where loads
    differ, that is said first.
    """
    found, differing = _headline(columns), different_loads(columns)
    if len(columns) < 2 or not differing:
        return found
    claim = f"Over different loads ({', '.join(differing)}): {found.claim}"
    return msgspec.structs.replace(found, claim=claim)


def _headline(columns: Sequence[Column]) -> Headline:
    rivals = [column for column in columns if column.complete]
    if not rivals:
        return Headline("No run came to its end: what they kept is shown, none is called best.")
    if len(rivals) == 1:
        return Headline(_alone(rivals[0], cut_short=len(columns) - 1))
    claims = find_claims(columns)
    decided = [claim for claim in claims if not claim.open]
    if not decided:
        words = ", ".join(f"{claim.words} {claim.value}" for claim in claims)
        if len(fully_served(rivals)) < len(rivals):
            level = f"Level is {words}. " if words else ""
            return Headline(f"None has a lead. {level}{' '.join(remarks(rivals))}".strip())
        return Headline(f"All {len(rivals)} are level{f': {words}' if words else ''}.")
    main = _main(decided)
    won = [claim for claim in decided if main in claim.winners]
    sentence = f"{main} has {listed([_won(claim, main) for claim in won])}."
    price = _price(rivals, main, [claim for claim in decided if main not in claim.winners])
    paid = [f"The price: {price}." if price else "", per_gpu(rivals, [main])]
    return Headline(sentence, " ".join(part for part in paid if part))


def over_loads(claims: Sequence[Sequence[Claim]]) -> str:
    """What wins what under how many of several loads, in one sentence."""
    by_words: dict[str, list[Claim]] = {}
    for claim in (claim for load in claims for claim in load):
        by_words.setdefault(f"{claim.degree} {claim.words}", []).append(claim)
    parts = []
    for words, found in by_words.items():
        wins: dict[str, int] = {}
        for claim in found:
            for label in ("all level",) if claim.open else claim.winners:
                wins[label] = wins.get(label, 0) + 1
        ranked = sorted(wins.items(), key=lambda item: -item[1])
        counts = [f"{label} at {_share(count, len(found))}" for label, count in ranked]
        parts.append(f"{words}: {', '.join(counts)}")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _share(count: int, total: int) -> str:
    if count == total:
        return "both loads" if total == 2 else f"all {total} loads"
    return f"{count} of {total} loads"


def _alone(column: Column, cut_short: int) -> str:
    parts = []
    for words, tag, name, _ in CLAIMS:
        found: Estimate | None = column.statistic(tag, name)
        if found is not None:
            parts.append(f"{words} {amount(found.value, tag)}")
    others = f"; {cut_short} other{'s were' if cut_short > 1 else ' was'} cut short"
    what = ", ".join(parts) or "nothing was measured"
    return f"{column.label}: {what}. Nothing to compare it with{others if cut_short else ''}."


def _main(claims: Sequence[Claim]) -> str:
    """The one that wins most; among equals the one that comes first in the order of the claims."""
    wins: dict[str, int] = {}
    for claim in claims:
        for label in claim.winners:
            wins[label] = wins.get(label, 0) + 1
    return max(wins, key=lambda label: wins[label])


def _won(claim: Claim, main: str) -> str:
    others = [label for label in claim.winners if label != main]
    level = f", level with {listed(others)}" if others else ""
    return f"the {claim.degree} {claim.words} ({claim.value}: {claim.margin}{level})"


def _price(columns: Sequence[Column], main: str, lost: Sequence[Claim]) -> str:
    """What the others are better at, and the tails that the main one pays with."""
    own = next(column for column in columns if column.label == main)
    parts = []
    for claim in lost:
        words, tag, name, less = next(item for item in CLAIMS if item[0] == claim.words)
        mine = own.statistic(tag, name)
        best = next(c for c in columns if c.label == claim.winner).statistic(tag, name)
        if mine is not None and best is not None:
            behind = factor(mine.value, best.value, claim.winner, not less)
            parts.append(f"{words} is {amount(mine.value, tag)}, {behind}")
    found = find_prices(columns, own, without=[claim.words for claim in lost])
    parts += [price.text for price in found]
    return "its " + "; its ".join(parts) if parts else ""


def answers(columns: Sequence[Column]) -> JsonObject:
    """``overloaded``: labels of columns in which requests arrive faster than they leave;
    ``turned_away``: of those that finished a smaller share than others and so cannot lead in a
    latency or throughput; ``different_loads``: in what the loads differ; ``claims`` and ``prices``:
    which leads in what, and what winners pay with.
    """
    served = fully_served(columns)
    return {
        "overloaded": [column.label for column in columns if is_overloaded(column)],
        "turned_away": [column.label for column in columns if column not in served],
        "different_loads": different_loads(columns),
        "verdict": verdict(columns),
        "claims": msgspec.to_builtins(find_claims(columns)),
        "prices": msgspec.to_builtins(prices(columns)),
    }
