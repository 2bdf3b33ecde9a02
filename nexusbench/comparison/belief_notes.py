"""What to know about the belief of a run: flags without effect, fits beyond what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_FLAGS = {"profile": "--profile", "cost_model": "--cost-model", "recalibrate": "--recalibrate"}


def belief_notes(config: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences about runs that share the flags of ``config``; ``runs`` is what each resolved."""
    beliefs = [run["belief"] for run in runs if run["belief"] is not None]
    if not beliefs:
        return unused_flags(config)
    fitted = [belief["profile"] for belief in beliefs if belief.get("profile")]
    return beyond(fitted[0].get("limits"), runs[0]["limits"]) if fitted else []


def unused_flags(config: Mapping[str, Any]) -> list[str]:
    """Flags that say what to believe, where nobody asks."""
    given = [flag for name, flag in _FLAGS.items() if config.get(name)]
    if not given:
        return []
    verb = "have" if len(given) > 1 else "has"
    return [f"{' and '.join(given)} {verb} no effect: no partitioner here asks a belief"]


def beyond(measured: Mapping[str, int] | None, limits: Mapping[str, int]) -> list[str]:
    """Where a run's step budgets are larger than those that were profiled; nothing is said of a
    profile that does not know them.
    """
    larger = [
        f"{name} {limits[name]:,} (profiled: {most:,})"
        for name, most in (measured or {}).items()
        if limits[name] > most
    ]
    if not larger:
        return []
    return [
        f"this run allows {' and '.join(larger)}: for larger batches than were measured the fitted "
        "belief extrapolates. Profile with the same limits"
    ]
