"""Where a request's time went: each part against a life whose parts are known, and exact sums."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nexusbench
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.events import OUTCOMES, EventLog, RunFacts
from nexusbench.metrics.base import load_metrics
from nexusbench.metrics.explain import PARTS, explain, find_request
from nexusbench.metrics.run_events import RunEvents
from nexusbench.metrics.summary import summarise

METRICS = load_metrics()
FACTS = RunFacts(
    simulated=True, num_sms=10, kv_blocks=10, block_size=16,
    partitions=("a", "b", "c"), splits=((10,),),
)  # fmt: skip
COLUMNS = ("request", "id", "tenant", "arrival", "prompt_tokens", "output_tokens", "max_tokens")


@dataclass
class Life:
    """One request on a partition of its own, with the account that explain should give."""

    index: int
    now: int
    parts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    rows: list[tuple[int, str, tuple[int, ...]]] = field(default_factory=list)
    tokens: int = 0
    steps: int = 0
    preemptions: int = 0

    def add(self, table: str, *values: int) -> None:
        self.rows.append((self.now, table, values))

    def copy(self, duration: int) -> None:
        """Its KV is on the move for so long, if at all."""
        if duration:
            begin, self.now = self.now, self.now + duration
            self.parts["kv_copy"] += duration
            self.add("moved", self.index, begin, self.now, 0, 1, 9)

    def wait(self, free: int, blocked: int | None, copied: int = 0) -> None:
        """Wait ``free`` ns, then, if given, ``blocked`` ns for want of KV blocks, in the midst of
        which it is ``copied``.
        """
        self.now += free
        self.parts["requeue" if self.preemptions else "queue"] += free
        if blocked is not None:
            self.add("kv_blocked", self.index, self.now)
            self.now += blocked
            self.copy(copied)
            self.now += blocked
            self.parts["kv_wait"] += 2 * blocked
        else:
            self.copy(copied)

    def step(self, gap: int, duration: int, solo: int, chunk: bool, copied: int = 0) -> None:
        """``gap`` ns of nothing, a copy, then a step; a chunk makes no token, a decode one."""
        self.now += gap
        self.copy(copied)
        self.parts["between_steps"] += gap
        begin, self.now = self.now, self.now + duration
        compute = duration if solo < 0 else min(solo, duration)
        self.parts["compute"] += compute
        self.parts["contention"] += duration - compute
        self.steps += 1
        self.tokens += not chunk
        self.add("step", begin, duration, solo, chunk)


copied = st.just(0) | st.integers(1, 30)
wait = st.tuples(st.integers(0, 50), st.none() | st.integers(0, 50), copied)
step = st.tuples(
    st.integers(0, 9), st.integers(1, 20), st.integers(-1, 25).filter(bool), st.booleans(), copied
)
# A request is admitted by a launch, and what is in flight cannot be preempted: no stay is empty.
stay = st.tuples(wait, st.lists(step, min_size=1, max_size=5))
life = st.tuples(st.integers(0, 100), st.lists(stay, min_size=1, max_size=4), wait, st.booleans())


def live(index: int, arrival: int, stays: list, last_wait: tuple, preempted: bool) -> Life:
    one = Life(index, arrival)
    one.add("arrived", index, arrival, 100, 100)
    for number, (waited, steps) in enumerate(stays):
        one.wait(*waited)
        one.add("admitted", index, one.now, 7 * number)
        for values in steps:
            one.step(*values)
        if preempted or number < len(stays) - 1:
            one.add("preempted", index, one.now, 0, 5)
            one.preemptions += 1
    if preempted:  # it ends while it waits
        one.wait(*last_wait)
    one.add("ended", index, one.now, OUTCOMES.index("cancelled" if preempted else "finished"), 0)
    return one


def logged(lives: list[Life]) -> RunEvents:
    """The log of all lives, rows in the order of time as an engine would write them."""
    log = EventLog()
    log.code("because")
    rows = sorted(
        (row for one in lives for row in [(*r, one) for r in one.rows]), key=lambda r: r[0]
    )
    for number, (end, table, values, one) in enumerate(rows):
        if table != "step":
            log.tables[table].row(*values)
            continue
        begin, _, solo, chunk = values
        log.tables["submitted"].row(number, begin, one.index, 10, 1, 0, 0, 0, -1, 0, 0, 0, 0)
        log.tables["step_done"].row(number, end, solo, int(not chunk))
        if chunk:
            log.tables["chunk"].row(number, one.index, 4, 0)
        else:
            log.tables["token"].row(one.index)
    columns = [(i, f"r{i}", "t", one.rows[0][2][1], 100, 50, 100) for i, one in enumerate(lives)]
    requests = dict(zip(COLUMNS, map(list, zip(*columns, strict=True)), strict=True))
    return RunEvents.from_log(log, requests, FACTS)


@given(st.lists(life, min_size=1, max_size=3))
def test_parts_are_those_of_the_life_and_add_up(lives: list) -> None:
    known = [live(index, *one) for index, one in enumerate(lives)]
    run = logged(known)
    for one in known:
        got = explain(run, one.index)
        assert got.parts == one.parts
        assert sum(got.parts.values()) == got.total_ns == one.now - got.arrival_ns
        assert (got.steps, got.output_tokens) == (one.steps, one.tokens)
        assert got.preemptions == one.preemptions
        assert got.lost_tokens == 5 * one.preemptions


@given(st.lists(life, min_size=1, max_size=3), st.integers(0, 120))
def test_counts_of_the_summary_add_up(lives: list, warmup_ns: int) -> None:
    known = [live(index, *one) for index, one in enumerate(lives)]
    stored = logged(known)
    tables = {**stored.tables, "token": {"request": next(stored.token_parts())}}
    run = RunEvents(tables, stored.requests, _facts(stored, warmup_ns))
    metrics = summarise(run, METRICS).metrics
    ends = ("finished", "rejected", "failed", "cancelled", "unfinished")
    assert metrics["offered"].value == sum(metrics[tag].value for tag in ends)
    late = [one for one in known if one.rows[0][2][1] >= warmup_ns]
    assert metrics["tbt"].n == sum(max(one.tokens - 1, 0) for one in late)
    assert metrics["ttft"].n == sum(one.tokens > 0 for one in late)
    if metrics["ttft"].n:
        parts = [metrics[tag].mean for tag in ("ttft_queueing", "ttft_service")]
        assert metrics["ttft"].mean == pytest.approx(sum(parts))
    if metrics["busy"].value is not None:
        assert 0 <= metrics["busy"].value <= 100


def _facts(run: RunEvents, warmup_ns: int):
    return msgspec.structs.replace(run.facts, warmup_ns=warmup_ns)


def test_a_killed_run_is_explained_up_to_its_log() -> None:
    one, other = Life(0, 0), Life(1, 0)
    one.add("arrived", 0, 0, 100, 100)
    one.wait(5, None)
    one.add("admitted", 0, 5, 16)
    one.step(1, 10, 8, chunk=True)
    one.add("preempted", 0, 16, 0, 5)
    other.add("arrived", 1, 0, 100, 100)
    other.wait(50, None)
    other.add("admitted", 1, 50, 0)
    got = explain(logged([one, other]), 0)
    assert (got.outcome, got.total_ns, got.ttft_ns) == ("unfinished", 50, None)
    assert got.parts == {
        "queue": 5, "kv_wait": 0, "requeue": 34, "compute": 8, "contention": 2, "kv_copy": 0,
        "between_steps": 1,
    }  # fmt: skip
    assert (got.cached_tokens, got.chunks, got.mean_batch) == (16, 1, 1.0)
    assert got.contention_known


def test_unknown_solo_time_is_said() -> None:
    one = live(0, 0, [((0, None), [(0, 10, -1, False)])], (0, None), False)
    got = explain(logged([one]), 0)
    assert not got.contention_known
    assert got.parts["compute"] == 10
    assert (got.outcome, got.reason, got.tenant) == ("finished", "because", "t")


@pytest.mark.parametrize("scheduler", ["vllm-pd", "vllm:preemption=swap"])
def test_copies_of_a_served_run_are_no_waiting(scheduler: str, tmp_path: Path) -> None:
    """To another GPU after the prompt; to the host and back, which is part of a preemption."""
    request = '{"timestamp": 0, "input_length": 400, "output_length": 120}\n'
    (tmp_path / "t.jsonl").write_text(8 * request)
    config = RunConfig(trace=str(tmp_path / "t.jsonl"), device="sim:l20", scheduler=scheduler)
    if scheduler != "vllm-pd":
        config = msgspec.structs.replace(config, kv_blocks=160)
    events = nexusbench.run(config).events
    moved = events.tables["moved"]
    assert len(moved["request"])
    for index in range(8):
        parts = explain(events, index).parts
        mine = moved["request"] == index
        assert parts["kv_copy"] == int((moved["end"] - moved["time"])[mine].sum())
        assert min(parts.values()) >= 0


def test_requests_are_found_by_id_then_index() -> None:
    run = logged([live(i, 0, [((0, None), [])], (0, None), False) for i in range(2)])
    assert find_request(run, "r1") == 1
    assert find_request(run, "0") == 0
    for wrong in ("2", "r7", "-1", ""):
        with pytest.raises(UsageError, match="no request"):
            find_request(run, wrong)
    with pytest.raises(UsageError, match="never arrived"):
        explain(run, 2)
