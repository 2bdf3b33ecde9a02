"""What is kept of a run that a signal or a full disk ends, and how often a real one is written."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nexusbench
from nexusbench import RunConfig
from nexusbench.core.errors import Interrupted, NexusbenchError, Terminated
from nexusbench.core.events import EventLog
from nexusbench.metrics.run_events import RunEvents
from nexusbench.results.reader import RunReader, list_runs
from nexusbench.results.store import RunWriter
from nexusbench.serving import recorder, runner
from nexusbench.serving.recorder import STOPPING, Saver, StopFlag, stop_flag
from tests.cli.commandline import write_trace
from tests.unit.manifests import manifest

REQUESTS: dict[str, list[Any]] = {
    "request": [0], "id": ["a"], "tenant": [""], "arrival": [0], "prompt_tokens": [10],
    "output_tokens": [500], "max_tokens": [512],
}  # fmt: skip


def steps(log: EventLog, first: int, count: int) -> None:
    for step in range(first, first + count):
        log.tables["submitted"].row(step, step * 10, 0, 8, 1, 0, 0, 0, -1, 3, 1, 0, 0)
        log.tables["step_done"].row(step, step * 10 + 5, 5, 1)
        log.tables["token"].row(0)


def new_writer(root: Path) -> RunWriter:
    return RunWriter(root, manifest(simulated=False), REQUESTS)


def read(writer: RunWriter) -> RunEvents:
    return RunEvents.from_reader(RunReader(writer.path))


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    trace = write_trace(tmp_path / "t.jsonl", 60, gap_ms=20, output=40)
    return RunConfig(trace=str(trace), device="sim:l20", model="qwen2.5-3b", scheduler="vllm")


@pytest.fixture(autouse=True)
def looks_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "CHECK_STEPS", 0)
    monkeypatch.setattr(recorder, "PROGRESS_NS", 0)


def after(count: int, act: Callable[[], object]) -> Callable[[Any], None]:
    """A progress callback that acts once, when so many steps have ended."""
    done = []

    def look(engine: Any) -> None:
        if engine.num_steps >= count and not done:
            done.append(act())

    return look


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.slow
def test_every_stopping_signal_keeps_a_readable_beginning(
    tmp_path: Path, config: RunConfig, number: int
) -> None:
    whole = nexusbench.run(config, results=tmp_path / "whole")
    handlers = {n: signal.getsignal(n) for n in STOPPING}
    with pytest.raises(Interrupted) as raised:
        nexusbench.run(config, results=tmp_path / "cut",
                       progress=after(50, lambda: signal.raise_signal(number)))  # fmt: skip
    assert raised.value.exit_code == 128 + number
    assert {n: signal.getsignal(n) for n in STOPPING} == handlers
    reader = RunReader(list_runs(tmp_path / "cut")[0], tmp_path / "cut")
    assert reader.status == "interrupted"
    assert (signal.Signals(number).name in reader.manifest.message) == (number != signal.SIGINT)
    reader.verify()
    kept = reader.table("token")["request"]
    assert 0 < len(kept) < whole.events.num_output_tokens.sum()
    assert whole.folder is not None
    asked = RunReader(whole.folder).table("token")["request"]
    assert kept.tolist() == asked[: len(kept)].tolist()


def test_a_second_signal_in_the_middle_of_a_step_keeps_whole_rows(
    tmp_path: Path, config: RunConfig
) -> None:
    """It strikes when a token is logged and its step is not: what is kept ends before both."""

    def strike(engine: Any) -> None:
        if engine.num_steps == 50:
            engine.log.tables["token"].row(0)
            engine.log.tables["admitted"].columns["request"].append(0)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        nexusbench.run(config, results=tmp_path / "cut", progress=strike)
    reader = RunReader(list_runs(tmp_path / "cut")[0], tmp_path / "cut")
    assert reader.status == "interrupted"
    assert RunEvents.from_reader(reader).num_output_tokens.sum() > 0
    assert reader.manifest.event_digest  # and it is that of the rows that are left


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_flag(lambda: None) as flag:
            signal.raise_signal(signal.SIGHUP)
            assert not flag.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_comes_too_late_is_not_lost() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with stop_flag(lambda: None):
            signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        with stop_flag(lambda: None):
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(Terminated):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_part_that_grows_is_written_again_and_read_at_any_moment(tmp_path: Path) -> None:
    writer, log = new_writer(tmp_path), EventLog()
    log.tables["arrived"].row(0, 0, 10, 512)
    for first in (0, 3, 7):
        steps(log, first, 4 if first else 3)
        writer.save(writer.snapshot(log, [[8]]))
        assert read(writer).num_output_tokens.tolist() == [first + (4 if first else 3)]
        assert len(log.tables["token"]) == first + (4 if first else 3)  # the log keeps them
    assert len(list((writer.path / "events").glob("token-*"))) == 1
    writer.flush(log, [[8]])
    assert len(log) == 0
    steps(log, 11, 2)
    writer.save(writer.snapshot(log, [[8]]))
    writer.save(writer.snapshot(log, [[8]]))
    assert read(writer).num_output_tokens.tolist() == [13]
    writer.flush(log, [[8]])
    writer.finish("complete", {}, event_digest=log.digest())
    RunReader(writer.path).verify()
    assert read(writer).num_output_tokens.tolist() == [13]


def test_a_kill_between_files_and_manifest_reads_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, log = new_writer(tmp_path), EventLog()
    log.tables["arrived"].row(0, 0, 10, 512)
    steps(log, 0, 3)
    writer.save(writer.snapshot(log, [[8]]))
    steps(log, 3, 5)

    def killed(manifest: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.save(writer.snapshot(log, [[8]]))
    assert read(writer).num_output_tokens.tolist() == [3]


def test_a_digest_is_only_told_of_rows_that_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, log = new_writer(tmp_path), EventLog()
    steps(log, 0, 3)
    writer.flush(log, [[8]])
    steps(log, 3, 3)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", no_room)
        with pytest.raises(NexusbenchError, match="No space left"):
            writer.flush(log, [[8]])
    writer.finish("failed", None, "disk", event_digest=log.digest())
    assert RunReader(writer.path).manifest.event_digest == ""
    assert read(writer).num_output_tokens.tolist() == [3]


def test_rows_that_a_signal_left_half_drained_are_not_stored_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, log = new_writer(tmp_path), EventLog()
    steps(log, 0, 3)

    def half() -> None:
        log.tables["token"].clear()
        raise KeyboardInterrupt

    monkeypatch.setattr(log, "drain", half)
    with pytest.raises(KeyboardInterrupt):
        writer.flush(log, [[8]])
    monkeypatch.undo()
    writer.flush(log, [[8]])
    writer.finish("interrupted", event_digest=log.digest())
    assert read(writer).num_output_tokens.tolist() == [3]


def no_room(self: Path, target: Path) -> Path:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def engine_of(log: EventLog) -> Any:
    return SimpleNamespace(log=log, splits=[SimpleNamespace(sms=(8,))])


def test_a_real_run_is_written_by_time_also_while_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "SAVE_S", 0.01)
    writer, log, woken = new_writer(tmp_path), EventLog(), threading.Event()
    saver = Saver(writer, woken.set)
    for first in range(5):
        steps(log, first, 1)
        woken.clear()
        assert woken.wait(30)  # a device that waits for an arrival is woken to look
        saver.look(engine_of(log))
        saver.rest()
        assert read(writer).num_output_tokens.tolist() == [first + 1]
    saver.stop()


def test_a_full_disk_found_by_the_thread_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on: its rows stay in the log, and are stored once there is room."""
    monkeypatch.setattr(recorder, "SAVE_S", 0.01)
    writer, log, woken = new_writer(tmp_path), EventLog(), threading.Event()
    steps(log, 0, 2)
    saver = Saver(writer, woken.set)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", no_room)
        assert woken.wait(30)
        saver.look(engine_of(log))
        saver.rest()
        assert saver.blocked
        saver.seal(engine_of(log))
        assert saver.blocked
        assert len(log.tables["submitted"]) == 2
    assert RunReader(writer.path).status == "killed or still running"
    woken.clear()
    assert woken.wait(30)
    saver.look(engine_of(log))
    saver.rest()
    saver.stop()
    assert not saver.blocked
    assert read(writer).num_output_tokens.tolist() == [2]


