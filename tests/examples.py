"""How many examples a property gets that needs more, or fewer, than others."""

from __future__ import annotations

from hypothesis import settings


def examples(suite: int) -> int:
    """``suite`` in the whole suite, where a property gets 100 by default; the fast set and
    HYPOTHESIS_PROFILE=explore take their share of it, but never less than 3.
    """
    return max(3, suite * settings().max_examples // 100)
