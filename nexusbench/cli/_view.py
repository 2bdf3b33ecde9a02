"""The view of a run that has just ended; stored runs have theirs in ``comparison``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nexusbench.comparison.view import RunView, count_reasons, span

if TYPE_CHECKING:
    from nexusbench.serving.runner import RunResult


def view_of_result(result: RunResult, label: str, by: Sequence[str] = ()) -> RunView:
    """The view of a run that has just ended."""
    from nexusbench.metrics.groups import group

    ended, strings = result.events.tables["ended"], result.events.facts.strings
    return RunView(
        label=label,
        status="complete",
        simulated=result.summary.simulated,
        config=result.config,
        resolved=result.resolved,
        summary=result.summary,
        folder=result.folder,
        event_digest=result.event_digest,
        span_ns=span(result.events.requests["arrival"]),
        groups={name: group(result.events, name) for name in by},
        rejections=count_reasons(ended, strings, "rejected"),
        failures=count_reasons(ended, strings, "failed"),
    )
