"""check_scheduler: the contract of a scheduling policy, on the simulated device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from nexusbench.core.request import Request
from nexusbench.core.state import Limits
from nexusbench.core.units import NS_PER_S
from nexusbench.engine.engine import Engine
from nexusbench.schedulers.base import Scheduler
from nexusbench.testing._errors import ConformanceError, named
from nexusbench.testing._harness import (
    PartitionerLike,
    SchedulerLike,
    Setting,
    build,
    make_scheduler,
    offer,
)
from nexusbench.testing._log import check_log
from nexusbench.testing._probe import CheckedScheduler, WatchedContext
from nexusbench.testing._twins import check_twins, twins
from nexusbench.testing._workloads import RandomWorkload, hand_made, seeded

OVERLOAD_S = 40  # simulated seconds in which more arrives than any policy can serve
OLD, EARLY = 15, 0  # indices of the requests that must not starve


class _StreamOver(Exception):
    """The overload has ended; nothing after it matters."""


def check_scheduler(
    scheduler: SchedulerLike,
    *,
    seed: int = 0,
    examples: int = 12,
    partitioner: PartitionerLike | None = None,
) -> None:
    """Run a policy over corner cases, ``examples`` random workloads, twins and an overload.

    ``scheduler`` is a name with options (``vllm:order=spf``), a class or a factory; it must give a
    new policy each time. ``partitioner`` defaults to the policy's own. Checked are I1 to I7 and I9
    to I11 of docs/invariants.md, and that the policy launches exactly what it scheduled. Raises
    ConformanceError, its text begins with the invariant; UsageError if there is no such policy.
    """

    def run(workload: RandomWorkload) -> Engine:
        return observed_run(workload, lambda: make_scheduler(scheduler), partitioner, seed)

    for workload in (*hand_made(), *seeded(seed, examples)):
        with named(workload.name):
            first = run(workload)
            check_log(first)
            if run(workload).log.digest() != first.log.digest():
                raise ConformanceError("I6", "two runs of the same workload give different logs")
    for pair in twins(seed, examples):
        with named(pair.name):
            check_twins(pair, run)
    with named("overload"):
        check_starvation(lambda: make_scheduler(scheduler), partitioner, seed)


def observed_run(
    workload: RandomWorkload,
    make: Callable[[], Scheduler],
    partitioner: PartitionerLike | None = None,
    seed: int = 0,
) -> Engine:
    """Serve ``workload`` under a new policy with every proposal checked, books audited each step.

    Raises ConformanceError and what the engine raises.
    """
    most = 1000 + 50 * sum(r.stop_len for r in workload.requests)
    calls = 0

    def watch(engine: Engine) -> None:
        nonlocal calls
        calls += 1
        if calls > most:
            left = len(engine.requests) - engine.num_ended
            raise ConformanceError(
                "I10",
                f"makes no progress: {left} requests are unfinished after {calls:,} turns of the "
                f"loop, {engine.num_steps:,} launches and {engine.num_tokens:,} "
                "tokens",
            )

    probe = CheckedScheduler(make())
    engine = build(
        workload.requests, probe, partitioner, setting=workload.setting, seed=seed, observer=watch
    )
    probe.state = engine.state
    engine.context = WatchedContext(engine.journal, probe.options.preemption)
    engine.run()
    return engine


def overload() -> RandomWorkload:
    """A long old prompt behind a crowd, then more short ones than can be served, for a long time.

    A step takes 10 ms or more, two short prompts fill its budget, and each needs three decode steps
    and one of 8 seats besides; more than twice as many arrive as any policy can serve. The request
    ``EARLY`` sits among the crowd and has a long output.
    """
    crowd = [offer(i, 0, 32, 60 if i == EARLY else 6) for i in range(OLD)]
    old = offer(OLD, 1, 160, 4)
    gap_ms = 8.0
    count = int(OVERLOAD_S * 1000 / gap_ms)
    stream = [offer(OLD + 1 + i, 2 + gap_ms * i, 32, 4) for i in range(count)]
    setting = Setting(limits=Limits(8, 64, 1024), audit_every=1 << 40)
    return RandomWorkload("overload", [*crowd, old, *stream], setting)


def check_starvation(
    make: Callable[[], Scheduler], partitioner: PartitionerLike | None = None, seed: int = 0
) -> None:
    """I10: while others keep arriving, an old long prompt is started and an early one finished."""
    workload = overload()
    end = OVERLOAD_S * NS_PER_S

    def watch(engine: Engine) -> None:
        if engine.state.now >= end:
            raise _StreamOver

    engine = build(
        workload.requests, make(), partitioner, setting=workload.setting, seed=seed, observer=watch
    )
    with suppress(_StreamOver):
        engine.run()
    log = engine.log
    late = f"in {OVERLOAD_S} s of simulated time, while later ones were served"
    if OLD not in set(log.tables["admitted"].columns["request"]):
        raise _starves(engine.requests[OLD], f"was never scheduled {late}")
    if EARLY not in set(log.tables["ended"].columns["request"]):
        raise _starves(engine.requests[EARLY], f"did not finish {late}")


def _starves(request: Request, what: str) -> ConformanceError:
    prompt, arrival = request.num_prompt_tokens, request.arrival_ns / NS_PER_S
    problem = f"starves: '{request.id}' ({prompt} prompt tokens, arrived at {arrival:g} s) {what}"
    return ConformanceError("I10", problem)
