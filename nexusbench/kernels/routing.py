"""How a router picks experts. No torch here."""

from __future__ import annotations

from typing import Literal

import msgspec


class Routing(msgspec.Struct, frozen=True):
    """A token goes to the ``chosen`` experts with the largest scores, weighed by these.

    Scores are the ``softmax`` of the router's products, their ``sigmoid``, or the softmax of the
    ``chosen`` products alone. ``normalised``: the weights are divided by their sum; then they are
    multiplied by ``scale``. With ``groups`` only experts of the best ``best_groups`` are eligible;
    a group is as good as its ``largest`` score or the sum of its ``two`` largest (DeepSeek-V2,
    2405.04434, section 2.1.2; V3, 2412.19437, section 2.1.2). ``corrected``: a bias for each expert
    is added to the scores for choosing, not for weighing.
    """

    chosen: int
    scores: Literal["softmax", "sigmoid", "chosen"] = "softmax"
    normalised: bool = False
    scale: float = 1.0
    groups: int = 0
    best_groups: int = 0
    group_score: Literal["largest", "two"] = "largest"
    corrected: bool = False
