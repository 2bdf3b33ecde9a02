"""Every output format read back, hostile names included."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusbench.core.errors import UsageError
from nexusbench.gates.check import Report, check
from nexusbench.gates.outputs import (
    as_action_benchmark,
    as_json,
    as_junit,
    as_markdown,
    plain,
    told_and_rest,
    write_outputs,
)
from nexusbench.gates.rules import Rule
from nexusbench.gates.series import RunSeries
from nexusbench.gates.verdicts import number
from tests.examples import examples
from tests.gates.made_up import exact, measured, samples, series

HOSTILE = 'a|b `c` <script>alert(1)</script> "q" \\ \x00\x1b[31m\n]]> [x](y) 😀 & @all'
SLOW = (12.0, 12.1, 12.2, 12.3, 12.4)


def report_of_all() -> Report:
    """A report with every verdict in it."""
    old: dict[str, RunSeries] = {
        "fail": exact(10), "warn": exact(10), "pass": exact(10), "better": exact(10),
        "env": exact(10), HOSTILE: exact(10), "vanished": exact(10), "noisy": measured(1.0, 2.0),
        "up": exact(10, better="higher"),
    }  # fmt: skip
    new: dict[str, RunSeries] = {
        "fail": exact(12), "warn": exact(10.1), "pass": exact(10), "better": exact(8),
        "env": exact(10, model="other"), HOSTILE: exact(12), "vanished": series({}),
        "new": exact(1), "noisy": measured(*SLOW), "up": exact(9.9, better="higher"),
    }  # fmt: skip
    return check(old, new, [Rule("x", 0.05)], source="b<i>.json")


REPORT = report_of_all()


def test_the_report_has_every_verdict() -> None:
    assert {finding.verdict for finding in REPORT.findings} == {
        "fail", "warn", "pass", "incompatible-env", "missing", "inconclusive",
    }  # fmt: skip
    assert REPORT.exit_code == 3


def test_json() -> None:
    decoded = json.loads(json.dumps(as_json(REPORT), allow_nan=False))
    assert decoded["schema"] == 1
    assert decoded["verdict"] == "fail"
    assert len(decoded["findings"]) == len(REPORT.findings)
    assert decoded["findings"][0]["change"] == pytest.approx(0.2)


def test_junit() -> None:
    root = ET.fromstring(as_junit(REPORT))
    assert root.tag == "testsuites"
    cases = list(root.iter("testcase"))
    assert len(cases) == len(REPORT.findings)
    for suite in root.iter("testsuite"):
        kinds = [child.tag for case in suite for child in case]
        assert int(suite.get("tests", "")) == len(suite)
        assert int(suite.get("failures", "")) == kinds.count("failure")
        assert int(suite.get("errors", "")) == kinds.count("error")
        assert int(suite.get("skipped", "")) == kinds.count("skipped")
    kinds_of = {case.get("classname"): [child.tag for child in case] for case in cases}
    assert kinds_of["fail"] == ["failure"]
    assert kinds_of["env"] == kinds_of["new"] == ["error"]
    assert kinds_of["noisy"] == kinds_of["vanished"] == ["skipped"]
    assert kinds_of["warn"] == ["system-out"]


@settings(max_examples=examples(30))
@given(st.text(max_size=60))
def test_any_name_makes_valid_files(name: str) -> None:
    report = check({name: exact(1)}, {name: exact(2)}, [Rule("x", 0.05)], source=name)
    (case,) = ET.fromstring(as_junit(report)).iter("testcase")
    assert case.get("name") == "x"
    table = [line for line in as_markdown(report).splitlines() if line.startswith("|")]
    assert [line.count("|") for line in table] == [9, 9, 9]
    json.dumps(as_json(report)).encode()
    json.dumps(as_action_benchmark(report)).encode()


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)


def test_markdown() -> None:
    page = as_markdown(REPORT)
    parser = Tags()
    parser.feed(page)
    assert parser.seen == {"details", "summary"}, "what users named must stay text"
    assert "**simulated**" in page
    rows = [line for line in page.splitlines() if line.startswith("| ❌")]
    assert len(rows) == 2
    assert "+20.00 %" in rows[0]
    assert "\x1b" not in page
    assert "Unchanged" in page


def test_markdown_keeps_to_the_limit() -> None:
    page = as_markdown(REPORT, limit=900)
    assert len(page.encode()) <= 900
    assert "❌" in page.splitlines()[0]
    assert "Cut here" in page


def test_action_benchmark() -> None:
    found = as_action_benchmark(REPORT)
    assert set(found) == {"customSmallerIsBetter", "customBiggerIsBetter"}
    for entries in found.values():
        assert entries
        for entry in entries:
            assert set(entry) <= {"name", "unit", "value", "range", "extra"}
            assert isinstance(entry["name"], str)
            assert isinstance(entry["unit"], str)
            assert isinstance(entry["value"], float)
            assert all(isinstance(entry.get(key, ""), str) for key in ("range", "extra"))
    assert [entry["name"] for entry in found["customBiggerIsBetter"]] == ["up: x"]
    noisy = [e for e in found["customSmallerIsBetter"] if e["name"] == "noisy: x"]
    assert noisy[0]["range"] == "12 to 12.4"


def test_files(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    written = write_outputs(
        REPORT,
        markdown=tmp_path / "deep" / "gate.md",
        junit=tmp_path / "gate.xml",
        action_benchmark=tmp_path / "bench",
        environment={"GITHUB_STEP_SUMMARY": str(summary)},
    )
    assert all(path.is_file() for path in written)
    assert sorted(path.name for path in written) == [
        "customBiggerIsBetter.json", "customSmallerIsBetter.json", "gate.md", "gate.xml",
    ]  # fmt: skip
    assert json.loads((tmp_path / "bench" / "customBiggerIsBetter.json").read_text())
    assert summary.read_text() == "before\n" + as_markdown(REPORT)
    assert write_outputs(REPORT, environment={}) == []


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        write_outputs(REPORT, junit=tmp_path / "file" / "gate.xml", environment={})


def test_numbers() -> None:
    shown = [number(v) for v in (None, 0.0, 12.3456, 123456.7, 1e-7, 1e12, -0.5, 400.0, 154795.2)]
    assert shown == ["-", "0", "12.346", "123,457", "1e-07", "1e+12", "-0.5", "400", "154,795"]
    assert plain(HOSTILE).isprintable()


def test_a_whole_series_without_a_baseline_is_told_once() -> None:
    both = series({"x": samples([1], exact=True), "y": samples([1], exact=True)})
    report = check({}, {"s": both}, [Rule("x", 0.1), Rule("y", 0.1)])
    told, rest = told_and_rest(report.findings)
    assert [(f.metric, f.verdict) for f in told] == [("all 2 metrics", "missing")]
    assert rest == []
    assert len(report.findings) == 2


def test_an_empty_check_is_inconclusive() -> None:
    empty = check({}, {}, [])
    assert empty.exit_code == 4
    assert "nothing to judge" in as_markdown(empty)
    assert ET.fromstring(as_junit(empty)).tag == "testsuites"


def test_samples_without_a_value() -> None:
    report = check({"s": exact(1)}, {"s": series({"x": samples([None], exact=True)})},
                   [Rule("x", 0.1)])  # fmt: skip
    assert as_action_benchmark(report)["customSmallerIsBetter"] == []
