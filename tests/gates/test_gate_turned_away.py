"""A rule on a latency implies that as many requests finished, unless the rules say otherwise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nexusbench.core.config import RunConfig
from nexusbench.core.request import Request
from nexusbench.engine.engine import Engine
from nexusbench.gates.baseline import appended
from nexusbench.gates.check import Report, check
from nexusbench.gates.pytest_plugin import Gate, GateWarning
from nexusbench.gates.rules import parse_rules, run_measures
from nexusbench.gates.series import RunSeries, Samples
from nexusbench.serving.runner import run
from tests.gates.made_up import samples, series

RULE = "ttft.p99:5%:2ms"
MEASURES = run_measures()


def runs(
    finished: Sequence[float],
    *,
    offered: Sequence[float] | None = None,
    work: Sequence[float] | None = None,
    number: Sequence[float] | None = None,
    gaps: Sequence[float] | None = None,
    latency: Sequence[float] | None = None,
    exact: bool = True,
    without: Sequence[str] = (),
    **more: Any,
) -> RunSeries:
    """Runs of 60 requests: what finished of them, and a latency."""
    count = len(finished)
    up = {"better": "higher", "exact": exact}
    metrics: dict[str, Samples] = {
        "ttft.p99": samples(latency or [10.0] * count, exact=exact),
        "output_throughput": samples([100.0] * count, unit="tok/s", **up),
        "attainment": samples([50.0] * count, unit="%", **up),
        "finished": samples(list(finished), unit="requests", **up),
        "offered": samples(list(offered or [60.0] * count), unit="requests", **up),
        "finished_work": samples(list(work or [f / 0.6 for f in finished]), unit="%", **up),
        "ttft.n": samples(list(number or finished), unit="samples", **up),
        "tbt.n": samples(list(gaps or [9.0 * f for f in finished]), unit="samples", **up),
    }
    return series({name: s for name, s in metrics.items() if name not in without}, **more)


def judge(old: RunSeries, new: RunSeries, *rules: str, **more: Any) -> Report:
    return check({"s": old}, {"s": new}, parse_rules(rules or (RULE,), MEASURES), **more)


def by_metric(report: Report) -> dict[str, tuple[str, str]]:
    return {finding.metric: (finding.verdict, finding.reason) for finding in report.findings}


def test_as_many_is_no_news() -> None:
    report = judge(runs([60]), runs([60], latency=[9.0]))
    assert (report.verdict, report.exit_code) == ("pass", 0)
    assert list(by_metric(report)) == ["ttft.p99"]
    # More than before is no fault either.
    assert judge(runs([50]), runs([60])).exit_code == 0


@pytest.mark.parametrize(
    "rule", [RULE, "ttft.p99:1000%", "output_throughput:3%", "rejected:0%"], ids=str
)
def test_half_turned_away_is_no_pass(rule: str) -> None:
    """However wide the rule is; and a run that finishes less may have the higher rate, too."""
    old, new = runs([60]), runs([30], latency=[1.0])
    if rule.startswith("rejected"):
        for one, value in ((old, 0.0), (new, 30.0)):
            one.metrics["rejected"] = samples([value], unit="requests", exact=True)
        assert list(by_metric(judge(old, new, rule))) == ["rejected"]  # it counts them itself
        return
    report = judge(old, new, rule)
    assert (report.verdict, report.exit_code) == ("fail", 3)
    found = by_metric(report)
    assert found["finished"][0] == "fail"
    assert "30 of 60 requests finished, in the baseline 60 of 60" in found["finished"][1]
    verdict, reason = found[rule.partition(":")[0]]
    assert verdict == "inconclusive"
    assert "not of the same requests: 30 of 60" in reason
    assert not any(finding.improved for finding in report.findings)


@pytest.mark.parametrize(
    ("rule", "finished", "code"),
    [
        ("finished:0%", 59, 3), ("finished:5%", 58, 0), ("finished:5%", 50, 3),
        ("finished:0%:2", 58, 0), ("finished:0%:2", 57, 3), ("finished:100%", 1, 0),
        ("finished_work:5%", 58, 0), ("finished_work:5%", 50, 3), ("attainment:1%", 30, 0),
    ],
)  # fmt: skip
def test_a_rule_says_how_many_may_be_missing(rule: str, finished: int, code: int) -> None:
    report = judge(runs([60]), runs([finished], latency=[1.0]), RULE, rule)
    assert report.exit_code == code, report.findings
    verdict, reason = by_metric(report)["ttft.p99"]
    assert verdict == ("pass" if code == 0 else "inconclusive")
    assert f"{finished} of 60 requests finished" in reason
    assert ("as the rules allow" in reason) == (code == 0)


def test_seeds_are_compared_one_by_one() -> None:
    """As many on average, but not in the first: its percentile says nothing."""
    report = judge(runs([60, 30]), runs([30, 60]))
    assert report.exit_code == 3
    assert (
        "30 of 60 requests finished, in the baseline 60 of 60" in by_metric(report)["finished"][1]
    )


def test_fewer_offered_is_fewer_finished() -> None:
    """All that were offered finished, but these were fewer than the trace holds."""
    assert judge(runs([60]), runs([50], offered=[50], work=[100.0])).exit_code == 3


def test_long_requests_turned_away_for_short_ones_are_told() -> None:
    report = judge(runs([50], work=[90.0]), runs([50], work=[60.0]))
    assert report.exit_code == 3
    assert (
        "60 % of the tokens offered, in the baseline 90 %" in by_metric(report)["finished_work"][1]
    )


def test_a_percentile_of_fewer_samples_is_not_compared() -> None:
    """As many finished, with shorter answers or without a first token."""
    report = judge(runs([60]), runs([60], number=[40], latency=[1.0]))
    assert report.exit_code == 4
    verdict, reason = by_metric(report)["ttft.p99"]
    assert verdict == "inconclusive"
    assert "of 40 samples, the baseline's of 60" in reason
    # What a client sees in one delivery or in two is no difference.
    old, new = (runs([60], number=[n], exact=False) for n in (1000, 995))
    assert "samples" not in by_metric(judge(old, new))["ttft.p99"][1]


@pytest.mark.parametrize("rule", [RULE, "output_throughput:3%", "attainment:1%"])
def test_answers_that_were_cut_short_are_no_pass(rule: str) -> None:
    """As many finished, with one token each, or half of them."""
    for left in (1, 270):
        report = judge(runs([60]), runs([60], gaps=[left], latency=[1.0]), rule)
        assert report.exit_code == 4
        ((verdict, reason),) = by_metric(report).values()
        assert verdict == "inconclusive"
        assert f"answers are shorter, with {left} gaps between tokens where the baseline" in reason
    # A server's answers are never as long; longer ones are no fault.
    many = runs([60] * 5, exact=False)
    assert judge(many, runs([60] * 5, gaps=[520] * 5, exact=False), rule).exit_code == 0
    assert judge(many, runs([60] * 5, gaps=[420] * 5, exact=False), rule).exit_code == 4
    assert judge(runs([60]), runs([60], gaps=[600]), rule).exit_code == 0
    assert judge(runs([60], without=("tbt.n",)), runs([60]), rule).exit_code == 0


def test_that_only_some_seeds_were_run_is_told() -> None:
    assert (
        "only 1 of the baseline's 3 seeds"
        in by_metric(judge(runs([60] * 3), runs([60])))["ttft.p99"][1]
    )


def test_a_baseline_that_did_not_keep_the_counts() -> None:
    old = runs([60], without=("finished", "offered", "finished_work", "ttft.n"))
    assert judge(old, runs([60])).exit_code == 0  # no more can finish
    report = judge(old, runs([30]))
    assert (report.verdict, report.exit_code) == ("missing", 5)
    assert "the baseline does not say how many" in by_metric(report)["finished"][1]
    assert by_metric(report)["ttft.p99"][0] == "inconclusive"
    # One that kept what finished was offered the same trace.
    old = runs([60], without=("offered", "finished_work", "ttft.n"))
    assert judge(old, runs([30])).exit_code == 3


def test_measured_counts_fail_only_beyond_chance() -> None:
    """Of a server, say: ten of five runs' 300 requests more timed out, or one."""
    old = runs([60] * 5, exact=False)
    many = judge(old, runs([50] * 5, exact=False, latency=[1.0] * 5), RULE)
    assert many.exit_code == 3
    one = judge(old, runs([60, 60, 60, 60, 59], exact=False), RULE)
    assert one.exit_code == 4
    assert by_metric(one)["finished"][0] == by_metric(one)["ttft.p99"][0] == "inconclusive"
    # The counts are no further test: five against five runs still tell two latencies.
    assert sum(finding.p is not None for finding in many.findings) == 1
    allowed = judge(old, runs([60, 60, 60, 60, 59], exact=False), RULE, "finished:1%")
    assert allowed.exit_code == 0


