"""Every verdict and exit code of a check, on made-up series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.gates.check import Report, check, match
from nexusbench.gates.rules import parse_rule
from nexusbench.gates.series import RunSeries
from tests.gates.made_up import exact, measured, samples, series

FAST, SLOW = (10.0, 10.1, 10.2, 10.3, 10.4), (12.0, 12.1, 12.2, 12.3, 12.4)


def judge(
    old: RunSeries | None, new: RunSeries, *rules: str, again: RunSeries | None = None, **more: Any
) -> Report:
    def rerun(names: Sequence[str]) -> Mapping[str, RunSeries]:
        assert names == ["s"]
        assert again is not None
        return {"s": again}

    return check(
        {} if old is None else {"s": old},
        {"s": new},
        [parse_rule(rule) for rule in rules or ("x:5%:0.1ms",)],
        rerun=rerun if again is not None else None,
        **more,
    )


@pytest.mark.parametrize(
    ("old", "new", "verdict", "code", "words"),
    [
        (exact(10), exact(10), "pass", 0, "unchanged"),
        (exact(10), exact(10.000001), "pass", 0, "unchanged"),
        (exact(10), exact(10.2), "warn", 0, "worse by 2.0 % (0.2 ms), within the rule"),
        (exact(10), exact(11), "fail", 3, "worse by 10.0 % (1 ms), beyond the rule"),
        (exact(10), exact(9), "pass", 0, "improved by 10.0 % (1 ms)"),
        (exact(10, better="higher"), exact(9, better="higher"), "fail", 3, "beyond the rule"),
        (exact(10, better="higher"), exact(11, better="higher"), "pass", 0, "improved"),
        # 5 % more, but less than the floor of 0.1 ms.
        (exact(1), exact(1.09), "warn", 0, "within the rule"),
        (exact(0), exact(0), "pass", 0, "unchanged"),
        (exact(0), exact(5), "fail", 3, "worse by 5 ms (from 0)"),
        (exact(0), exact(0.05), "warn", 0, "within the rule"),
        (exact(10, 20), exact(20, 10), "warn", 0, "changed in single runs"),
        (exact(10, 20), exact(10, seeds=[0]), "pass", 0, "unchanged"),
        (exact(10, seeds=[1]), exact(10, seeds=[2]), "missing", 4, "no run with a seed"),
        (exact(10), exact(10, 11, seeds=[0, 0]), "inconclusive", 4, "(invariant I6)"),
        (exact(10), exact(None), "missing", 4, "the runs have no value"),
        (exact(None), exact(10), "missing", 5, "the baseline has no such metric"),
        (None, exact(10), "missing", 5, "the baseline has no such series"),
        (exact(10), exact(10, trace_sha256="bb"), "incompatible-env", 5,
         "trace_sha256: aa -> bb"),
        (exact(10), exact(10, unit="s"), "incompatible-env", 5, "is in ms"),
        (exact(10), exact(10, better="higher"), "incompatible-env", 5, "higher is better"),
    ],
)  # fmt: skip
def test_exact(old: RunSeries | None, new: RunSeries, verdict: str, code: int, words: str) -> None:
    report = judge(old, new)
    (finding,) = report.findings
    assert (finding.verdict, report.verdict, report.exit_code) == (verdict, verdict, code)
    assert words in finding.reason
    assert finding.improved == ("improved" in finding.reason)


def test_exact_runs_of_any_machine_compare() -> None:
    assert judge(exact(10), exact(10, machine={"cpu": "another"})).verdict == "pass"


@pytest.mark.parametrize(
    ("old", "new", "verdict", "code", "words"),
    [
        (FAST, FAST, "pass", 0, "no change that runs do not have by chance"),
        (FAST, SLOW, "fail", 3, "beyond the rule (p = 0.004)"),
        (SLOW, FAST, "pass", 0, "improved by"),
        (FAST, tuple(v + 0.45 for v in FAST), "warn", 0, "within the rule (p = 0.004)"),
        ((10, 14, 9, 13, 10), (12, 16, 11, 15, 12), "inconclusive", 4, "differ as much by chance"),
        (FAST[:3], SLOW[:3], "inconclusive", 4, "cannot tell a change from chance"),
        (FAST[:3], FAST[:3], "inconclusive", 4, "cannot tell a change from chance"),
        ((10.0,), (20.0,), "inconclusive", 4, "1 against 1 runs"),
        (FAST, (None, 12.0, 12.1, 12.2, 12.3, 12.4), "fail", 3, "beyond"),
    ],
)
def test_measured(
    old: Sequence[float], new: Sequence[float], verdict: str, code: int, words: str
) -> None:
    report = judge(measured(*old), measured(*new))
    (finding,) = report.findings
    assert (finding.verdict, report.exit_code) == (verdict, code)
    assert words in finding.reason


def test_measured_needs_all_three_conditions() -> None:
    """Relative and absolute and statistical; each alone is not enough."""
    assert judge(measured(*FAST), measured(*SLOW), "x:5%:1ms").exit_code == 3
    assert judge(measured(*FAST), measured(*SLOW), "x:25%:1ms").verdict == "warn"
    assert judge(measured(*FAST), measured(*SLOW), "x:5%:5ms").verdict == "warn"
    noisy = (8.0, 12.0, 16.0, 10.0, 15.0)
    assert judge(measured(*FAST), measured(*noisy), "x:5%:1ms").verdict == "inconclusive"


def test_measured_runs_of_another_machine_do_not_compare() -> None:
    report = judge(measured(*FAST), measured(*SLOW, machine={"cpu": "b CPU", "cores": 2}))
    assert (report.verdict, report.exit_code) == ("incompatible-env", 5)
    assert report.findings[0].reason == "cpu: a CPU -> b CPU"


def test_confirmed() -> None:
    report = judge(measured(*FAST), measured(*SLOW), again=measured(*SLOW))
    assert (report.exit_code, report.findings[0].confirmed) == (3, True)
    assert report.alpha == 0.008
    assert report.findings[0].runs_current == 10
    assert "confirmed by a rerun" in report.findings[0].reason


def test_not_confirmed_is_a_warning() -> None:
    report = judge(measured(*FAST), measured(*SLOW), again=measured(*FAST))
    assert (report.verdict, report.exit_code, report.findings[0].confirmed) == ("warn", 0, False)
    assert "not confirmed" in report.findings[0].reason


def test_a_rerun_settles_what_chance_made() -> None:
    noisy = (8.0, 12.0, 16.0, 10.0, 15.0)
    report = judge(measured(*FAST), measured(*noisy), again=measured(*FAST))
    assert (report.verdict, report.exit_code) == ("pass", 0)
    still = judge(measured(*FAST), measured(*noisy), again=measured(*noisy))
    assert (still.verdict, still.exit_code) == ("inconclusive", 4)
    # One alarm of two is no regression, whichever came first.
    late = judge(measured(*FAST), measured(*noisy), again=measured(*SLOW))
    assert late.exit_code == 4


def test_a_rerun_without_the_metric_settles_nothing() -> None:
    report = judge(measured(*FAST), measured(*SLOW), again=series({}))
    assert (report.verdict, report.exit_code) == ("inconclusive", 4)
    assert "the runs have no value" in report.findings[0].reason


def test_a_rerun_doubles_the_runs() -> None:
    """Eight metrics are too many for five runs against five, not for five against ten."""
    names = [f"m{number}" for number in range(8)]
    old = series({name: samples(FAST) for name in names})
    new = series({name: samples(SLOW) for name in names})
    rules = [parse_rule(f"{name}:5%") for name in names]
    assert check({"s": old}, {"s": new}, rules).exit_code == 4
    report = check({"s": old}, {"s": new}, rules, rerun=lambda names: {"s": new})
    assert report.exit_code == 3
    assert all(f.p_adjusted == pytest.approx(8 / 3003) for f in report.findings)
    assert all(f.confirmed for f in report.findings)


def test_what_passes_is_not_run_again() -> None:
    def rerun(names: Sequence[str]) -> Mapping[str, RunSeries]:
        raise AssertionError(names)

    rules = [parse_rule("x:5%")]
    both = {"s": measured(*FAST)}
    assert check(both, both, rules, rerun=rerun).exit_code == 0
    # Nor is what is exact: it would give the same again.
    assert check({"s": exact(1)}, {"s": exact(2)}, rules, rerun=rerun).exit_code == 3


def test_holm_over_all_measured_metrics() -> None:
    """One p of 1/252 among eight metrics is 8/252 after Holm: beyond 0.03 with five runs, and the
    report says how many runs it takes.
    """
    names = [f"m{number}" for number in range(8)]
    old = series({name: samples(FAST) for name in names})
    new = series({name: samples(SLOW) for name in names})
    rules = [parse_rule(f"{name}:5%") for name in names]
    report = check({"s": old}, {"s": new}, rules, alpha=0.03)
    assert report.exit_code == 4
    assert any("need 6 runs on each side" in note for note in report.notes)
    seven = check({"s": old}, {"s": new}, rules[:7], alpha=0.03)
    assert seven.exit_code == 3
    assert all(finding.p_adjusted == pytest.approx(7 / 252) for finding in seven.findings)


def test_worst_verdict_and_exit_code() -> None:
    rules = [parse_rule(f"{name}:5%") for name in ("a", "b", "gone", "new")]
    old = series({"a": samples([1], exact=True), "b": samples([1], exact=True),
                  "gone": samples([1], exact=True)})  # fmt: skip
    new = series({"a": samples([2], exact=True), "b": samples([1], exact=True),
                  "new": samples([1], exact=True)})  # fmt: skip
    report = check({"s": old}, {"s": new}, rules)
    assert [finding.verdict for finding in report.findings] == [
        "fail",
        "pass",
        "missing",
        "missing",
    ]
    assert (report.verdict, report.exit_code) == ("fail", 3)
    assert check({"s": old}, {"s": new}, rules[1:]).exit_code == 5
    assert check({"s": old}, {"s": new}, rules[1:3]).exit_code == 4
    assert check({"s": old}, {"s": new}, rules[1:2]).exit_code == 0
    assert check({"s": old}, {}, rules).exit_code == 4


def test_a_foreign_gpus_baseline_is_named() -> None:
    report = check(
        {"t, m, sim:h200, vllm": exact(1, device="sim:h200", device_sha256="ee")},
        {"t, m, sim:l20, vllm": exact(1)},
        [parse_rule("x:5%")],
    )
    (finding,) = report.findings
    assert (finding.verdict, report.exit_code) == ("incompatible-env", 5)
    assert "device: sim:h200 -> sim:l20" in finding.reason


def test_another_schedulers_baseline_is_no_ones() -> None:
    found = match({"a": exact(1, scheduler="nexus")}, {"b": exact(1)})
    assert found == {"b": (None, [])}


def test_notes() -> None:
    old = {"s": exact(1, logs=["x"]), "stale": exact(1)}
    report = check(old, {"s": exact(1, logs=["y"])}, [parse_rule("x:5%")])
    assert report.exit_code == 0
    assert report.notes == [
        "in the baseline only, not run: stale",
        "another event log than the baseline's: s",
    ]


values = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=4)


@given(values, st.floats(0, 20), st.booleans())
def test_equal_runs_pass_whatever_the_rule(
    found: list[float], bound: float, is_exact: bool
) -> None:
    make = exact if is_exact else measured
    report = judge(make(*found), make(*found), f"x:{bound:.6f}%")
    assert report.verdict in (("pass",) if is_exact else ("pass", "inconclusive"))


@given(values, st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_exact_fails_beyond_the_rule_only(found: list[float], grow: float, bound: float) -> None:
    report = judge(exact(*found), exact(*(v * (1 + grow) for v in found)), f"x:{100 * bound:.9f}%")
    if abs(grow - bound) > 1e-5:
        assert report.verdict == ("fail" if grow > bound else "warn")
