"""What to know about the belief of a run: flags without effect, fits beyond what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from nexusbench.core.config import EndpointConfig, RunConfig
from nexusbench.core.state import Limits
from nexusbench.results.resolved import BeliefFacts, Resolved, ResolvedEngineRun, StepBudgets


def belief_notes(config: RunConfig | EndpointConfig, runs: Sequence[Resolved]) -> list[str]:
    """Sentences about runs that share the flags of ``config``; ``runs`` is what each resolved."""
    known = [run for run in runs if isinstance(run, ResolvedEngineRun)]
    beliefs = [run.belief for run in known if run.belief is not None]
    return notes_on(config, beliefs, known[0].limits if known else None)


def notes_on(
    config: RunConfig | EndpointConfig, beliefs: Sequence[BeliefFacts], limits: Limits | None
) -> list[str]:
    """The same of the beliefs that were asked in runs under ``limits``; None for a server's."""
    if not beliefs:
        return unused_flags(config)
    fitted = [belief.profile for belief in beliefs if belief.profile is not None]
    return beyond(fitted[0].limits, limits) if fitted and limits is not None else []


def unused_flags(config: RunConfig | EndpointConfig) -> list[str]:
    """Flags that say what to believe, where nobody asks."""
    if isinstance(config, EndpointConfig):
        return []
    flags = {
        "--profile": config.profile,
        "--cost-model": config.cost_model,
        "--recalibrate": config.recalibrate,
    }
    given = [flag for flag, value in flags.items() if value]
    if not given:
        return []
    verb = "have" if len(given) > 1 else "has"
    return [f"{' and '.join(given)} {verb} no effect: no partitioner here asks a belief"]


def beyond(measured: StepBudgets | None, limits: Limits) -> list[str]:
    """Where a run's step budgets are larger than those that were profiled; nothing is said of a
    profile that does not know them.
    """
    allowed = limits.budgets
    larger = [
        f"{name} {allowed[name]:,} (profiled: {most:,})"
        for name, most in (measured or {}).items()
        if allowed[name] > most
    ]
    if not larger:
        return []
    return [
        f"this run allows {' and '.join(larger)}: for larger batches than were measured the fitted "
        "belief extrapolates. Profile with the same limits"
    ]
