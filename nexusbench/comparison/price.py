"""What a winner pays with: every tail in which it is worse than another by more than the noise."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nexusbench.comparison.amounts import amount
from nexusbench.comparison.level import is_level, noise, rivals_in
from nexusbench.comparison.view import Column

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
    found = [_price(columns, winner, *tail) for tail in TAILS if tail[0] not in without]
    return [price for price in found if price is not None]


def _price(
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