def test_a_rerun_that_turned_requests_away_is_no_all_clear() -> None:
    slow, fast = [22.0, 22.1, 22.2, 22.3, 22.4], [10.0, 10.1, 10.2, 10.3, 10.4]
    old = runs([60] * 5, exact=False, latency=fast)
    new = runs([60] * 5, exact=False, latency=slow)
    fresh = runs([30] * 5, exact=False, latency=fast)
    report = judge(old, new, RULE, rerun=lambda names: {"s": fresh})
    assert report.exit_code == 3
    assert by_metric(report)["finished"][0] == "fail"
    fresh = runs([60] * 5, exact=False, latency=fast)
    assert judge(old, new, RULE, rerun=lambda names: {"s": fresh}).exit_code == 0


def test_a_fail_stays_a_fail() -> None:
    report = judge(runs([60]), runs([30], latency=[99.0]))
    verdict, reason = by_metric(report)["ttft.p99"]
    assert verdict == "fail"
    assert "30 of 60" in reason


def test_numbers_that_are_no_run_have_no_requests() -> None:
    old = series({"x": samples([10.0], exact=True)}, trace_sha256="")
    old = RunSeries(environment={}, machine={}, runs=old.runs, metrics=old.metrics)
    report = check({"s": old}, {"s": old}, parse_rules(["x:5%"], {"x": MEASURES["ttft.p99"]}))
    assert report.exit_code == 0


