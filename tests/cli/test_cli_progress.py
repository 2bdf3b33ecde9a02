"""Rolling TTFT and TBT: right, and right again when the log is drained between two looks."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commandline import write_trace
from rich.console import Console

import nexusbench
from nexusbench.cli import _countdown, _live
from nexusbench.cli._console import ProgressLine
from nexusbench.cli._countdown import Countdown
from nexusbench.cli._grid import TextGrid
from nexusbench.cli._live import ProgressReader, ProgressSnapshot, RollingLatency
from nexusbench.core.events import EventLog

MS = 1_000_000


class Script:
    """An engine reduced to what the progress reads, with rows added by hand."""

    def __init__(self, arrivals: list[int]) -> None:
        self.log = EventLog()
        self.num_tokens = 0
        self.requests = [SimpleNamespace(num_output_tokens=0, arrival_ns=t * MS) for t in arrivals]
        self.rolling = RollingLatency(len(arrivals))

    def step(self, time_ms: int, *requests: int) -> None:
        self.log.tables["step_done"].row(0, time_ms * MS, -1, len(requests))
        for request in requests:
            self.log.tables["token"].row(request)
            self.requests[request].num_output_tokens += 1
        self.num_tokens += len(requests)

    def look(self) -> tuple[float | None, float | None]:
        engine: Any = self
        self.rolling.update(engine)
        return self.rolling.ttft_ms, self.rolling.tbt_ms


def test_first_tokens_and_gaps() -> None:
    script = Script([0, 10])
    assert script.look() == (None, None)
    script.step(30, 0)
    assert script.look() == (30, None)
    script.step(40, 0, 1)
    script.step(60, 1, 0)
    # TTFT 30 and 30; gaps 10 and 20 of request 0, 20 of request 1.
    assert script.look() == (30, pytest.approx(50 / 3))
    assert script.look() == (30, pytest.approx(50 / 3))


def test_a_seen_log_may_be_drained() -> None:
    script = Script([0, 10])
    script.step(30, 0)
    script.look()
    script.log.drain()
    script.step(70, 0, 1)
    assert script.look() == (45, 40)


def test_unseen_drained_rows_are_not_made_up() -> None:
    script = Script([0, 0, 0])
    script.step(10, 0)
    script.look()
    script.step(20, 0, 1)
    script.log.drain()
    script.step(50, 0, 1, 2)
    # Nobody knows that the gaps were 30, or that request 1 began at 20; request 2 began just now.
    assert script.look() == (30, None)
    script.step(55, 0, 1, 2)
    assert script.look() == (30, 5)


def test_only_the_latest_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_live, "RECENT_GAPS", 2)
    monkeypatch.setattr(_live, "RECENT_FIRST", 1)
    script = Script([0, 0])
    script.step(10, 0, 1)
    script.step(20, 0)
    script.step(21, 1)
    script.step(24, 0)
    assert script.look()[1] == pytest.approx((11 + 4) / 2)


def test_many_new_tokens_are_sampled_from_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    script, sampled = Script([0, 0]), Script([0, 0])
    for engine in (script, sampled):
        for time in range(1, 200):
            engine.step(time * time, 0, 1)
    whole = script.look()[1]
    monkeypatch.setattr(_live, "MOST_TOKENS", 10)
    part = sampled.look()[1]
    assert whole is not None
    assert part == pytest.approx(((199**2) - (194**2)) / 5)
    assert part > whole


@pytest.mark.parametrize("flush_rows", [150, 10**9])
@pytest.mark.slow
def test_on_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flush_rows: int) -> None:
    """All tokens seen give the means of the summary; drained ones never give a wrong gap."""
    monkeypatch.setattr("nexusbench.serving.runner.FLUSH_ROWS", flush_rows)
    monkeypatch.setattr("nexusbench.serving.runner.CHECK_STEPS", 3)
    monkeypatch.setattr("nexusbench.serving.recorder.PROGRESS_NS", 0)
    read, seen = ProgressReader(), list[ProgressSnapshot]()
    trace = write_trace(tmp_path / "t.jsonl", 60, gap_ms=30)
    result = nexusbench.run(
        nexusbench.RunConfig(trace=str(trace), device="sim:l20"),
        results=tmp_path / "results",
        progress=lambda engine: seen.append(read(engine)),
    )
    last, metrics = seen[-1], result.summary.metrics
    assert last.ended == last.offered == 60
    assert last.tokens == sum(5 + index % 7 for index in range(60))
    assert last.running == last.waiting == 0
    assert last.tbt_ms == pytest.approx(metrics["tbt"].mean)
    assert last.ttft_ms == pytest.approx(metrics["ttft"].mean)
    assert [s.now_ns for s in seen] == sorted(s.now_ns for s in seen)


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_a_line_of_progress_is_one_line(width: int) -> None:
    console = Console(width=width, file=StringIO(), force_terminal=True)
    text = "1,023 of ≤ 1,620 points, ≤ 3 min left prefill"
    console.print(ProgressLine("profile sim:h200 llama-3.1-8b", 1023, 1620, text))
    assert isinstance(console.file, StringIO)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())
    assert shown.count("\n") == 1
    assert len(shown.rstrip("\n")) <= width
    assert (text in shown) == (width >= 80)


def test_a_folded_table_leaves_no_orphan() -> None:
    console = Console(width=60, file=StringIO())
    grid = TextGrid("", ("", *(f"column {n}" for n in range(6))))
    grid.add("row", *("1,000 (100)" for _ in range(6)))
    grid.show(console)
    assert isinstance(console.file, StringIO)
    heads = [line for line in console.file.getvalue().splitlines() if "column" in line]
    assert [head.count("column") for head in heads] == [3, 3]


def test_a_countdown_promises_nothing_beyond_its_plan(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a race adds to its plan takes time, too: "0 s left" would be said again and again."""
    monkeypatch.setattr(_countdown, "_LOG_NS", 0)
    countdown = Countdown("advise", 2)
    for _ in range(3):
        countdown.step("nexus")
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("advise: 1 of 2, about ")
    assert first.endswith(" left  nexus")
    assert second == "advise: 2 of 2  nexus"
    assert third == "advise: 3 of 3  nexus"
