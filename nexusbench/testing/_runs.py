"""Finished, partial and empty runs of the small simulated GPU, for checks of what reads events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from nexusbench.core.events import EventLog, RunFacts
from nexusbench.core.request import Request
from nexusbench.engine.engine import Engine
from nexusbench.metrics.run_events import RunEvents
from nexusbench.serving.assembly import request_columns
from nexusbench.testing._harness import LIMITS, Setting, offer, serve

POLICIES = ("vllm", "nexus", "sglang")
STOP_AFTER = 12  # steps of the run that is cut short


class _CutShort(Exception):
    """Enough has happened for a partial log."""


def run_events(engine: Engine, **changes: Any) -> RunEvents:
    """What an engine has logged so far; ``changes`` are :class:`RunFacts` that differ."""
    spec = engine.device.spec
    facts = RunFacts(
        simulated=spec.simulated,
        num_sms=spec.num_sms,
        kv_blocks=engine.kv.num_blocks,
        block_size=engine.kv.block_size,
        partitions=engine.scheduler.partitions,
        splits=tuple(tuple(split.sms) for split in engine.splits),
        device=spec.name,
    )
    facts = msgspec.structs.replace(facts, **changes)
    return RunEvents.from_log(engine.log, request_columns(engine.requests), facts)


def example_runs() -> Iterator[tuple[str, RunEvents]]:
    """Name and events of runs that between them leave every kind of question open.

    Whole runs under three policies, with and without bounds and a warm-up; one without requests;
    one whose requests are all rejected; one of one-token answers, which have no gaps; one that was
    cut short; and one as a client behind an endpoint sees it.
    """
    mixed = [(7, 5), (40, 3), (150, 8), (16, 16), (64, 1), (3, 20), (90, 9), (24, 12)]
    requests = [offer(i, 9 * i, *mixed[i % 8]) for i in range(16)]
    for policy in POLICIES:
        engine = serve(requests, policy)
        yield f"whole run under {policy}", run_events(engine)
        bounds = {"ttft": 100.0, "tbt": 20.0, "tpot": 20.0, "e2e": 500.0}
        yield f"{policy} with bounds", run_events(engine, slo=bounds)
        yield f"{policy}, warm-up over all", run_events(engine, warmup_ns=10**18)
        priced = run_events(engine, price_per_hour=2.5, watts=300.0)
        yield f"{policy} with a price", priced
    nothing: dict[str, list[Any]] = {name: [] for name in request_columns([])}
    facts = RunFacts(True, 16, 64, 4, ("all",))
    yield "no requests", RunEvents.from_log(EventLog(), nothing, facts)
    too_long = [offer(i, i, LIMITS.max_model_len, 9) for i in range(3)]
    yield "all rejected", run_events(serve(too_long, "vllm"))
    yield "one-token answers", run_events(serve([offer(i, i, 9, 1) for i in range(4)], "vllm"))
    tight = [offer(i, 0, 60, 20) for i in range(5)]
    yield "preemptions", run_events(serve(tight, "vllm", setting=Setting(kv_blocks=24)))
    yield "cut short", run_events(_cut_short(requests))


def _cut_short(requests: Sequence[Request]) -> Engine:
    """An engine that stopped in mid-run, as a killed process leaves its log."""
    held: list[Engine] = []

    def watch(engine: Engine) -> None:
        held[:] = [engine]
        if engine.num_steps >= STOP_AFTER:
            raise _CutShort

    with suppress(_CutShort):
        serve(requests, "nexus", observer=watch)
    return held[0]