def test_runs_are_appended_to_a_baseline_that_did_not_keep_the_counts() -> None:
    old = runs([60], exact=False, without=("offered", "finished_work", "ttft.n"))
    joined, _ = appended({"s": old}, {"s": runs([60], exact=False)})
    assert len(joined["s"].runs) == 2
    assert joined["s"].metrics.keys() == old.metrics.keys()


def test_the_fixture_of_pytest_fails_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "t.jsonl"
    rows = ({"timestamp": 9 * i, "input_length": 500, "output_length": 4} for i in range(12))
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig(trace=str(trace), device="sim:l20", scheduler="vllm")

    def gate(*rules: str, saving: bool = False) -> Report:
        return Gate(tmp_path, "t", saving=saving).check(run(config), rules, baseline="b.json")

    with pytest.raises(pytest.skip.Exception):
        gate(RULE, saving=True)
    assert gate(RULE).verdict == "pass"
    offer = Engine.offer

    def picky(self: Engine, request: Request) -> None:
        offer(self, request)
        if request.index % 2:
            self.executor.cancel(request, "called off")

    monkeypatch.setattr(Engine, "offer", picky)
    with pytest.raises(pytest.fail.Exception, match="6 of 12 requests finished, in the baseline"):
        gate(RULE)
    with pytest.warns(GateWarning, match="within the rule"):
        gate(RULE, "finished:50%")
