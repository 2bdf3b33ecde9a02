"""Sessions, closed loops and patience in trace files, and through every transformation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusbench.core.errors import InputError, UsageError
from nexusbench.serving.assembly import make_requests
from nexusbench.workloads import transform
from nexusbench.workloads.base import Trace, TraceRequest
from nexusbench.workloads.trace import load_trace, write_trace
from tests.examples import examples

MS = 1_000_000


def line(**fields: Any) -> dict[str, Any]:
    return {"input_length": 10, "output_length": 5, **fields}


def save(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(fields) for fields in lines) + "\n")
    return path


SESSION = (
    line(timestamp=100, session="a", turn=0),
    line(session="a", turn=1, think_time=1500.5, timeout=30_000),
    line(timestamp=250, cancel_after=0.25),
    line(session="a", turn=2),
)


def test_turns_follow_one_another(tmp_path: Path) -> None:
    trace = load_trace(save(tmp_path / "t.jsonl", *SESSION))
    assert [r.follows for r in trace.requests] == [False, True, False, True]
    assert [r.arrival_ns for r in trace.requests] == [0, 0, 150 * MS, 0]
    assert trace.requests[1].think_ns == 1_500_500_000
    assert trace.requests[1].timeout_ns == 30_000 * MS
    assert trace.requests[2].cancel_after_ns == 250_000
    assert "1 sessions, 2 later turns arrive when the turn before has ended" in trace.notes
    made = make_requests(transform.bounds(trace), 16)
    assert [r.after for r in made] == [-1, 0, -1, 1]
    assert [r.think_ns for r in made] == [0, 1_500_500_000, 0, 0]


def test_turns_with_times_are_replayed_at_them(tmp_path: Path) -> None:
    lines = [line(timestamp=10 * i, session="a", turn=i) for i in range(3)]
    trace = load_trace(save(tmp_path / "t.jsonl", *lines))
    assert not any(r.follows for r in trace.requests)
    assert any("2 later turns are replayed at their own" in note for note in trace.notes)
    assert [r.after for r in make_requests(transform.bounds(trace), 16)] == [-1, -1, -1]


def test_closed_loop_file(tmp_path: Path) -> None:
    lines = [line(concurrency=4), line(), line(timestamp=0), line(session="a", turn=0)]
    trace = load_trace(save(tmp_path / "t.jsonl", *lines, line(session="a", turn=1)))
    assert trace.concurrency == 4
    assert [r.follows for r in trace.requests] == [False] * 4 + [True]
    assert "closed loop of 4 users" in trace.notes[0]


FIRST = line(timestamp=0, session="a", turn=0)
FAULTS = {
    "turn without session": ([line(timestamp=0, turn=0)], 1, "turn", "there is no session"),
    "think time without session": (
        [line(timestamp=0, think_time=1)], 1, "think_time", "there is no session"),
    "session without turn": ([line(timestamp=0, session="a")], 1, "turn", "missing"),
    "first turn is 1": ([line(timestamp=0, session="a", turn=1)], 1, "turn", "is 0"),
    "turns not consecutive": ([FIRST, line(session="a", turn=2)], 2, "turn", "in the file is 1"),
    "turn twice": ([FIRST, line(timestamp=1, session="a", turn=0)], 2, "turn", "in the file is 1"),
    "no time at all": ([line()], 1, "timestamp", "missing"),
    "first turn without time": ([line(session="a", turn=0)], 1, "timestamp", "missing"),
    "think time of a first turn": (
        [line(timestamp=0, session="a", turn=0, think_time=5)], 1, "think_time", "later turn"),
    "think time and timestamp": (
        [FIRST, line(timestamp=5, session="a", turn=1, think_time=5)], 2, "think_time", "later"),
    "then times stop": (
        [FIRST, line(timestamp=5, session="a", turn=1), line(session="a", turn=2)],
        3, "timestamp", "turn 1 of the session has one"),
    "then times begin": (
        [FIRST, line(session="a", turn=1), line(timestamp=9, session="a", turn=2)],
        3, "timestamp", "turn 1 of the session has none"),
    "time in a closed loop": (
        [line(concurrency=2), line(timestamp=3)], 2, "timestamp", "has a concurrency"),
    "two concurrencies": (
        [line(concurrency=2), line(concurrency=3)], 2, "concurrency", "line 1 says 2"),
    "timeout of zero": ([line(timestamp=0, timeout=0)], 1, "timeout", "above 0"),
    "negative think time": (
        [FIRST, line(session="a", turn=1, think_time=-1)], 2, "think_time", "0 or more"),
    "empty session": ([line(timestamp=0, session="", turn=0)], 1, "session", "not empty"),
    "time goes back": (
        [line(timestamp=9, session="a", turn=0), line(session="a", turn=1), line(timestamp=3)],
        3, "timestamp", "in line 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_located(name: str, tmp_path: Path) -> None:
    lines, number, field, says = FAULTS[name]
    path = save(tmp_path / "t.jsonl", *lines)
    with pytest.raises(InputError) as caught:
        load_trace(path)
    assert str(caught.value).startswith(f"{path}:{number}: field '{field}'")
    assert says in str(caught.value)


def chat(*, closed: int = 0) -> Trace:
    """Sessions of 1 to 3 turns at 0, 100 ... ms."""
    requests = []
    for user in range(6):
        for turn in range(1 + user % 3):
            requests.append(
                TraceRequest(
                    str(len(requests)), 0 if closed else 100 * user * MS, 10 + user, 5, (), "",
                    session=f"s{user}", turn=turn, follows=turn > 0, think_ns=turn * 8 * MS,
                    timeout_ns=7 * MS, cancel_after_ns=9 * MS,
                )
            )  # fmt: skip
    return Trace("chat", requests, concurrency=closed)


def check_together(trace: Trace) -> None:
    """What follows has its session's time and stands behind its earlier turns."""
    last: dict[str, TraceRequest] = {}
    for r in trace.requests:
        if r.follows:
            assert (r.arrival_ns, r.turn) == (last[r.session].arrival_ns, last[r.session].turn + 1)
        last[r.session] = r
    make_requests(transform.bounds(trace), 16)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: transform.speed(t, 2),
        lambda t: transform.rate(t, 50),
        lambda t: transform.burstiness(t, 10, 0.5, 3),
        lambda t: transform.window(t, 0.1, 0.45),
        lambda t: transform.limit(t, 5),
        lambda t: transform.spread_ties(t, "uniform", 1),
        lambda t: transform.fit_context(t, 17, "skip"),
        lambda t: transform.closed_loop(t, 2),
    ],
)
def test_transformations_keep_sessions_together(change: Any) -> None:
    changed = change(chat())
    check_together(changed)
    assert {r.timeout_ns for r in changed.requests} == {7 * MS}
    assert {r.cancel_after_ns for r in changed.requests} == {9 * MS}


