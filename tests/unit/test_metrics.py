"""Metrics on logs small enough to compute by hand."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest

import nexusbench.metrics
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.events import OUTCOMES, EventLog, RunFacts
from nexusbench.core.work import HostGap
from nexusbench.metrics.arrays import stable_order, time_with_several, union
from nexusbench.metrics.base import Distribution, Scalar, find_metrics, load_metrics
from nexusbench.metrics.device_use import split_shares
from nexusbench.metrics.explain import explain
from nexusbench.metrics.latency import came_at_once
from nexusbench.metrics.requests import met, request_p99_gaps
from nexusbench.metrics.run_events import RunEvents, check_slo
from nexusbench.metrics.summary import summarise

MS = 1_000_000
METRICS = load_metrics()
FACTS = RunFacts(
    simulated=True,
    num_sms=100,
    kv_blocks=200,
    block_size=16,
    partitions=("prefill", "decode"),
    splits=((100, 0), (60, 40), (40, 60)),
)


class Log:
    """Event rows by hand, times in ms."""

    def __init__(self) -> None:
        self.log = EventLog()
        self.requests: dict[str, list] = {
            name: []
            for name in (
                "request", "id", "tenant", "arrival",
                "prompt_tokens", "output_tokens", "max_tokens",
            )
        }  # fmt: skip

    def row(self, table: str, *values: int) -> None:
        self.log.tables[table].row(*values)

    def request(self, arrival: float, prompt: int = 100, output: int = 3, arrives: bool = True):
        index = len(self.requests["id"])
        values = (index, f"r{index}", "", int(arrival * MS), prompt, output, output)
        for column, value in zip(self.requests.values(), values, strict=True):
            column.append(value)
        if arrives:
            self.row("arrived", index, int(arrival * MS), prompt, output)
        return index

    def admit(self, request: int, time: float, cached: int = 0) -> None:
        self.row("admitted", request, int(time * MS), cached)

    def step(
        self,
        step: int,
        begin: float,
        end: float | None,
        *,
        tokens: tuple[int, ...] = (),
        partition: int = 0,
        sms: int = 100,
        decodes: int = 0,
        chunks: tuple[tuple[int, int], ...] = (),
        predicted: float = -1,
        solo: float = -1,
        kv: int = 0,
        split: int = 0,
    ) -> None:
        prefill = sum(n for _, n in chunks)
        guess = -1 if predicted < 0 else int(predicted * MS)
        self.row(
            "submitted", step, int(begin * MS), partition, sms, decodes, 0, len(chunks), prefill,
            guess, kv, 0, 0, split,
        )  # fmt: skip
        for request, n in chunks:
            self.row("chunk", step, request, n, 0)
        if end is not None:
            alone = -1 if solo < 0 else int(solo * MS)
            self.row("step_done", step, int(end * MS), alone, len(tokens))
            for request in tokens:
                self.row("token", request)

    def end(
        self, request: int, time: float, outcome: str = "finished", reason: str = "because"
    ) -> None:
        code = self.log.code(reason)
        self.row("ended", request, int(time * MS), OUTCOMES.index(outcome), code)

    def run(self, **changes: object) -> RunEvents:
        return RunEvents.from_log(
            self.log, self.requests, msgspec.structs.replace(FACTS, **changes)
        )


def two_requests() -> Log:
    """r0: arrives 0, admitted 2, tokens 10 14 24. r1: arrives 5, admitted 10, tokens 14 24 30."""
    log = Log()
    log.request(0, prompt=100, output=3)
    log.request(5, prompt=300, output=3)
    log.admit(0, 2)
    log.step(0, 2, 10, chunks=((0, 100),), tokens=(0,), predicted=4, solo=8, kv=10)
    log.admit(1, 10, cached=60)
    log.step(1, 10, 14, chunks=((1, 240),), decodes=1, tokens=(0, 1), predicted=5, solo=4, kv=30)
    log.step(2, 14, 24, decodes=2, tokens=(0, 1), predicted=10, solo=5, kv=30)
    log.end(0, 24)
    log.step(3, 24, 30, decodes=1, tokens=(1,), kv=20)
    log.end(1, 30)
    return log


def values(tag: str, run: RunEvents) -> list[float]:
    metric = METRICS[tag]
    assert isinstance(metric, Distribution)
    return sorted(metric.values(run).tolist())


def value(tag: str, run: RunEvents) -> float | None:
    metric = METRICS[tag]
    assert isinstance(metric, Scalar)
    return metric.value(run)


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("tbt_stalled", [4]),
        ("tbt_steady", [6, 10, 10]),
        ("ttft", [9, 10]),
        ("ttft_long_prompts", [9]),
        ("ttft_queueing", [2, 5]),
        ("ttft_service", [4, 8]),
        ("send_lag", []),
        ("tbt", [4, 6, 10, 10]),
        ("tpot", [7, 8]),
        ("e2e", [24, 25]),
        ("normalised_latency", [8, 25 / 3]),
        ("batch_size", [1, 1, 2, 2]),
        ("tokens_per_step", [1, 2, 100, 241]),
        ("belief_error", [0, 25, 50]),
        ("belief_bias", [-50, 0, 25]),
        ("belief_error_alone", [25, 50]),
        ("belief_bias_alone", [-50, 25]),
        ("belief_error_corunning", [0]),
        ("belief_bias_corunning", [0]),
    ],
)
def test_distributions_by_hand(tag: str, expected: list[float]) -> None:
    assert values(tag, two_requests().run()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("stalled_gaps", 25),
        ("makespan", 0.030),
        ("request_throughput", 2 / 0.030),
        ("output_throughput", 6 / 0.030),
        ("total_throughput", 406 / 0.030),
        ("goodput", None),
        ("attainment", None),
        ("cost_per_mtok", None),
        ("joules_per_token", None),
        ("offered", 2),
        ("finished", 2),
        ("finished_stop", 0),
        ("finished_work", 100),
        ("offered_rate", 1 / 0.005),
        ("finished_rate", 0),
        ("left_behind", 2),
        ("overload", None),
        ("rejected", 0),
        ("failed", 0),
        ("cancelled", 0),
        ("unfinished", 0),
        ("preemptions", 0),
        ("recomputed_tokens", 0),
        ("kv_use_mean", 100 * (10 * 8 + 30 * 14 + 20 * 6) / 28 / 200),
        ("kv_use_peak", 15),
        ("prefix_hit_rate", 15),
        ("sms_prefill", 100),
        ("sms_decode", None),
        ("sms_all", None),
        ("split_in_force", 0),
        ("repartitions", 0),
        ("repartition_rate", 0),
        ("busy", 100 * 28 / 30),
        ("contention", 100 * 5 / 22),
        ("mfu", None),
        ("mbu", None),
        ("host_gap", None),
        ("host_gap_longest", None),
    ],
)
def test_scalars_by_hand(tag: str, expected: float | None) -> None:
    got = value(tag, two_requests().run())
    assert got == (None if expected is None else pytest.approx(expected))


def test_work_that_finished_is_that_of_requests_that_did() -> None:
    """r1 was answered and failed: its 303 tokens were offered."""
    log = Log()
    for prompt, outcome in ((100, "finished"), (300, "failed")):
        index = log.request(0, prompt=prompt, output=3)
        log.admit(index, 1)
        log.step(index, 1 + 2 * index, 2 + 2 * index, tokens=(index,))
        log.end(index, 9, outcome)
    assert value("finished_work", log.run()) == pytest.approx(100 * 103 / 406)


def test_a_client_sees_what_it_sent_and_what_came() -> None:
    """r0 is 2 ms late and gets 1 + 2 tokens; r1 0.5 ms, gets one and fails; r2 is not sent."""
    log = Log()
    for arrival in (0, 5, 9):
        log.request(arrival, prompt=100, output=3)
    log.admit(0, 2, cached=30)
    log.admit(1, 5.5, cached=-1)
    for step, (time, tokens) in enumerate([(10, (0,)), (12, (1,)), (16, (0, 0))]):
        log.row("step_done", step, time * MS, -1, len(tokens))
        for request in tokens:
            log.row("token", request)
    log.end(0, 17)
    log.end(1, 13, "failed")
    log.end(2, 9, "rejected")
    run = log.run(observed="client", simulated=False, num_sms=0, kv_blocks=0, partitions=())
    assert values("send_lag", run) == pytest.approx([0.5, 2])
    assert values("ttft", run) == [7, 10]
    # The two tokens of one chunk have one gap before them, and count as two for TPOT.
    assert values("tbt", run) == [6]
    assert run.gap_request.tolist() == [0]
    assert values("tpot", run) == pytest.approx([3])
    assert request_p99_gaps(run).tolist() == [6 * MS, 0, 0]
    assert value("prefix_hit_rate", run) is None
    summary = summarise(run)
    assert msgspec.to_builtins(summary.metrics["busy"]) == {
        "kind": "scalar", "title": "device busy", "unit": "%", "direction": "none", "value": None,
        "reason": "a client does not see the inside of the server",
    }  # fmt: skip
    assert summary.metrics["ttft_queueing"].n == 0
    parts = [explain(run, request).parts for request in range(3)]
    assert [list(part.values()) for part in parts] == [
        [2 * MS, 8 * MS, 6 * MS, MS], [MS // 2, 13 * MS // 2, 0, MS], [0, 0, 0, 0]
    ]  # fmt: skip


def test_what_came_at_once_keeps_no_bound_on_gaps() -> None:
    """r0 gets three tokens at once, r1 two of them apart; r2 one token of its three, which the
    server says is all ("length"), r3 one that its model ended; r4 one of one.
    """
    log = Log()
    for output in (3, 2, 3, 3, 1):
        log.request(0, prompt=100, output=output)
    for step, (time, tokens) in enumerate([(10, (0, 0, 0, 1, 2, 3, 4)), (14, (1,))]):
        log.row("step_done", step, time * MS, -1, len(tokens))
        for request in tokens:
            log.row("token", request)
    for request, reason in enumerate(("length", "length", "length", "stop", "length")):
        log.end(request, 20, reason=reason)
    client = {"observed": "client", "simulated": False, "num_sms": 0, "kv_blocks": 0}
    run = log.run(**client, partitions=(), slo={"tpot": 5.0})
    assert came_at_once(run).tolist() == [True, False, True, False, False]
    assert met(run).tolist() == [False, True, False, True, True]
    assert met(log.run(**client, partitions=(), slo={"tbt": 5.0})).tolist() == met(run).tolist()
    assert met(log.run(**client, partitions=(), slo={"ttft": 50.0})).all()
    # From its tokens' times: the end of the stream has nothing to do with it.
    assert values("tpot", run) == [4]
    assert values("tbt", run) == [4]
    only = Log()
    only.request(0, prompt=100, output=3)
    only.row("step_done", 0, 10 * MS, -1, 3)
    for _ in range(3):
        only.row("token", 0)
    only.end(0, 20, reason="length")
    held = summarise(only.run(**client, partitions=())).metrics
    for tag in ("tbt", "tpot"):
        assert held[tag].mean is None
        assert "came in one delivery" in held[tag].reason
    # In the engine tokens have times of their own.
    assert not came_at_once(log.run()).any()


def test_price_and_power_are_of_all_gpus_over_the_whole_window() -> None:
    run = two_requests().run(gpus=2, price_per_hour=3.6, watts=500.0)
    # Two GPUs for 30 ms and six tokens; 3.6 $/h are 0.1 cents a second.
    assert value("cost_per_mtok", run) == pytest.approx(1e6 * 2 * 0.001 * 0.030 / 6)
    assert value("joules_per_token", run) == pytest.approx(2 * 500 * 0.030 / 6)
    assert "--watts" in METRICS["joules_per_token"].reason(two_requests().run())


def test_gaps_are_those_that_the_device_measured() -> None:
    """Three on one partition, one on the other, none on a third: 9 ms in four."""
    gaps = {
        "prefill": HostGap(3, 5 * MS, 4 * MS), "decode": HostGap(1, 4 * MS, 4 * MS),
        "all": HostGap(0, 0, 0),
    }  # fmt: skip
    run = two_requests().run(host_gaps=gaps)
    assert value("host_gap", run) == pytest.approx(2250)
    assert value("host_gap_longest", run) == pytest.approx(4000)
    nothing = two_requests().run(host_gaps={"all": HostGap(0, 0, 0)})
    assert value("host_gap", nothing) is None
    assert "does not measure" in METRICS["host_gap"].reason(nothing)


def test_every_metric_is_tested_by_hand() -> None:
    tested = {
        case[0]
        for test in (test_distributions_by_hand, test_scalars_by_hand)
        for case in test.pytestmark[0].args[1]
    }
    assert tested == set(METRICS)


def partitioned() -> Log:
    """Prefill 0-10 on 60 SMs and 10-40 on 40; decode 4-12 on 40 and 30-50 on 60."""
    log = Log()
    log.request(0)
    log.row("repartitioned", 0, 1, log.log.code("start"))
    log.step(0, 0, 10, partition=0, sms=60, split=1)
    log.step(1, 4, 12, partition=1, sms=40, split=1)
    log.row("repartitioned", 10 * MS, 2, log.log.code("decode"))
    log.step(2, 10, 40, partition=0, sms=40, split=2)
    log.step(3, 30, 50, partition=1, sms=60, split=2, tokens=(0,))
    log.end(0, 60)
    return log


def test_partitions_by_hand() -> None:
    run = partitioned().run()
    assert value("sms_prefill", run) == pytest.approx((60 * 10 + 40 * 30) / 40)
    assert value("sms_decode", run) == pytest.approx((40 * 8 + 60 * 20) / 28)
    assert value("busy", run) == pytest.approx(100 * 50 / 60)
    # Together: 4-12 and 30-40.
    assert value("split_in_force", run) == pytest.approx(100 * 18 / 50)
    assert value("repartitions", run) == 1
    assert value("repartition_rate", run) == pytest.approx(60 / 0.060)
    assert split_shares(run) == pytest.approx({"60/40": 100 * 18 / 68, "40/60": 100 * 50 / 68})


def test_a_queued_launch_begins_when_the_one_before_ends() -> None:
    log = Log()
    log.request(0)
    log.step(0, 0, 10)
    log.step(1, 2, 14, predicted=4)
    log.step(2, 3, 30, partition=1, predicted=27)
    assert values("belief_error", log.run()) == [0, 0]


def test_a_launch_of_several_passes_counts_once() -> None:
    log = Log()
    log.request(0, output=3)
    log.step(0, 5, None, decodes=1, predicted=12)
    for end in (8, 11, 15):
        log.row("step_done", 0, end * MS, 3 * MS, 1)
        log.row("token", 0)
    run = log.run()
    assert values("tbt", run) == [3, 4]
    assert values("batch_size", run) == [1]
    assert values("belief_error", run) == [20]
    assert value("contention", run) == pytest.approx(10)


def test_warm_up_leaves_by_start_time() -> None:
    run = two_requests().run(warmup_ns=5 * MS)
    assert values("ttft", run) == [9]
    assert values("tbt", run) == [6, 10]
    # The steps at 10, 14 and 24 stay, the one that began at 2 goes; the window begins with r1.
    assert len(values("batch_size", run)) == 3
    assert value("makespan", run) == 0.025
    assert value("busy", run) == pytest.approx(80)
    assert value("offered", run) == 1
    assert value("kv_use_peak", run) == 15
    assert value("prefix_hit_rate", run) == 20


def test_misses_are_misses() -> None:
    log = two_requests()
    for outcome in ("rejected", "failed", "cancelled"):
        log.end(log.request(6), 20, outcome)
    log.request(7)  # never ends
    log.request(90, arrives=False)  # the run was killed before it came
    run = log.run(slo={"ttft": 1000.0})
    assert value("attainment", run) == pytest.approx(100 * 2 / 6)
    assert value("goodput", run) == pytest.approx(2 / 0.030)
    assert value("offered", run) == 6
    assert [value(tag, run) for tag in ("rejected", "failed", "cancelled", "unfinished")] == [1] * 4


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        ({"ttft": 9.0}, 1),  # 10 and 9
        ({"ttft": 8.999}, 0),
        ({"tpot": 7.0}, 1),  # 7 and 8
        ({"tbt": 9.93}, 0),  # p99 of (4, 10) is 9.94, of (10, 6) 9.96
        ({"tbt": 9.95}, 1),
        ({"tbt": 9.96}, 2),
        ({"e2e": 24.0}, 1),  # 24 and 25
        ({"ttft": 9.0, "tpot": 7.0}, 0),
        ({"itl": 10.0, "e2el": 25.0}, 2),
    ],
)
def test_slo_bounds(slo: dict[str, float], good: int) -> None:
    assert value("attainment", two_requests().run(slo=slo)) == pytest.approx(50 * good)


def test_a_single_token_keeps_any_bound_on_gaps() -> None:
    log = Log()
    log.request(0, output=1)
    log.step(0, 0, 4, tokens=(0,))
    log.end(0, 4)
    run = log.run(slo={"tbt": 0.001, "tpot": 0.001})
    assert value("attainment", run) == 100
    assert values("tpot", run) == []


def test_preempted_work() -> None:
    log = Log()
    first, second = log.request(0), log.request(0)
    for request, time, cached in ((first, 1, 10), (second, 2, 0)):
        log.admit(request, time, cached)
    log.row("preempted", second, 5 * MS, 0, 70)
    log.row("preempted", first, 6 * MS, 0, 50)
    log.admit(second, 7, cached=32)
    log.row("preempted", second, 8 * MS, 1, 90)  # swapped out: nothing to recompute
    log.admit(second, 9)
    log.row("preempted", second, 10 * MS, 0, 20)
    log.admit(second, 11, cached=48)  # more cached than was lost
    run = log.run()
    assert value("preemptions", run) == 4
    # The first request never came back, so nothing of it was computed again.
    assert value("recomputed_tokens", run) == 70 - 32
    assert value("prefix_hit_rate", run) == 100 * 10 / 200


def test_preemptions_in_the_warm_up_do_not_count() -> None:
    log = Log()
    early, late = log.request(0), log.request(9)
    for request in (early, late):
        log.admit(request, 10)
        log.row("preempted", request, 11 * MS, 0, 40 + request)
        log.admit(request, 12)
    run = log.run(warmup_ns=5 * MS)
    assert (value("preemptions", run), value("recomputed_tokens", run)) == (1, 41)


def test_a_launch_faster_than_its_solo_time_hides_no_contention() -> None:
    log = Log()
    log.request(0)
    log.step(0, 0, 10, solo=12)
    log.step(1, 10, 20, solo=5, tokens=(0,))
    assert value("contention", log.run()) == pytest.approx(25)


def test_only_finished_requests_have_tpot_and_e2e() -> None:
    log = two_requests()
    for request in (0, 1):
        log.log.tables["ended"].columns["outcome"][request] = OUTCOMES.index("cancelled")
    run = log.run()
    assert [values(tag, run) for tag in ("tpot", "e2e", "normalised_latency")] == [[], [], []]
    # What they did get stays: a run cut short must not lose its slowest requests.
    assert values("ttft", run) == [9, 10]
    assert values("tbt", run) == [4, 6, 10, 10]


def test_idle_time_does_not_count_as_kv_use() -> None:
    log = Log()
    log.request(0)
    log.step(0, 0, 10, kv=100)
    log.step(1, 1000, 1030, kv=20, tokens=(0,))
    assert value("kv_use_mean", log.run()) == pytest.approx(100 * (100 * 10 + 20 * 30) / 40 / 200)


def test_an_empty_run_has_no_values_and_no_crash() -> None:
    run = Log().run(slo={"ttft": 1.0})
    for metric in METRICS.values():
        if isinstance(metric, Distribution):
            assert len(metric.values(run)) == 0
        elif isinstance(metric, Scalar):
            assert metric.value(run) in (None, 0)
            assert metric.reason(run)


def test_a_launch_of_no_length_has_no_relative_error() -> None:
    log = two_requests()
    log.step(4, 30, 30, predicted=5)
    assert values("belief_error", log.run()) == values("belief_error", two_requests().run())


def test_prompts_of_one_length_have_no_longest_ones() -> None:
    log = Log()
    for _ in range(3):
        log.request(0, prompt=64)
    metric = METRICS["ttft_long_prompts"]
    assert metric.reason(log.run()) == "no prompt is longer than 95 % of them"
    log.request(0, prompt=65)
    assert metric.reason(log.run()) == "none of the longest prompts was answered"


def test_damaged_logs_are_refused() -> None:
    for request in (-1, 2):
        log = two_requests()
        log.step(4, 30, 31, tokens=(request,))
        with pytest.raises(InputError, match=f"'token', row 6: .* does not exist: {request} of 2"):
            log.run()
    log = two_requests()
    log.row("token", 0)
    with pytest.raises(InputError, match="'token' and 'step_done'"):
        log.run()
    log = two_requests()
    log.row("ended", 7, 0, 0, 0)
    with pytest.raises(InputError, match="'ended', row 2: names a request"):
        log.run()
    log = two_requests()
    log.row("step_done", 9, 0, 0, 0)
    with pytest.raises(InputError, match="never submitted"):
        _ = log.run().iterations
    log = two_requests()
    log.requests["request"] = [1, 0]
    with pytest.raises(InputError, match="numbered"):
        log.run()


@pytest.mark.parametrize(
    ("slo", "message"),
    [
        ({"tftt": 5.0}, "Did you mean 'ttft'"),
        ({"ttft": 0.0}, "above 0"),
        ({"ttft": float("nan")}, "above 0"),
        ({"itl": 5.0, "tbt": 5.0}, "twice"),
    ],
)
def test_bad_slos(slo: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_slo(slo)


def test_p99_of_gaps_is_numpys() -> None:
    rng = np.random.default_rng(7)
    log = Log()
    for _ in range(20):
        log.request(0)
    time = 0.0
    for step in range(600):
        time += float(rng.integers(1, 50))
        log.step(step, time - 1, time, tokens=tuple(np.flatnonzero(rng.random(19) < 0.4).tolist()))
    run = log.run()
    expected = [
        np.percentile(run.gaps[run.gap_request == i], 99) if run.num_gaps[i] else 0
        for i in range(20)
    ]
    assert request_p99_gaps(run) == pytest.approx(expected)


def test_stable_order_beyond_16_bits() -> None:
    keys = np.random.default_rng(1).integers(0, 300_000, 50_000).astype(np.int32)
    assert np.array_equal(stable_order(keys, 300_000), np.argsort(keys, kind="stable"))


def test_intervals() -> None:
    one = union(np.array([5, 0, 2, 9]), np.array([6, 3, 4, 9]))
    assert (one.starts.tolist(), one.ends.tolist(), one.length) == ([0, 5, 9], [4, 6, 9], 5)
    assert one.covered_until(np.array([-1, 2, 4, 5, 100])).tolist() == [0, 2, 4, 4, 5]
    two = union(np.array([3]), np.array([8]))
    three = union(np.array([0]), np.array([4]))
    assert time_with_several([one, two]) == 2
    assert time_with_several([one, two, three]) == 5
    assert time_with_several([one]) == 0


PLUGIN = '''
from nexusbench.metrics.base import Scalar

class _Machinery(Scalar):
    """Not a metric."""

class Mine(_Machinery):
    """Mine."""
    tag, unit, direction, title, formula = {declared}
    def value(self, run):
        return 1.0
'''


@pytest.fixture
def drop_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Adds one file to the folder of metrics, as seen by the import system."""

    def drop(declared: str) -> ModuleType:
        (tmp_path / "mine.py").write_text(PLUGIN.format(declared=declared))
        path = [*nexusbench.metrics.__path__, str(tmp_path)]
        monkeypatch.setattr(nexusbench.metrics, "__path__", path)
        return nexusbench.metrics

    yield drop
    sys.modules.pop("nexusbench.metrics.mine", None)


