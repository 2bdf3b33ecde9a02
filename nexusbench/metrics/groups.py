"""Requests by prompt length or by tenant, each group with its own statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from nexusbench.metrics.arrays import BoolArray, to_ms
from nexusbench.metrics.requests import met
from nexusbench.metrics.run_events import RunEvents
from nexusbench.metrics.summary import describe

# Of more tenants than these the largest are shown, the others together.
MOST_TENANTS = 12
# Shares of all requests at which prompt lengths are cut: quarters, and the longest twentieth.
_CUTS = (0.25, 0.5, 0.75, 0.95)

Group = tuple[str, BoolArray]


def group(run: RunEvents, grouping: str) -> list[dict[str, Any]]:
    """One row per group of GROUPINGS[grouping]: ``group``, ``offered``, ``missed`` (not finished),
    ``attainment`` (%, None without an SLO), and ``ttft`` and ``tbt`` (ms) as ``describe`` gives
    them.

    All are of measured requests, attainment over those offered.
    """
    good = met(run) if run.facts.slo else None
    by_gap = run.measured[run.gap_request]
    rows = []
    for name, members in GROUPINGS[grouping](run):
        offered = members & run.measured
        count = int(offered.sum())
        answered = members & run.answered
        rows.append(
            {
                "group": name,
                "offered": count,
                "missed": count - int((members & run.finished).sum()),
                "attainment": None if good is None else _percent(good & members, count),
                "ttft": describe(to_ms((run.first_token - run.arrival)[answered])),
                "tbt": describe(to_ms(run.gaps[by_gap & members[run.gap_request]])),
            }
        )
    return rows


def _percent(kept: BoolArray, count: int) -> float | None:
    return 100 * int(kept.sum()) / count if count else None


def _by_prompt_length(run: RunEvents) -> Iterator[Group]:
    """Quarters of the trace's requests by prompt length, the longest one cut at its last fifth.

    The cuts are the trace's, not the run's: every scheduler is shown the same groups.
    """
    lengths = run.requests["prompt_tokens"]
    if not len(lengths):
        return
    cuts = np.quantile(lengths, _CUTS, method="lower").tolist()
    edges = sorted({0, *cuts, int(lengths.max())})
    for low, high in pairwise(edges):
        members = (lengths > low) & (lengths <= high)
        if members.any():
            least = int(lengths[members].min())
            yield (f"{least:,} to {high:,}" if least < high else f"{high:,}"), members


def _by_tenant(run: RunEvents) -> Iterator[Group]:
    """The tenants with the most requests first, the many small ones together."""
    tenants = run.requests["tenant"].astype(str)
    names, counts = np.unique(tenants, return_counts=True)
    order = np.lexsort((names, -counts))
    shown = names[order][: MOST_TENANTS if len(names) > MOST_TENANTS + 1 else len(names)]
    for name in shown.tolist():
        yield name or "(none)", tenants == name
    rest = ~np.isin(tenants, shown)
    if rest.any():
        yield f"{len(names) - len(shown):,} others", rest


GROUPINGS: dict[str, Callable[[RunEvents], Iterator[Group]]] = {
    "prompt-length": _by_prompt_length,
    "tenant": _by_tenant,
}
