"""``nexusbench gate``: verdicts and exit codes of whole command lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from commandline import Outcome, write_trace

from nexusbench.core.config import RunConfig
from nexusbench.core.events import OUTCOMES
from nexusbench.core.request import Request
from nexusbench.engine.engine import Engine
from nexusbench.gates.measure import load_notes
from nexusbench.gates.series import Run, RunPoint
from nexusbench.gates.spec import load_spec
from nexusbench.results.reader import RunReader, list_runs

Call = Callable[..., Outcome]
RULES = ("--rule", "ttft.mean:5%:0.1ms", "--rule", "output_throughput:3%")
SPEC = """
baseline = "base.json"
rules = ["ttft.mean:5%", "finished:0%"]

[defaults]
device = "sim:l20"

[[runs]]
trace = "small.jsonl"
scheduler = ["vllm", "nexus"]
limit = 30
"""


@pytest.fixture(autouse=True)
def _no_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


@pytest.fixture
def kept(runs_of: Callable[..., list[str]]) -> str:
    """A run of vllm."""
    return runs_of("--scheduler", "vllm")[0]


@pytest.fixture
def baseline(call: Call, kept: str) -> Path:
    assert call("gate", "baseline", "save", kept, "-o", "base.json").code == 0
    return Path("base.json")


def edit(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_text())
    change(next(iter(document["series"].values())))
    path.write_text(json.dumps(document))


def test_the_same_run_passes(call: Call, kept: str, baseline: Path) -> None:
    done = call("gate", "check", kept, "--baseline", baseline, *RULES)
    assert done.code == 0, done.err
    assert "gate: pass (2 pass)" in done.out
    assert "SIMULATED" in done.out
    assert done.err == ""


def turn_away_half(monkeypatch: pytest.MonkeyPatch, outcome: str) -> None:
    """Every second request ends when it arrives: an engine that is fast for the others."""
    offer = Engine.offer

    def picky(self: Engine, request: Request) -> None:
        if request.index % 2:
            request.arrival_rank = self.num_arrived - 1
            self.log.tables["arrived"].row(
                request.index, request.arrival_ns, request.num_prompt_tokens, request.max_tokens
            )
            self.executor.end(request, OUTCOMES.index(outcome), "queue full")
        else:
            offer(self, request)

    monkeypatch.setattr(Engine, "offer", picky)


@pytest.mark.parametrize("outcome", ["rejected", "failed", "cancelled"])
@pytest.mark.slow
def test_a_run_that_turned_requests_away_is_no_pass(
    call: Call, trace: Path, baseline: Path, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    turn_away_half(monkeypatch, outcome)
    assert call("serve-trace", trace, "--scheduler", "vllm", "--results", "new").code == 0
    new = f"new/{list_runs(Path('new'))[0]}"
    check = ("gate", "check", new, "--baseline", baseline, "--rule", "ttft.p99:5%:2ms")
    done = call(*check)
    assert done.code == 3, done.out
    text = " ".join(done.out.split())
    assert "20 of 40 requests finished, in the baseline 40 of 40" in text
    assert "gate: fail (1 fail, 1 inconclusive)" in text
    assert call(*check, "--rule", "finished:50%").code == 0
    # Side by side it is no winner, by no metric that turning away could improve.
    compared = json.loads(call("compare", list_runs(Path("results"))[0], new, "--results",
                               "results", "--json").out)  # fmt: skip
    assert compared["turned_away"] == ["vllm #2"]
    assert all("TTFT" not in claim["words"] for claim in compared["claims"])


def test_a_gate_of_an_overloaded_run_says_so_first(call: Call, trace: Path) -> None:
    fast = ("serve-trace", trace, "--scheduler", "vllm", "--rate", "2000", "--kv-blocks", "60")
    assert call(*fast).code == 0
    run = list_runs(Path("results"))[0]
    saved = call("gate", "baseline", "save", run, "-o", "base.json")
    assert "WARNING: small, llama-3.1-8b, sim:l20, vllm, kv_blocks=60" in saved.out
    assert "requests arrive faster than they leave" in " ".join(saved.out.split())
    found = json.loads(call("gate", "check", run, "--baseline", "base.json", "--json").out)
    assert "requests arrive faster than they leave (offered" in found["notes"][0]


def test_many_overloaded_series_are_one_note() -> None:
    values = {"overload": 1.0, "offered_rate": 9.0, "finished_rate": 4.0, "offered": 90.0}
    points = [
        RunPoint(f"series {n}", {}, {}, {}, True, Run(0), values if n else {"overload": 0.0})
        for n in range(6)
    ]
    (note,) = load_notes(points)
    assert note.startswith("requests arrive faster than they leave in 5 of 6 series")
    assert "series 1 (offered 9 req/s, finished 4)" in note
    assert note.endswith("; and 2 more")
    assert load_notes(points[:1]) == []


def test_an_injected_regression_fails(call: Call, kept: str, baseline: Path) -> None:
    def faster_before(series: Any) -> None:
        values = series["metrics"]["ttft.mean"]["values"]
        series["metrics"]["ttft.mean"]["values"] = [value / 1.2 for value in values]

    edit(baseline, faster_before)
    done = call("gate", "check", kept, "--baseline", baseline, *RULES)
    assert done.code == 3
    assert "worse by 20.0 %" in done.out
    assert f"nexusbench gate baseline save {kept} -o base.json --update" in " ".join(
        done.out.split()
    )
    assert "exit code 3" in done.err
    document = json.loads(call("gate", "check", kept, "--baseline", baseline, "--json").out)
    assert document["exit_code"] == 3
    assert document["findings"][0]["verdict"] == "fail"


def test_no_and_broken_baselines(call: Call, kept: str, baseline: Path) -> None:
    done = call("gate", "check", kept, "--baseline", "none.json")
    assert done.code == 5
    assert "none.json: there is no such baseline" in done.err
    assert call("gate", "check", kept).code == 5
    baseline.write_text(baseline.read_text()[:200])
    done = call("gate", "check", kept, "--baseline", baseline)
    assert done.code == 5
    assert done.err.startswith("error: base.json: not a baseline")
    baseline.write_text('{"kind": "nexusbench gate baseline", "schema": 2}')
    done = call("gate", "check", kept, "--baseline", baseline)
    assert done.code == 5
    assert "field 'schema': made by a newer nexusbench" in done.err
    done = call("gate", "check", kept, "--baseline", baseline, "--json", "--junit", "gate.xml")
    document = json.loads(done.out)
    assert (document["verdict"], document["exit_code"], done.code) == ("missing", 5, 5)
    (error,) = ET.parse("gate.xml").iter("error")
    assert "newer nexusbench" in error.attrib["message"]


@pytest.mark.slow
def test_a_foreign_gpus_baseline(call: Call, trace: Path, baseline: Path) -> None:
    done = call("serve-trace", trace, "--scheduler", "vllm", "--device", "sim:h200",
                "--results", "other")  # fmt: skip
    assert done.code == 0
    run = Path("other") / list_runs(Path("other"))[0]
    done = call("gate", "check", run, "--baseline", baseline)
    assert done.code == 5
    assert "incompatible-env" in done.out
    assert "device: sim:l20 -> sim:h200" in done.out


def test_missing_metrics(call: Call, kept: str, baseline: Path) -> None:
    done = call("gate", "check", kept, "--baseline", baseline, "--rule", "goodput:5%")
    assert done.code == 5
    assert "the baseline has no such metric" in done.out

    def with_goodput(series: Any) -> None:
        entry = {"unit": "req/s", "better": "higher", "exact": True, "values": [3.0]}
        series["metrics"]["goodput"] = entry

    edit(baseline, with_goodput)
    done = call("gate", "check", kept, "--baseline", baseline, "--rule", "goodput:5%")
    assert done.code == 4
    assert "the runs have no value for it" in done.out


@pytest.mark.slow
def test_measured_metrics_and_confirm(call: Call, kept: str, baseline: Path) -> None:
    """Decision times are real: one run is too few, and a rerun makes it again."""
    rule = ("--rule", "decision_us.p50:5%")
    done = call("gate", "check", kept, "--baseline", baseline, *rule)
    assert done.code == 4
    assert "1 against 1 runs" in done.out

    def five(series: Any) -> None:
        series["runs"] *= 5
        for samples in series["metrics"].values():
            samples["values"] *= 5
        # Faster than any machine is: the run must fail, and again when it is confirmed.
        series["metrics"]["decision_us.p50"]["values"] = [0.1, 0.11, 0.12, 0.13, 0.14]

    edit(baseline, five)
    done = call("gate", "check", *[kept] * 5, "--baseline", baseline, *rule, "--confirm",
                "--no-progress")  # fmt: skip
    assert done.code == 3, done.out
    assert "confirmed by a rerun" in done.out
    edit(baseline, lambda series: series["machine"].update(cpu="another CPU"))
    done = call("gate", "check", *[kept] * 5, "--baseline", baseline, *rule)
    assert done.code == 5
    assert "cpu: another CPU ->" in done.out


def test_confirm_needs_the_trace(call: Call, trace: Path, kept: str, baseline: Path) -> None:
    write_trace(trace, 41)

    def five(series: Any) -> None:
        series["runs"] *= 5
        for samples in series["metrics"].values():
            samples["values"] *= 5
        series["metrics"]["decision_us.p50"]["values"] = [0.1, 0.11, 0.12, 0.13, 0.14]

    edit(baseline, five)
    done = call("gate", "check", *[kept] * 5, "--baseline", baseline, "--rule",
                "decision_us.p50:5%", "--confirm")  # fmt: skip
    assert done.code == 2
    assert "is not the trace of the run any more" in done.err


def test_outputs(
    call: Call, kept: str, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    done = call("gate", "check", kept, "--baseline", baseline, "--markdown", "gate.md", "--junit",
                "gate.xml", "--action-benchmark", "bench", *RULES)  # fmt: skip
    assert done.code == 0
    assert Path("gate.md").read_text() == (tmp_path / "summary.md").read_text()
    assert len(list(ET.parse("gate.xml").iter("testcase"))) == 2
    bigger = json.loads(Path("bench/customBiggerIsBetter.json").read_text())
    assert [entry["unit"] for entry in bigger] == ["tok/s"]


@pytest.mark.slow
def test_spec(call: Call, trace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gates"
    folder.mkdir()
    write_trace(folder / "small.jsonl", 40)
    (folder / "s.toml").write_text(SPEC)
    saved = call("gate", "baseline", "save", "--spec", folder / "s.toml", "--no-progress")
    assert saved.code == 0, saved.err
    assert "2 series, 2 runs" in saved.out
    assert not Path("results").exists(), "a gate keeps no runs unless told to"
    checked = call("gate", "check", "--spec", folder / "s.toml", "--keep", "runs", "--json")
    assert checked.code == 0
    document = json.loads(checked.out)
    assert [f["tier"] for f in document["findings"]] == ["exact"] * 4
    assert len(list_runs(Path("runs"))) == 2
    # One scheduler fewer: its baseline stays and is told; one more: its baseline is missing.
    (folder / "s.toml").write_text(SPEC.replace('"vllm", "nexus"', '"vllm"'))
    assert "in the baseline only, not run" in call("gate", "check", "--spec", folder / "s.toml").out
    (folder / "s.toml").write_text(SPEC.replace('"vllm", "nexus"', '"vllm", "sglang"'))
    done = call("gate", "check", "--spec", folder / "s.toml")
    assert done.code == 5
    assert f"save --spec {folder}/s.toml -o {folder}/base.json --update" in " ".join(
        done.out.split()
    )
    updated = call("gate", "baseline", "save", "--spec", folder / "s.toml", "--update")
    assert "new small, llama-3.1-8b, sim:l20, sglang" in updated.out
    assert "removed small, llama-3.1-8b, sim:l20, nexus" in updated.out


def test_files_of_a_spec_lie_beside_it(tmp_path: Path) -> None:
    def first(text: str) -> RunConfig:
        (tmp_path / "s.toml").write_text(text)
        return load_spec(tmp_path / "s.toml").configs[0]

    plain = first(SPEC)
    assert plain.trace == str(tmp_path / "small.jsonl")
    assert (plain.device, plain.model) == ("sim:l20", "llama-3.1-8b")
    own = first(SPEC.replace("sim:l20", "sim:own.toml").replace("limit = 30", 'model = "m/c.json"'))
    assert (own.device, own.model) == (f"sim:{tmp_path}/own.toml", str(tmp_path / "m" / "c.json"))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[[runs]]", "[[run]]", "field 'run': is no key of a gate spec. Did you mean 'runs'?"),
        ("limit = 30", "limits = 30", "field 'runs[0].limits': is no setting of a run"),
        ("limit = 30", "seed = 3", "Write seeds = [...]"),
        ("limit = 30", "limit = 0", "field 'runs[0].limit'"),
        ("limit = 30", 'limit = "x"', "field 'runs[0].limit'"),
        ('trace = "small.jsonl"', "", "field 'runs[0].trace': is missing"),
        ('["vllm", "nexus"]', "[]", "field 'runs[0].scheduler': is empty"),
        ('rules = ["ttft.mean:5%"', 'rules = ["ttft.mean:5"', "cannot be read"),
        ("[defaults]", "repeats = 0\n[defaults]", "field 'repeats'"),
        ("[defaults]", "= 3", "not valid TOML"),
    ],
)
def test_wrong_specs(call: Call, tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in SPEC
    (tmp_path / "s.toml").write_text(SPEC.replace(old, new))
    done = call("gate", "baseline", "save", "--spec", tmp_path / "s.toml")
    assert done.code == 2
    assert words in done.err


def test_a_spec_without_a_baseline_is_named(call: Call, tmp_path: Path) -> None:
    spec = tmp_path / "s.toml"
    spec.write_text("\n".join(line for line in SPEC.split("\n") if "baseline" not in line))
    done = call("gate", "check", "--spec", spec)
    assert done.code == 5
    assert f"error: {spec}: no baseline was named" in done.err


def test_usage(call: Call, kept: str, baseline: Path) -> None:
    assert call("gate").code == 2
    assert "give either RUN... or --spec" in call("gate", "check", "--baseline", baseline).err
    assert call("gate", "check", kept, "--spec", "s.toml").code == 2
    assert "where to?" in call("gate", "baseline", "save", kept).err
    assert "Add --update" in call("gate", "baseline", "save", kept, "-o", baseline).err
    assert call("gate", "check", kept, "--baseline", baseline, "--rule", "ttft").code == 2
    assert call("gate", "check", kept, "--baseline", baseline, "--alpha", "1").code == 2
    assert call("gate", "check", "nothing", "--baseline", baseline).code == 2


def test_unfinished_runs_are_no_evidence(call: Call, kept: str, baseline: Path) -> None:
    manifest = Path("results") / kept / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"interrupted"'))
    done = call("gate", "check", kept, "--baseline", baseline)
    assert done.code == 2
    assert "manifest.json: field 'status': the run is interrupted" in done.err


def test_update_keeps_what_was_not_run(call: Call, trace: Path, baseline: Path) -> None:
    done = call("serve-trace", trace, "--scheduler", "sglang", "--results", "more")
    assert done.code == 0
    run = Path("more") / list_runs(Path("more"))[0]
    done = call("gate", "baseline", "save", run, "-o", baseline, "--update", "--json")
    document = json.loads(done.out)
    assert document["changes"] == ["new      small, llama-3.1-8b, sim:l20, sglang"]
    assert len(document["baseline"]["series"]) == 2
    assert "unchanged" in call("gate", "baseline", "save", run, "-o", baseline, "--update").out


def test_runs_say_on_which_machine_they_were_made(kept: str) -> None:
    machine = RunReader(kept, Path("results")).manifest.resolved.machine
    assert {"cpu", "cores", "system", "python"} <= set(machine)


def test_append(call: Call, kept: str, baseline: Path) -> None:
    done = call("gate", "baseline", "save", kept, kept, "-o", baseline, "--append")
    assert done.code == 0, done.err
    assert "added 2 to 1 runs" in done.out
    assert "1 series, 3 runs" in done.out
    assert call("gate", "baseline", "save", kept, "-o", baseline, "--append", "--update").code == 2