def test_a_metric_is_one_file(drop_in) -> None:
    drop_in("'mine', 's', 'lower', 'my own', '1'")
    assert set(load_metrics()) == {*METRICS, "mine"}


def test_a_clash_names_both_places(drop_in) -> None:
    drop_in("'ttft', 's', 'lower', 'my own', '1'")
    found = find_metrics()
    assert found.metrics.keys() == METRICS.keys()  # it disables itself, and no other
    assert type(found.metrics["ttft"]) is type(METRICS["ttft"])
    (fault,) = found.broken.values()
    assert re.search(r"'ttft'.*latency\.TimeToFirstToken.*mine\.Mine", fault)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("'mine', 's', 'down', 'my own', '1'", "direction"),
        ("'mine', 's', 'lower', 'my own', '1\\n2'", "'formula' as one line"),
        ("'mine', 's', 'lower', 'my \\x1b[2J', '1'", "'title' as one line"),
        ("'mine', 's', 'lower', '', '1'", "'title' as one line"),
    ],
)
def test_a_bad_declaration_is_refused(drop_in, declared: str, message: str) -> None:
    drop_in(declared)
    found = find_metrics()
    assert found.metrics.keys() == METRICS.keys()
    (fault,) = found.broken.values()
    assert re.search(message, fault)


def test_the_document_has_every_metric() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    rows = {
        cells[1].strip().strip("`"): cells
        for line in text.splitlines()
        if line.startswith("| `") and len(cells := line.replace("\\|", "\0").split("|")) == 6
    }
    assert {tag for tag, cells in rows.items() if cells[2].strip()} == set(METRICS)
    for tag, metric in METRICS.items():
        _, _, unit, direction, formula, _ = rows[tag]
        assert (unit.strip(), direction.strip()) == (metric.unit, metric.direction)
        assert f"`{metric.formula}`" in formula.replace("\0", "|"), tag
