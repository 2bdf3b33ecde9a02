"""Rules: what they say, which are refused and how."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.core.errors import UsageError
from nexusbench.gates.rules import DEFAULT_RULES, Rule, parse_rule, parse_rules, run_measures

MEASURES = run_measures()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("ttft.p99:5%:2ms", Rule("ttft.p99", 0.05, 2, "ms")),
        ("ttft.p99:5%", Rule("ttft.p99", 0.05)),
        ("output_throughput:2.5%:1e1tok/s", Rule("output_throughput", 0.025, 10, "tok/s")),
        (" finished:0% ", Rule("finished", 0.0)),
        ("preemptions:5%:2", Rule("preemptions", 0.05, 2)),
        ("tbt.p99:5%:500 us", Rule("tbt.p99", 0.05, 500, "us")),
        ("my: own metric:5%:1", Rule("my: own metric", 0.05, 1)),
    ],
)
def test_rules(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule
    assert parse_rule(rule.text) == rule


@pytest.mark.parametrize(
    "text",
    ["", "ttft", "ttft:5", ":5%", "ttft:%", "ttft:x%", "ttft:-1%", "ttft:nan%", "ttft:inf%",
     "ttft:5%:ms", "ttft:5%:-1ms", "ttft:5%:1e999ms", "ttft:5%2ms"],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"ttft\.p99:5%:2ms"):
        parse_rule(text)


@given(st.text(max_size=40))
def test_any_text_is_a_rule_or_a_usage_error(text: str) -> None:
    try:
        rule = parse_rule(text)
    except UsageError:
        return
    assert rule.relative >= 0
    assert rule.absolute >= 0


def test_units() -> None:
    assert parse_rule("ttft:5%:2s").floor("ms") == 2000
    assert parse_rule("ttft:5%:500us").floor("ms") == 0.5
    assert parse_rule("ttft:5%:3").floor("ms") == 3
    assert parse_rule("x:5%:3tok/s").floor("tok/s") == 3
    with pytest.raises(UsageError, match="'ttft' is in 'ms', not 'tok/s'"):
        parse_rule("ttft:5%:3tok/s").floor("ms")


def test_names() -> None:
    (rule,) = parse_rules(["ttft:5%"], MEASURES)
    assert rule.metric == "ttft.mean"
    assert [rule.metric for rule in parse_rules(DEFAULT_RULES, MEASURES)][-1] == "finished"
    with pytest.raises(UsageError, match=r"Did you mean 'ttft\.p99'"):
        parse_rules(["tft.p99:5%"], MEASURES)
    with pytest.raises(UsageError, match="no metric 'busy' that has a better side"):
        parse_rules(["busy:5%"], MEASURES)
    with pytest.raises(UsageError, match=r"two rules for 'ttft\.mean'"):
        parse_rules(["ttft:5%", "ttft.mean:1%"], MEASURES)
    with pytest.raises(UsageError, match="is in 'ms'"):
        parse_rules(["ttft:5%:1req/s"], MEASURES)


def test_directions_come_from_the_metrics() -> None:
    assert MEASURES["ttft.p99"].better == "lower"
    assert MEASURES["output_throughput"].better == "higher"
    assert MEASURES["decision_us.p50"].repeatable is False
