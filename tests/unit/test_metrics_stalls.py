"""Stalled and steady gaps: by hand, and against the obvious way to find them on real logs."""

from __future__ import annotations

import numpy as np
import pytest

from nexusbench.metrics import arrays
from nexusbench.metrics.run_events import RunEvents
from nexusbench.metrics.summary import summarise
from nexusbench.testing._runs import run_events
from tests.examples import slow
from tests.sim.random_runs import cases, serve
from tests.unit.test_metrics import Log, value, values


def three_kinds() -> Log:
    """r0 decodes alone, beside the prefill of r1, in a batch with a chunk of r1, alone again."""
    log = Log()
    log.request(0, output=5)
    log.request(0, output=1)
    log.admit(0, 0)
    log.step(0, 0, 10, chunks=((0, 100),), tokens=(0,))
    log.step(1, 10, 14, decodes=1, tokens=(0,), partition=1)  # steady: 4
    log.admit(1, 15)
    log.step(2, 14, 20, decodes=1, tokens=(0,), partition=1)  # r1 begins within it: 6
    log.step(3, 15, 22, chunks=((1, 60),), partition=0)
    log.step(4, 22, 32, decodes=1, chunks=((1, 40),), tokens=(0, 1), partition=1)  # 12
    log.step(5, 32, 35, decodes=1, tokens=(0,), partition=1)  # steady again: 3
    log.end(1, 32)
    log.end(0, 35)
    return log


def test_a_gap_is_stalled_if_another_requests_prefill_is_in_it():
    run = three_kinds().run()
    assert values("tbt_stalled", run) == [6, 12]
    assert values("tbt_steady", run) == [3, 4]
    assert value("stalled_gaps", run) == 50


def test_gaps_that_only_touch_a_prefill_are_steady():
    """It ends when the gap begins, or begins when it ends."""
    log = Log()
    log.request(0, output=2)
    log.request(0, output=1)
    log.step(0, 0, 10, chunks=((0, 100),), tokens=(0,))
    log.step(1, 10, 14, decodes=1, tokens=(0,))
    log.step(2, 14, 20, chunks=((1, 100),), tokens=(1,))
    run = log.run()
    assert values("tbt_steady", run) == [4]
    assert value("stalled_gaps", run) == 0


@pytest.mark.parametrize("others", [0, 1])
def test_its_own_recomputation_stalls_no_request(others):
    """Preempted after the second token and computed again; alone in the launch, or not."""
    log = Log()
    log.request(0, output=3)
    log.request(0, output=1)
    log.step(0, 0, 10, chunks=((0, 100),), tokens=(0,))
    log.step(1, 10, 14, decodes=1, tokens=(0,))
    more = ((1, 50),) if others else ()
    log.step(2, 20, 40, chunks=((0, 102), *more), tokens=(0,))
    run = log.run()
    assert values("tbt_stalled", run) == [26] * others
    assert values("tbt_steady", run) == [4] + [26] * (1 - others)


def test_a_recomputation_that_begins_where_a_gap_ends_is_no_part_of_it():
    """The chunk of r1 stalls the first gap; what r0 recomputes from its end on changes nothing."""
    log = Log()
    log.request(0, output=3)
    log.request(0, output=1)
    log.step(0, 0, 10, chunks=((0, 100),), tokens=(0,))
    log.step(1, 10, 14, decodes=1, chunks=((1, 9),), tokens=(0, 1))
    log.step(2, 14, 30, chunks=((0, 102),), tokens=(0,))
    run = log.run()
    assert values("tbt_stalled", run) == [4]
    assert values("tbt_steady", run) == [16]


def test_only_gaps_of_measured_requests_count_but_all_prefills_do():
    log = three_kinds()
    assert value("stalled_gaps", log.run(warmup_ns=10**12)) is None
    later = Log()
    later.request(0, output=1)
    later.request(5, output=2)
    later.step(0, 6, 9, chunks=((1, 10),), tokens=(1,))
    later.step(1, 9, 20, decodes=1, chunks=((0, 100),), tokens=(1, 0))
    run = later.run(warmup_ns=4_000_000)
    assert values("tbt_stalled", run) == [11]


def test_what_has_no_value_says_why():
    summary = summarise(three_kinds().run(observed="client"))
    assert summary.metrics["stalled_gaps"].value is None
    assert "client" in (summary.metrics["stalled_gaps"].reason or "")
    log = Log()
    log.request(0, output=1)
    log.step(0, 0, 10, chunks=((0, 100),), tokens=(0,))
    metrics = summarise(log.run()).metrics
    assert metrics["stalled_gaps"].reason == "no request got two tokens"
    assert metrics["tbt_stalled"].n == metrics["tbt_steady"].n == 0


def naive(run: RunEvents) -> list[bool]:
    """Every gap with every launch."""
    tables, launches = run.tables, run.all_launches
    asked = {step: set() for step in tables["submitted"]["step"].tolist()}
    for step, request in zip(tables["chunk"]["step"].tolist(), tables["chunk"]["request"].tolist(),
                             strict=True):  # fmt: skip
        asked[step].add(request)
    prefills = [
        (begin, end, asked[tables["submitted"]["step"][row]])
        for row, begin, end in zip(launches.row, launches.start, launches.end, strict=True)
    ]
    owners = iter(np.concatenate([np.empty(0, int), *run.token_parts()]).tolist())
    before: dict[int, int] = {}
    found = []
    done = tables["step_done"]
    for time, count in zip(done["time"].tolist(), done["tokens"].tolist(), strict=True):
        for _ in range(count):
            request = next(owners)
            if request in before:
                start = before[request]
                found.append(
                    any(b < time and d > start and others - {request} for b, d, others in prefills)
                )
            before[request] = time
    return found


@pytest.mark.parametrize("seed", [0, *slow(1, 2, 3)])
def test_on_real_logs_it_is_what_the_obvious_way_finds(seed, monkeypatch):
    """Preemptions, swaps, layers, two streams and two GPUs among them; pieces of any size."""
    both = recomputed = 0
    for number, case in enumerate(cases(300 + seed, 14)):
        monkeypatch.setattr(arrays, "CHUNK", (7, 64, 1 << 19)[number % 3])
        run = run_events(serve(case))
        want = naive(run)
        assert run.stalled.tolist() == want
        both += len(set(want)) == 2
        recomputed += bool(len(run.tables["preempted"]["request"]))
    assert both > 3
    assert recomputed > 1
