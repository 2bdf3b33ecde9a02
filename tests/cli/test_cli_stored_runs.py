"""compare, rerun, explain: on complete, interrupted, killed and damaged runs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Outcome, finish, start, write_trace

from nexusbench.results.reader import RunReader, list_runs

Call = Callable[..., Outcome]
RESULTS = Path("results")


@pytest.fixture
def kept(runs_of: Callable[..., list[str]]) -> list[str]:
    """Ids of a run of nexus and one of vllm."""
    return runs_of("--scheduler", "nexus,vllm")


@pytest.mark.slow
def test_compare(call: Call, kept: list[str]) -> None:
    done = call("compare", *kept)
    assert done.code == 0
    assert "nexus" in done.out
    assert "vllm" in done.out
    assert "WARNING" not in done.out
    assert "complete" in done.out
    assert done.err == ""
    document = json.loads(call("compare", RESULTS / kept[0], kept[1], "--json").out)
    assert [run["run_id"] for run in document["runs"]] == kept
    assert document["warnings"] == []


def test_compare_recomputes_a_lost_summary(call: Call, kept: list[str]) -> None:
    before = json.loads(call("compare", kept[0], "--json").out)
    (RESULTS / kept[0] / "summary.json").unlink()
    after = json.loads(call("compare", kept[0], "--json").out)
    assert after["runs"][0]["summary"] == before["runs"][0]["summary"]


@pytest.mark.slow
def test_compare_recomputes_a_summary_that_is_not_ours(call: Call, kept: list[str]) -> None:
    before = json.loads(call("compare", kept[0], "--json").out)
    (RESULTS / kept[0] / "summary.json").write_text('{"a": 1}')
    after = json.loads(call("compare", kept[0], "--json").out)
    assert after["runs"][0]["summary"] == before["runs"][0]["summary"]


def test_compare_names_a_missing_events_file(call: Call, kept: list[str]) -> None:
    shutil.rmtree(RESULTS / kept[0] / "events")
    done = call("compare", *kept)
    assert done.code == 2
    assert done.out == ""
    assert f"{kept[0]}/events/" in done.err
    assert "missing, although the manifest lists it" in done.err


@pytest.mark.slow
def test_compare_under_another_slo(call: Call, kept: list[str]) -> None:
    done = json.loads(call("compare", *kept, "--goodput", "ttft:1", "tbt:1", "--json").out)
    for run in done["runs"]:
        assert run["summary"]["slo"] == {"ttft": 1, "tbt": 1}
        assert run["summary"]["metrics"]["attainment"]["value"] == 0


def test_compare_warns_of_different_conditions(call: Call, kept: list[str], tmp_path: Path) -> None:
    other = write_trace(tmp_path / "other.jsonl", 20)
    done = call(
        "serve-trace", other, "--device", "sim:h200", "--goodput", "ttft:100",
        "--model", "qwen2.5-3b", "--results", "more",
    )  # fmt: skip
    assert done.code == 0
    run = Path("more") / list_runs(Path("more"))[0]
    compared = call("compare", kept[0], run)
    for word in ("trace (sha256)", "device", "model", "SLO"):
        assert f"WARNING: the runs differ in {word}" in compared.out
    assert "sim:h200" in compared.out
    assert json.loads(call("compare", kept[0], run, "--json").out)["warnings"]


@pytest.mark.slow
def test_compare_of_one_scheduler_tells_runs_apart(call: Call, trace: Path) -> None:
    assert call("serve-trace", trace, "--seeds", 2).code == 0
    done = json.loads(call("compare", *list_runs(RESULTS), "--json").out)
    assert [run["label"] for run in done["runs"]] == ["nexus, seed 0", "nexus, seed 1"]


def test_rerun_is_identical(call: Call, kept: list[str]) -> None:
    done = call("rerun", kept[0])
    assert done.code == 0
    assert "identical event log" in done.out
    assert len(list_runs(RESULTS)) == 3
    document = json.loads(call("rerun", kept[1], "--json").out)
    assert document["verdict"] == "identical"
    assert document["original"]["event_digest"] == document["rerun"]["event_digest"]


@pytest.mark.slow
def test_rerun_stays_beside_the_original(call: Call, trace: Path) -> None:
    assert call("serve-trace", trace, "--results", "elsewhere").code == 0
    (run,) = list_runs(Path("elsewhere"))
    assert call("rerun", Path("elsewhere") / run).code == 0
    assert len(list_runs(Path("elsewhere"))) == 2
    assert not RESULTS.exists()
    assert call("rerun", Path("elsewhere") / run, "--results", RESULTS).code == 0
    assert len(list_runs(RESULTS)) == 1
    assert "4 the stored run is partial" in " ".join(call("rerun", "--help").out.split())


def test_rerun_of_a_damaged_run_is_not_called_identical(call: Call, kept: list[str]) -> None:
    part = next((RESULTS / kept[0] / "events").glob("token-*.parquet"))
    part.write_bytes(b"nonsense")
    done = call("rerun", kept[0])
    assert (done.code, done.out) == (2, "")
    assert part.name in done.err
    assert len(list_runs(RESULTS)) == 2  # nothing was run


def test_rerun_that_differs(call: Call, kept: list[str]) -> None:
    manifest = RESULTS / kept[0] / "manifest.json"
    content = json.loads(manifest.read_text())
    content["config"]["seed"] += 1
    manifest.write_text(json.dumps(content))
    done = call("rerun", kept[0])
    assert done.code == 1
    assert "the event log differs" in done.out
    assert "changed  seed: 0 -> 1" in done.out


def test_rerun_of_another_trace_is_refused(call: Call, kept: list[str], trace: Path) -> None:
    moved = trace.rename(trace.with_name("moved.jsonl"))
    missing = call("rerun", kept[0])
    assert missing.code == 2
    assert "--trace FILE" in missing.err
    assert call("rerun", kept[0], "--trace", moved).code == 0
    changed = write_trace(trace, 41)
    refused = call("rerun", kept[0], "--trace", changed)
    assert refused.code == 2
    assert "sha256" in refused.err


def test_explain(call: Call, kept: list[str]) -> None:
    listed = call("explain", kept[0])
    assert listed.code == 0
    assert "longest TTFT" in listed.out
    assert "SIMULATED" in listed.out
    slowest = json.loads(call("explain", kept[0], "--json", "--top", 3).out)["slowest"]
    assert len(slowest) == 3
    times = [request["ttft_ms"] for request in slowest]
    assert times == sorted(times, reverse=True)
    name = slowest[0]["id"]
    shown = call("explain", kept[0], "--request", name)
    assert shown.code == 0
    assert "compute" in shown.out
    assert "prompt" in shown.out
    assert all(len(line) <= 100 for line in shown.out.splitlines())
    found = json.loads(call("explain", kept[0], "--request", name, "--json").out)
    assert sum(found["parts"].values()) == found["total_ns"]
    assert found["neighbours"]["waiting_at_arrival"] >= 0
    unknown = call("explain", kept[0], "--request", "nobody")
    assert unknown.code == 2
    assert "no request 'nobody' among the 40 of this run, '0' to '39'" in unknown.err
    assert len(unknown.err) < 100
    assert "Did you mean" not in call("explain", kept[0], "--request", "9999").err


@pytest.mark.slow
def test_explain_folds_where_the_terminal_is_narrow(
    call: Call, kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = call("explain", kept[0], "--top", 2).out.splitlines()
    table = [line for line in lines if kept[0] not in line]
    assert max(map(len, table)) <= 60
    assert sum(line.startswith(" request ") for line in table) == 2
    assert any("preempted" in line for line in table)


def _started(
    tmp_path: Path, after: Callable[[Path], bool], scheduler: str = "vllm"
) -> tuple[subprocess.Popen[str], Path]:
    """A long run, once its folder satisfies ``after``."""
    trace = write_trace(tmp_path / "long.jsonl", 20_000, gap_ms=20, output=200)
    process = start("serve-trace", trace, "--scheduler", scheduler, cwd=tmp_path)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for manifest in (tmp_path / "results").glob("*/manifest.json"):
            if after(manifest.parent):
                return process, manifest.parent
        time.sleep(0.02)
    process.kill()
    raise AssertionError("the run never began")


@pytest.mark.slow
def test_interrupt_keeps_a_readable_run(call: Call, tmp_path: Path) -> None:
    # Once a part of the log is written, requests have finished, on a busy machine too.
    process, folder = _started(tmp_path, lambda run: any((run / "events").glob("token-*.parquet")))
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "interrupted" in errors[0]
    assert folder.name in errors[0]
    assert "Traceback" not in done.err
    assert RunReader(folder).status == "interrupted"
    assert len(list_runs(tmp_path / "results")) == 1
    compared = call("compare", folder)
    assert compared.code == 0
    assert "interrupted" in compared.out
    assert "unfinished" in compared.out
    assert call("explain", folder).code == 0
    again = json.loads(call("compare", folder, "--json").out)
    assert again["runs"][0]["summary"]["metrics"]["finished"]["value"] > 0


@pytest.mark.slow
def test_interrupt_shows_what_had_finished(call: Call, tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "long.jsonl", 20_000, gap_ms=20)
    process = start("serve-trace", trace, "--scheduler", "vllm,nexus:gamma=1,sglang", cwd=tmp_path)
    deadline = time.monotonic() + 30
    while len(list_runs(tmp_path / "results")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    assert "SIMULATED" in done.out
    assert "vllm" in done.out
    table, _, after = done.out.partition("\nkept ")
    assert "gamma" not in table
    assert "WARNING: interrupted: nexus:gamma=1 (2 of 3)\n" in after
    assert "WARNING: did not run: sglang (3 of 3)\n" in after
    # In the order of the runs, which is not that of their names if both began in one second.
    hint = next(line for line in after.splitlines() if "nexusbench compare" in line)
    assert "vllm" in hint.split()[3]
    folders = {f"results/{run}" for run in list_runs(tmp_path / "results")}
    assert set(hint.split()[3:]) == folders
    assert "nexus:gamma=1 (2 of 3): interrupted" in done.err


@pytest.mark.slow
def test_kill_leaves_what_was_kept(call: Call, tmp_path: Path) -> None:
    process, folder = _started(tmp_path, lambda _: True)
    process.kill()
    assert finish(process).code == -signal.SIGKILL
    assert RunReader(folder).status == "killed or still running"
    done = call("compare", folder)
    assert done.code == 0, done.err
    assert "killed or still running" in done.out
    assert call("explain", folder).code == 0


@pytest.mark.slow
def test_kill_after_a_flush(call: Call, tmp_path: Path) -> None:
    process, folder = _started(tmp_path, lambda run: any((run / "events").glob("token-*.parquet")))
    process.kill()
    finish(process)
    reader = RunReader(folder)
    done = json.loads(call("compare", folder, "--json").out)
    assert done["runs"][0]["status"] == reader.status == "killed or still running"
    if reader.manifest.parts:
        assert done["runs"][0]["summary"]["metrics"]["offered"]["value"] > 0


def test_rerun_of_a_partial_run_is_inconclusive(call: Call, kept: list[str]) -> None:
    manifest = RESULTS / kept[0] / "manifest.json"
    content = json.loads(manifest.read_text())
    content["status"] = "interrupted"
    manifest.write_text(json.dumps(content))
    done = call("rerun", kept[0])
    assert done.code == 4
    assert "nothing to compare with" in done.out


def test_damaged_events_are_named(call: Call, kept: list[str]) -> None:
    (RESULTS / kept[0] / "summary.json").unlink()
    part = next((RESULTS / kept[0] / "events").glob("token-*.parquet"))
    part.write_bytes(b"nonsense")
    done = call("compare", kept[0])
    assert done.code == 2
    assert part.name in done.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_a_call_as_ctrl_c_does(tmp_path: Path, number: int) -> None:
    process, folder = _started(tmp_path, lambda _: True, "vllm,sglang")
    time.sleep(0.5)
    process.send_signal(number)
    done = finish(process)
    assert done.code == 128 + number
    assert f"interrupted by {signal.Signals(number).name}" in done.err
    assert len(done.err.splitlines()) <= 3
    assert RunReader(folder).status == "interrupted"
    RunReader(folder).events()


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once_and_leaves_what_can_be_read(tmp_path: Path) -> None:
    process, folder = _started(tmp_path, lambda run: any((run / "events").glob("token-*.parquet")))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    assert "Traceback" not in done.err
    RunReader(folder).events()
