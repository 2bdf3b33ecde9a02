"""How much of the examples and parameters of a test belongs to the fast set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings


def examples(suite: int) -> int:
    """``suite`` in the whole suite, where a property gets 100 by default; the fast set and
    HYPOTHESIS_PROFILE=explore take their share of it, but never less than 3.
    """
    return max(3, suite * settings().max_examples // 100)


def slow(*values: object) -> list[Any]:
    """Parameters that only the whole suite takes: more of what the others have shown."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def sample(values: Iterable[object], every: int) -> list[Any]:
    """All parameters, of which the fast set takes one in ``every``; tuples hold several at once."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=() if position % every == 0 else pytest.mark.slow,
        )
        for position, value in enumerate(values)
    ]
