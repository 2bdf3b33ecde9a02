"""``report`` and ``timeline`` as commands, and ``serve-trace --timeline``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Outcome

Call = Callable[..., Outcome]


@pytest.fixture
def runs(call: Call, trace: Path) -> list[str]:
    outcome = call("serve-trace", trace, "--scheduler", "nexus,vllm", "--timeline", "t.json")
    assert outcome.code == 0, outcome.err
    assert "timeline  t.json" in outcome.out
    return sorted(str(path) for path in Path("results").iterdir())


@pytest.mark.slow
def test_serve_trace_writes_one_timeline_of_all_runs(runs: list[str]) -> None:
    document = json.loads(Path("t.json").read_text())
    assert [run["label"] for run in document["otherData"]["runs"]] == ["nexus", "vllm"]


def test_timeline_without_kept_runs(call: Call, trace: Path) -> None:
    outcome = call("serve-trace", trace, "--no-save", "--json", "--timeline", "t.json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["runs"]
    assert len(json.loads(Path("t.json").read_text())["traceEvents"]) > 100


@pytest.mark.slow
def test_report(call: Call, runs: list[str]) -> None:
    pytest.importorskip("plotly")
    outcome = call("report", *runs, "-o", "page.html")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("Simulated: ")
    assert "page  page.html (4." in outcome.out
    assert "nexus vs vllm on small" in Path("page.html").read_text()
    # By its id, judged by a bound, as JSON.
    outcome = call("report", Path(runs[0]).name, "--goodput", "ttft:500", "--json")
    document = json.loads(outcome.out)
    assert document["file"] == "report.html"
    assert document["simulated"] is True
    assert "SLO attainment" in document["verdict"][0]


@pytest.mark.slow
def test_timeline_of_stored_runs(call: Call, runs: list[str]) -> None:
    whole = call("timeline", *runs, "-o", "all.json")
    cut = call("timeline", runs[0], "-o", "cut.json", "--window", "1:2")
    assert (whole.code, cut.code) == (0, 0), whole.err + cut.err
    assert Path("cut.json").stat().st_size < Path("all.json").stat().st_size / 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("report", "nowhere"), "no such run"),
        (("report", "RUN", "-o", "no/such/page.html"), "there is no folder no/such"),
        (("report", "RUN", "-o", "results"), "it is a folder"),
        (("report", "RUN", "--goodput", "tft:5"), "--goodput"),
        (("report", "RUN", "--plots", "t.json"), "--plots: cannot write to t.json"),
        (("timeline", "RUN", "--window", "5"), "--window: "),
        (("timeline", "RUN", "--window", "1000000:"), "--window: nexus ends at"),
        (("timeline", "RUN", "-o", "no/such.json"), "there is no folder no"),
        (("serve-trace", "TRACE", "--timeline", "no/such.json"), "there is no folder no"),
    ],
)
def test_bad_input_is_one_line(
    call: Call, runs: list[str], trace: Path, arguments: tuple[str, ...], said: str
) -> None:
    pytest.importorskip("plotly")
    names = {"RUN": runs[0], "TRACE": trace}
    before = {path.name for path in Path().iterdir()}
    outcome = call(*(names.get(argument, argument) for argument in arguments))
    assert outcome.code == 2
    assert said in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert {path.name for path in Path().iterdir()} <= before | {"report.html"}


@pytest.mark.slow
def test_without_the_extra(call: Call, runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexusbench.report.page.find_spec", lambda name: None)
    outcome = call("report", *runs)
    assert outcome.code == 2
    assert 'pip install "nexusbench[report]"' in outcome.err
