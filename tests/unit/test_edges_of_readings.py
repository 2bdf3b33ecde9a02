"""Readers and metrics at their edges: the first byte, a run without rows, a gap of 1 ns."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from nexusbench.core.errors import InputError
from nexusbench.core.events import EventLog
from nexusbench.gates.check import check, match
from nexusbench.gates.rules import parse_rule
from nexusbench.metrics import arrays
from nexusbench.metrics.arrays import pick
from nexusbench.metrics.launches import chunk_numbers, continued, later_layers
from nexusbench.metrics.occupancy import kv_over_time, queue_over_time
from nexusbench.metrics.run_events import RunEvents
from nexusbench.workloads import transform
from nexusbench.workloads.base import Trace, TraceRequest
from nexusbench.workloads.convert import convert
from nexusbench.workloads.forest import Prefixes
from nexusbench.workloads.source import read_source
from nexusbench.workloads.statistics import _arrivals, histogram
from nexusbench.workloads.trace import conversation_ids, load_trace, prefix_ids
from tests.gates.made_up import exact, measured

FACTS = {
    "simulated": True, "num_sms": 16, "kv_blocks": 512, "block_size": 4,
    "partitions": ("all",), "splits": ((16,),),
}  # fmt: skip
COLUMNS = ("request", "id", "tenant", "arrival", "prompt_tokens", "output_tokens", "max_tokens")


def test_a_run_without_rows_has_no_steps() -> None:
    run = RunEvents.from_log(EventLog(), {name: [] for name in COLUMNS}, FACTS)
    steps, queue = kv_over_time(run), queue_over_time(run)
    assert len(steps.times) == len(steps.values) == 0
    assert len(queue.times) == len(queue.waiting) == len(queue.running) == 0
    assert (
        later_layers(run).tolist() == chunk_numbers(run).tolist() == continued(run).tolist() == []
    )


def test_tokens_a_nanosecond_apart_did_not_come_together() -> None:
    times = np.array([0, 5, 5, 6, 9], dtype=np.int64)
    requests = np.zeros(5, dtype=np.int32)

    def parts():
        return iter([requests])

    read = arrays.read_tokens(parts, times, np.ones(5, dtype=np.int64), 1)
    apart = arrays.apart(read, parts)
    assert apart.gaps.tolist() == [5, 1, 3]
    assert apart.owners.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "ms"),
    [("5000000ns", 5), ("5000us", 5), ("5000µs", 5), ("5000μs", 5), ("5ms", 5), ("5s", 5000)],
)
def test_every_unit_of_time_is_one(text: str, ms: float) -> None:
    assert parse_rule(f"ttft:5%:{text}").floor("ms") == pytest.approx(ms)


@pytest.mark.parametrize(("raw", "line"), [(b"\0a", 1), (b"a\n\0", 2), (b"a\nb\n\0\n", 3)])
def test_a_zero_byte_anywhere_is_no_text(raw: bytes, line: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(raw)
    with pytest.raises(InputError, match="binary file, not text") as caught:
        read_source(path)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("first", "refused"),
    [(999_999_999, False), (1_000_000_000, True), (99_999_999_999, True), (100_000_000_000, False)],
)
def test_milliseconds_that_look_like_seconds_since_1970(
    first: int, refused: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        f'{{"timestamp": {first}, "input_length": 5, "output_length": 2, "hash_ids": [1]}}\n'
    )
    if refused:
        with pytest.raises(InputError, match="looks like seconds since 1970") as caught:
            load_trace(path, "mooncake")
        assert (caught.value.line, caught.value.field) == (1, "timestamp")
    else:
        assert load_trace(path, "mooncake").requests[0].arrival_ns == 0


def test_a_mooncake_id_names_the_block_of_512_that_it_ends(tmp_path: Path) -> None:
    """Blocks of 16: two prompts that differ from token 512 on share one id, not less."""
    same, other = tuple(range(80)), (*range(32), *range(900, 948))
    shorter = (*range(31), *range(900, 949))
    made = [TraceRequest(str(i), 0, 1280, 5, ids) for i, ids in enumerate((same, other, shorter))]
    path = tmp_path / "m.jsonl"
    path.write_bytes(convert(Trace("t", made, hash_block=16), "mooncake")[0])
    first, second, third = prefix_ids(load_trace(path), 512)
    assert (len(first), len(second)) == (3, 3)
    assert first[0] == second[0] != third[0]
    assert first[1] != second[1]


def test_a_turn_without_hash_ids_names_no_tokens() -> None:
    turns = [
        TraceRequest("0", 0, 20, 13, (), session="a"),
        TraceRequest("1", 9, 50, 6, (1, 2, 3, 4, 5, 6, 7), session="a", turn=1),
    ]
    named = conversation_ids(Trace("t", turns, hash_block=8), 4)
    assert named[0] == ((), 0)
    assert named[1][1] == 50


# -- traces ----------------------------------------------------------------------------------------


def trace_of(*requests: tuple[int, int, int]) -> Trace:
    made = [TraceRequest(str(i), at, prompt, out) for i, (at, prompt, out) in enumerate(requests)]
    return Trace("t", made, hash_block=16)


@pytest.mark.parametrize(
    ("start", "end", "kept"),
    [(0, 1, ["0"]), (0, 1.000000001, ["0", "1"]), (1, 2, ["1"]), (1, 2.5, ["1", "2"]),
     (2, None, ["2", "3"]), (1.000000001, 3, ["2"])],
)  # fmt: skip
def test_a_window_holds_its_start_and_not_its_end(
    start: float, end: float | None, kept: list[str]
) -> None:
    second = 1_000_000_000
    trace = trace_of((0, 5, 5), (second, 5, 5), (2 * second, 5, 5), (3 * second, 5, 5))
    found = transform.window(trace, start, end)
    assert [request.id for request in found.requests] == kept
    assert found.requests[0].arrival_ns == 0


def test_two_are_a_tie() -> None:
    trace = trace_of((0, 5, 5), (0, 5, 5), (9, 5, 5))
    assert "2 of 3 requests share a timestamp" in transform.spread_ties(trace, "none", 0).notes[-1]
    apart = trace_of((0, 5, 5), (1, 5, 5))
    assert "no ties" in transform.spread_ties(apart, "uniform", 0).notes[-1]


def test_a_prompt_is_clipped_to_one_token_and_not_to_none() -> None:
    trace = trace_of((0, 30, 99), (1, 30, 100), (2, 30, 70), (3, 30, 71))
    clipped = transform.fit_context(trace, 100, "clip")
    assert [(r.id, r.prompt_tokens) for r in clipped.requests] == [("0", 1), ("2", 30), ("3", 29)]
    assert "prompts clipped: 2" in clipped.notes[-1]
    assert "requests skipped: 1" in clipped.notes[-1]
    assert "3 of 4 requests exceed it" in clipped.notes[-1]


def test_facts_of_arrivals() -> None:
    second = 1_000_000_000
    found = _arrivals([0, 0, 0, second, 4 * second, 4 * second])
    assert (found.n, found.span_s, found.rate, found.tied) == (6, 4.0, 1.25, 3)
    gaps = np.array([0.0, 0.0, 1.0, 3.0, 0.0])
    assert found.gap_cv == pytest.approx(gaps.std() / gaps.mean())
    assert _arrivals([5]).rate is None
    assert _arrivals([5, 5]).gap_cv is None


def test_bins_that_double() -> None:
    assert histogram([1, 2, 3, 4, 5, 8, 9, 16]) == [
        (1, 1, 1), (2, 2, 1), (3, 4, 2), (5, 8, 2), (9, 16, 2),
    ]  # fmt: skip
    assert histogram([5, 33]) == [(5, 8, 1), (9, 16, 0), (17, 32, 0), (33, 64, 1)]


def test_a_last_request_after_more_than_146_years(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        f'{{"timestamp": {at}, "input_length": 5, "output_length": 2}}\n'
        for at in (0, 1, 2**62 // 10**6 + 1)
    ]
    path.write_text("".join(lines))
    with pytest.raises(InputError, match="146 years") as caught:
        load_trace(path)
    assert caught.value.line == 3
    path.write_text("".join(lines[:2]))
    assert len(load_trace(path).requests) == 2


@pytest.mark.parametrize(("share", "good"), [(0, True), (1, True), (1.01, False), (-0.01, False)])
def test_shares_are_from_0_to_1(share: float, good: bool) -> None:
    try:
        assert msgspec.convert({"tokens": 16, "share": share}, Prefixes).share == share
    except msgspec.ValidationError:
        assert not good
    else:
        assert good


# -- metrics ---------------------------------------------------------------------------------------


def test_a_row_that_is_not_there_has_no_value() -> None:
    assert pick(np.array([5, 7]), np.array([1, -1, 0])).tolist() == [7, -1, 5]


# -- the gate --------------------------------------------------------------------------------------


def test_no_change_on_the_whole_is_no_warning_however_unlikely() -> None:
    """Four of ten are slower, the median difference is 0: p is 0.043, and nothing got worse."""
    new = measured(*[10.0] * 6, *[11.0] * 4)
    report = check({"s": measured(*[10.0] * 10)}, {"s": new}, [parse_rule("x:5%")])
    (finding,) = report.findings
    assert finding.p is not None
    assert finding.p < 0.05
    assert (finding.worse, finding.verdict) == (0.0, "pass")


def test_fewer_seeds_than_the_baselines_are_told() -> None:
    old, new = exact(10, 20, 30), exact(11, 21, seeds=[0, 1])
    (finding,) = check({"s": old}, {"s": new}, [parse_rule("x:50%")]).findings
    assert finding.reason.endswith("; only 2 of the baseline's 3 seeds were run")
    (finding,) = check({"s": old}, {"s": exact(11, 21, 31)}, [parse_rule("x:50%")]).findings
    assert "only" not in finding.reason


@pytest.mark.parametrize(("count", "more"), [(5, False), (6, True)])
def test_five_seeds_are_named(count: int, more: bool) -> None:
    old, new = exact(*range(1, count + 1)), exact(1, seeds=[77])
    (finding,) = check({"s": old}, {"s": new}, [parse_rule("x:5%")]).findings
    assert ("4, ..." in finding.reason) == more
    assert "0, 1, 2, 3, 4" in finding.reason


@pytest.mark.parametrize(("count", "kin"), [(6, True), (7, False)])
def test_a_foreign_baseline_differs_in_six_things_at_most(count: int, kin: bool) -> None:
    changes = {f"config.{number}": number for number in range(count)}
    found = match({"a": exact(1, **changes)}, {"b": exact(1)})
    assert found["b"][0] == ("a" if kin else None)
    assert len(found["b"][1]) == (count if kin else 0)


def test_a_measured_finding_tells_means_and_calls_chance_no_improvement() -> None:
    old, new = (8.0, 12.0, 16.0, 10.0, 15.0), (7.9, 11.9, 15.9, 9.9, 14.9)
    (finding,) = check({"s": measured(*old)}, {"s": measured(*new)}, [parse_rule("x:5%")]).findings
    assert finding.baseline == pytest.approx(12.2)
    assert finding.current == pytest.approx(12.1)
    assert finding.worse == pytest.approx(-0.1)
    assert finding.p_better is not None
    assert finding.p_better > 0.3
    assert not finding.improved
