"""What a comparison comes to, as fields: the same facts that the verdict has in words."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nexusbench.comparison.alike import different_loads
from nexusbench.comparison.headline import find_claims
from nexusbench.comparison.level import fully_served
from nexusbench.comparison.load import is_overloaded
from nexusbench.comparison.verdict import prices, verdict
from nexusbench.comparison.view import Column
from nexusbench.core.documents import JsonObject


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
