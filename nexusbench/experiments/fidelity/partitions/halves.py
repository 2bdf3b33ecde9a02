"""Which measured rows constants may be fitted on, and which are held out: by whole shapes."""

from __future__ import annotations

import hashlib

HALVES = ("all", "held-out", "fitted")


def may_be_fitted(shape: str) -> bool:
    """Whether constants may be fitted on the rows of this shape; the others judge them.

    Hangs on the shape alone, never on the other rows of a table, its order or its SM counts: a
    shape is in one half wherever it was measured, and no curve over SMs is torn apart. What has no
    shape ('') may be fitted; other sources have to judge it.
    """
    return not shape or hashlib.sha256(shape.encode()).digest()[0] % 2 == 0