def test_speed_hastens_thought_too_and_rate_counts_first_turns() -> None:
    assert transform.speed(chat(), 2).requests[-1].think_ns == 8 * MS
    rated = transform.rate(chat(), 10)
    assert rated.requests[-1].think_ns == 16 * MS
    assert "first turns/s" in rated.notes[-1]
    assert rated.requests[-1].arrival_ns == 500 * MS


def test_a_skipped_turn_takes_the_rest_of_its_session_along() -> None:
    trace = chat()
    trace.requests[1].prompt_tokens = 500  # turn 1 of the second session
    trace.requests[4].prompt_tokens = 500  # turn 1 of three
    kept = transform.fit_context(trace, 100, "skip")
    assert [r.id for r in kept.requests] == ["0", "3", "6", "7", "8", "9", "10", "11"]


def test_a_closed_loop_has_no_times_to_change() -> None:
    trace = chat(closed=3)
    for change in (
        lambda: transform.speed(trace, 2),
        lambda: transform.rate(trace, 2),
        lambda: transform.burstiness(trace, 2, 1, 0),
        lambda: transform.window(trace, 0, 1),
        lambda: transform.spread_ties(trace, "uniform", 0),
    ):
        with pytest.raises(UsageError, match="closed loop of 3 users"):
            change()
    with pytest.raises(UsageError, match="concurrency 0"):
        transform.closed_loop(trace, 0)