@pytest.mark.parametrize("flushes", [0, 3])
def test_what_could_not_be_stored_is_still_summarised(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, flushes: int
) -> None:
    """The disk is full from the flush after ``flushes`` on, with what came before stored."""
    whole = nexusbench.run(config)
    original, calls = RunWriter.flush, []

    def flush(self: RunWriter, log: EventLog, splits: Any = None) -> None:
        calls.append(len(log))
        if len(calls) > flushes:
            self._behind = True
            raise NexusbenchError("cannot write: No space left on device")
        original(self, log, splits)

    def flush_some(self: Any, engine: Any) -> None:
        if self._writer is not None and len(calls) < flushes and len(engine.log) > 150:
            self._writer.flush(engine.log, recorder.splits_of(engine))

    monkeypatch.setattr(RunWriter, "flush", flush)
    monkeypatch.setattr(runner.EngineRecorder, "after_step", flush_some)
    made = nexusbench.run(config, results=tmp_path / "results")
    assert len(calls) == flushes + 1
    assert "No space left" in made.fault
    assert made.event_digest == whole.event_digest
    assert made.summary == whole.summary
    assert made.folder is not None
    assert RunReader(made.folder).status == "failed"
    assert "FAULT" in repr(made)


def test_flags_say_by_what_they_were_set() -> None:
    flag = StopFlag()
    assert (flag.cause, flag.exit_code) == ("interrupted", 130)
    flag.number = signal.SIGTERM
    assert (flag.cause, flag.exit_code) == ("interrupted by SIGTERM", 143)


def test_a_notebook_shows_the_public_names_and_short_objects(config: RunConfig) -> None:
    assert set(nexusbench.__all__) <= set(dir(nexusbench))
    made = nexusbench.run(config)
    assert len(repr(made)) < 200
    assert made.event_digest[:12] in repr(made)
