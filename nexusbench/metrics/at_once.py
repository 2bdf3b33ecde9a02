"""Answers that came to a client all at once: the times between their tokens are unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nexusbench.metrics.run_events import BoolArray, RunEvents

HELD_BACK = "every answer came in one delivery: the times between its tokens are unknown"


def came_at_once(run: RunEvents) -> BoolArray:
    """Which requests got several tokens in one delivery, so that no bound on gaps can be judged.

    Of an answer that the model did not end itself, one token may be all that was counted.
    """
    if run.facts.observed == "engine":
        return np.zeros(run.num_requests, dtype=np.bool_)
    more = run.requests["max_tokens"] > 1
    ended, strings = run.tables["ended"], run.facts.strings
    if "stop" in strings:
        more[ended["request"][ended["reason"] == strings.index("stop")]] = False
    several = (run.num_output_tokens > 1) | ((run.num_output_tokens == 1) & more)
    found: BoolArray = several & (run.first_token == run.last_token)
    return found