TIMES = st.one_of(st.just(0), st.integers(1, 10**7), st.integers(1, 10**12))


@st.composite
def traces(draw):
    """Any trace with sessions, open and closed, with and without patience."""
    users = draw(st.sampled_from([0, 0, 3]))
    requests: list[TraceRequest] = []
    now = 0
    for number in range(draw(st.integers(1, 6))):
        now += 0 if users or not requests else draw(TIMES)
        turns = draw(st.integers(0, 3))
        for turn in range(max(1, turns)):
            requests.append(
                TraceRequest(
                    str(len(requests)), now, draw(st.integers(1, 99)), draw(st.integers(1, 9)), (),
                    draw(st.sampled_from(["", "t"])), session=f"s{number}" if turns else "",
                    turn=turn, follows=turn > 0, think_ns=draw(TIMES) if turn else 0,
                    timeout_ns=draw(TIMES), cancel_after_ns=draw(TIMES),
                )
            )  # fmt: skip
    return Trace("any", requests, concurrency=users)


@settings(max_examples=examples(150))
@given(traces())
def test_written_traces_come_back(tmp_path_factory: pytest.TempPathFactory, trace: Trace) -> None:
    path = tmp_path_factory.mktemp("any") / "t.jsonl"
    write_trace(trace, path)
    again = load_trace(path)
    assert again.requests == trace.requests
    assert again.concurrency == trace.concurrency
    second = path.with_name("again.jsonl")
    write_trace(again, second)
    assert second.read_bytes() == path.read_bytes()


def test_the_next_turn_finds_prompt_and_answer_in_the_cache() -> None:
    from nexusbench.testing import serve
    from nexusbench.testing._harness import Setting
    from nexusbench.workloads.statistics import prefix_ceiling
    from nexusbench.workloads.trace import conversation_ids

    # Blocks of 8 tokens: the 20 + 13 tokens of turn 0 are 4 whole ones.
    ids = (1, 2, 3, 4, 5, 6, 7)
    turns = [
        TraceRequest("0", 0, 20, 13, (1, 2, 90), session="a"),
        TraceRequest("1", 0, 50, 6, ids, session="a", turn=1, follows=True, think_ns=MS),
        TraceRequest("2", 0, 20, 13, (1, 2, 90)),
        TraceRequest("3", 0, 50, 6, (1, 2, 80, 81, 82, 83, 84), session="b"),
    ]
    trace = Trace("t", turns, hash_block=8)
    named = conversation_ids(trace, 4)
    assert [tokens for _, tokens in named] == [32, 50, 0, 50]
    assert named[0][0] == named[1][0][:4]
    ceiling = prefix_ceiling(trace)
    assert ceiling is not None
    assert ceiling.tokens == pytest.approx(100 * (32 + 16 + 16) / 140)
    engine = serve(make_requests(transform.bounds(trace), 4)[:2], "vllm", setting=Setting())
    assert list(engine.log.tables["admitted"].columns["cached_tokens"]) == [0, 32]
    # Without its session the answer is not kept.
    turns[0].session = turns[1].session = ""
    turns[1].follows = False
    turns[1].arrival_ns = 10**10
    engine = serve(make_requests(transform.bounds(trace), 4)[:2], "vllm", setting=Setting())
    assert list(engine.log.tables["admitted"].columns["cached_tokens"]) == [0, 16]
