"""Timelines: the format, and that they say what the run was."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from stored import folders
from trace_format import check, load_events

from nexusbench.core.errors import UsageError
from nexusbench.core.events import StoredEvents
from nexusbench.metrics.run_events import RunEvents
from nexusbench.report.timeline import timeline_file
from nexusbench.results.reader import RunReader


def write(
    path: Path, runs: list[str], window: tuple[float, float | None] = (0.0, None)
) -> list[dict[str, object]]:
    with timeline_file(path) as writer:
        for folder in runs:
            writer.add(RunEvents.from_reader(RunReader(folder)), Path(folder).name, window)
    return load_events(path)


@pytest.fixture(scope="module")
def nexus(results: Path) -> str:
    return folders(results / "three")[0]


@pytest.mark.slow
def test_timeline_of_three_runs(results: Path, tmp_path: Path) -> None:
    events = write(tmp_path / "t.json", folders(results / "three"))
    check(events)
    assert {event["pid"] for event in events} == {1, 2, 3}
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert all("(simulated)" in name for name in names)


def test_timeline_says_what_the_log_says(nexus: str, tmp_path: Path) -> None:
    events = write(tmp_path / "t.json", [nexus])
    run = RunEvents.from_reader(RunReader(nexus))
    slices = [e for e in events if e["ph"] == "X" and e["cat"] != "arrival"]
    assert len(slices) == len(run.all_launches.row)
    start, end = run.all_launches.start, run.all_launches.end
    total = sum(event["dur"] for event in slices) * 1000
    assert total == pytest.approx(int((end - start).sum()))
    tokens = sum(event["args"]["prefill tokens"] for event in slices)
    assert tokens == run.tables["submitted"]["prefill_tokens"].sum()
    assert {event["args"]["SMs"] for event in slices} == set(
        np.unique(run.tables["submitted"]["sms"]).tolist()
    )
    assert any("predicted ms" in event["args"] for event in slices)
    spans = [e for e in events if e["ph"] == "b" and e["name"].startswith("request ")]
    assert len(spans) == run.num_requests
    ttft = {e["id"]: e["args"]["TTFT ms"] for e in spans}
    assert ttft["1.5"] == pytest.approx((run.first_token - run.arrival)[5] / 1e6)
    firsts = {e["id"]: e["ts"] for e in events if e["ph"] == "n"}
    assert firsts["1.5"] == run.first_token[5] / 1000
    splits = [event for event in events if event["ph"] == "i"]
    assert len(splits) == len(run.tables["repartitioned"]["time"])
    assert splits[0]["name"].startswith("split ")
    waiting = [e["args"]["waiting"] for e in events if e["ph"] == "C" and e["name"] == "requests"]
    assert max(waiting) > 0
    assert waiting[-1] == 0
    assert sum(event["ph"] == "s" for event in events) == run.num_requests


def test_window_cuts_and_stays_valid(nexus: str, tmp_path: Path) -> None:
    whole = write(tmp_path / "all.json", [nexus])
    events = write(tmp_path / "cut.json", [nexus], (1.0, 3.0))
    check(events)
    assert 100 < len(events) < len(whole) / 2
    for event in events:
        if event["ph"] == "X":
            assert event["ts"] < 3e6
            assert event["ts"] + event["dur"] >= 1e6
        elif event["ph"] != "M":
            assert 1e6 <= event["ts"] <= 3e6, event
    counters = [event for event in events if event["ph"] == "C"]
    assert counters[0]["ts"] == 1e6


def test_window_after_the_end_is_refused(nexus: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--window: .* ends at"):
        write(tmp_path / "t.json", [nexus], (1e6, None))
    assert list(tmp_path.iterdir()) == []


def test_interrupted_run_and_hostile_names(hostile: list[str], tmp_path: Path) -> None:
    check(write(tmp_path / "t.json", hostile))


def test_log_that_ends_in_the_middle(nexus: str, tmp_path: Path) -> None:
    reader = RunReader(nexus)
    stored = reader.events()
    # Everything up to a moment, as a killed run leaves it.
    moment = 2_000_000_000
    tables = {name: dict(stored.tables[name]) for name in stored.tables}
    for name, columns in tables.items():
        if "time" in columns:
            keep = columns["time"] <= moment
            tables[name] = {column: values[keep] for column, values in columns.items()}
    rows = tables["chunk"]["step"] <= tables["submitted"]["step"].max()
    tables["chunk"] = {column: values[rows] for column, values in tables["chunk"].items()}
    done = int(tables["step_done"]["tokens"].sum())
    tables["token"] = {"request": tables["token"]["request"][:done]}
    stored = msgspec.structs.replace(stored, tables=tables)

    class Cut:
        def events(self) -> StoredEvents:
            return stored

    run = RunEvents.from_reader(Cut())
    with timeline_file(tmp_path / "t.json") as writer:
        writer.add(run, "killed", (0.0, None))
    events = load_events(tmp_path / "t.json")
    check(events)
    outcomes = {e["args"]["outcome"] for e in events if e["ph"] == "e" and "args" in e}
    assert outcomes == {"finished", "unfinished"}


def test_checker_finds_faults(nexus: str, tmp_path: Path) -> None:
    good = write(tmp_path / "t.json", [nexus], (0.0, 1.0))
    for change in (
        lambda e: e.update(ts=-1.0) if e["ph"] == "X" else None,
        lambda e: e.pop("dur", None),
        lambda e: e.update(ph="s") if e["ph"] == "f" else None,
        lambda e: e.update(name="other") if e["ph"] == "e" else None,
        lambda e: e.update(pid=9) if e["ph"] == "C" else None,
        lambda e: e.update(dur=1e9) if e["ph"] == "X" else None,
    ):
        bad = json.loads(json.dumps(good))
        for event in bad:
            change(event)
        with pytest.raises(AssertionError):
            check(bad)
