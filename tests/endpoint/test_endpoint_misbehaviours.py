"""Whatever a server does, each request ends in time and for its reason, and nothing else does."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nexusbench
from nexusbench.cli.main import main
from nexusbench.core.errors import NexusbenchError
from nexusbench.core.events import OUTCOMES
from nexusbench.metrics.run_events import RunEvents
from nexusbench.results import store
from nexusbench.results.reader import RunReader
from nexusbench.serving.runner import RunResult
from tests.endpoint.misbehaviours import (
    ANSWERS,
    PROBED_ALL_THE_SAME,
    PROBES,
    TELLING,
    TIMEOUT_S,
    TRACE,
    Misbehaviour,
    serving,
)
from tests.examples import slow

# One of each kind; the others take the same paths.
FAST = {
    "probes endless_event", "probes endless_header", "probes dripping_comments",
    "probes garbage_utf8", "probes error_flat", "probes bomb", "list lists_deep", "list flat_500",
}  # fmt: skip
KEY = "sk-very/secret+key-42"
Replay = Callable[..., RunResult]


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.fixture
def replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replay:
    monkeypatch.setattr("nexusbench.endpoint.replay.LEAD_NS", 80_000_000)
    monkeypatch.setattr("nexusbench.endpoint.probing._PAUSE_S", 0.01)
    monkeypatch.setenv("MY_KEY", KEY)

    def run(url: str, trace: str = TRACE, **options: Any) -> RunResult:
        path = tmp_path / "trace.jsonl"
        path.write_text(trace)
        options = {"timeout_s": TIMEOUT_S, "api_key_env": "MY_KEY", **options}
        config = nexusbench.EndpointConfig(trace=str(path), endpoint=url, **options)
        return nexusbench.run(config, results=tmp_path / "results")

    return run


def ends(result: RunResult) -> list[str]:
    ended, strings = result.events.tables["ended"], result.events.facts.strings
    rows = zip(ended["request"], ended["outcome"], ended["reason"], strict=True)
    return [f"{OUTCOMES[outcome]}: {strings[reason]}" for _, outcome, reason in sorted(rows)]


def together(cases: list[Misbehaviour], base: str, replay: Replay) -> RunResult:
    """One replay of two requests for each case, all on one server that has all the ways."""
    names = ",".join(case.name for case in cases)
    everything = Misbehaviour("all", ("--behaviours", names, "--delay-ms", "1"), True, "")
    lines = [
        {"timestamp": 4 * number, "input_length": 30, "output_length": 5 + number}
        for number in range(2 * len(cases))
    ]
    return replay(everything.url(base), "".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("part", [0, *slow(1, 2, 3)])
@pytest.mark.slow
def test_each_request_ends_for_its_own_reason(base: str, replay: Replay, part: int) -> None:
    cases = ANSWERS[part::4]
    result = together(cases, base, replay)
    found = ends(result)
    assert len(found) == 2 * len(cases)
    for number, end in enumerate(found):
        case = cases[number % len(cases)]
        outcome, _, reason = end.partition(": ")
        assert outcome == ("finished" if case.finishes else "failed"), (case.name, end)
        assert case.explains(reason), (case.name, end)
        assert reason.isprintable()
        assert len(reason) <= 130
    metrics = result.summary.metrics
    assert metrics["failed"].value == 2 * sum(not case.finishes for case in cases)
    assert metrics["finished"].value == 2 * sum(case.finishes for case in cases)


def test_the_key_is_told_nowhere(base: str, replay: Replay, tmp_path: Path) -> None:
    result = together(TELLING, base, replay)
    for case, end in zip(TELLING, ends(result), strict=False):
        assert case.reason in end, (case.name, end)
        assert "***" in end or "xxxx" in end or case.name.endswith(("far", "body")), end
    files = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert len(files) > 5
    spelled = [KEY[start : start + 6] for start in range(len(KEY) - 5)]
    spelled += [KEY.encode().hex()[:12], KEY.upper()[:6], "&#115;&#107;", "\\u0073\\u006b"]
    for path in files:
        data = path.read_bytes()
        for part in spelled:
            assert part.encode() not in data, (path.name, part)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name in FAST else pytest.mark.slow)
        for case in PROBES
    ],
)
@pytest.mark.slow
def test_what_ends_before_it_begins(
    base: str, replay: Replay, tmp_path: Path, case: Misbehaviour
) -> None:
    began = time.monotonic()
    timeout = 0.3 if "no end" in case.reason else TIMEOUT_S
    with pytest.raises(NexusbenchError) as caught:
        replay(case.url(base), timeout_s=timeout)
    if "no end" in case.reason:
        case = case._replace(reason="no end within 0.3 s")
    assert case.explains(str(caught.value))
    assert str(caught.value).isprintable()
    assert time.monotonic() - began < 30  # a hang
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.parametrize("way", PROBED_ALL_THE_SAME)
def test_a_bad_answer_to_a_probe_is_no_end(base: str, replay: Replay, way: str) -> None:
    case = Misbehaviour(way, ("--probes", way, "--behaviours", way), False, "")
    result = replay(case.url(base))
    wanted = next(case for case in ANSWERS if case.name == way)
    outcome = "finished" if wanted.finishes else "failed"
    assert result.summary.metrics[outcome].value == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    ["lists_text_length", "lists_no_length", "lists_negative_length", "lists_endless_length"],
)
def test_a_context_length_that_is_none_is_left_out(base: str, replay: Replay, way: str) -> None:
    result = replay(Misbehaviour(way, ("--list", way), True, "").url(base))
    assert result.summary.metrics["finished"].value == 6
    assert result.resolved.limits.max_model_len is None
    assert any("is no number of tokens" in note for note in result.notes)


@pytest.mark.slow
def test_a_long_name_fits_into_a_folders(base: str, replay: Replay) -> None:
    result = replay(Misbehaviour("long", ("--list", "lists_long_name"), True, "").url(base))
    assert result.summary.metrics["finished"].value == 6
    assert len(str(result.folder.name)) < 200
    assert len(result.resolved.model.name) < 210


def test_prompts_that_are_counted_in_millions_are_not_believed(base: str, replay: Replay) -> None:
    ways = ("--takes", "text,usage,pin", "--per-word", "100000")
    result = replay(Misbehaviour("odd", ways, True, "").url(base))
    assert result.resolved.endpoint.measure == {"per_word": 1.0, "fixed": 0.0}
    assert any("which cannot be" in note for note in result.notes)


@pytest.mark.slow
def test_a_full_disk_ends_no_replay(
    base: str, replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexusbench.serving.endpoint.FLUSH_NS", 50_000_000)
    write, ended = store._write_all, [0]

    def fill_up(path: Path, data: bytes) -> None:
        folder = path.parent
        if ended[0] >= 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)
        if (folder / "manifest.json").exists():
            ended[0] = len(RunReader(folder).table("ended")["request"])

    monkeypatch.setattr(store, "_write_all", fill_up)
    lines = '{"timestamp": %d, "input_length": 9, "output_length": 5}\n'
    trace = "".join(lines % (20 * number) for number in range(200))
    result = replay(Misbehaviour("ok", (), True, "").url(base), trace)
    assert "No space left on device" in result.fault
    assert result.summary.metrics["finished"].value == 200
    assert result.folder is not None
    reader = RunReader(result.folder)
    assert 20 <= len(reader.table("ended")["request"]) < 200
    assert RunEvents.from_reader(reader).finished.sum() >= 20


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_nothing(
    base: str, replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexusbench.serving.endpoint.FLUSH_NS", 50_000_000)
    write, calls = store._write_all, []

    def fail_for_a_while(path: Path, data: bytes) -> None:
        calls.append(path)
        if 4 <= len(calls) <= 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(store, "_write_all", fail_for_a_while)
    lines = '{"timestamp": %d, "input_length": 9, "output_length": 5}\n'
    trace = "".join(lines % (20 * number) for number in range(60))
    result = replay(Misbehaviour("ok", (), True, "").url(base), trace)
    assert len(calls) > 8
    assert not result.fault
    assert result.folder is not None
    reader = RunReader(result.folder)
    assert reader.status == "complete"
    assert reader.manifest.event_digest == result.event_digest
    assert RunEvents.from_reader(reader).finished.sum() == 60


@pytest.mark.slow
def test_an_answer_without_an_end_is_given_up_long_before_its_time(
    base: str, replay: Replay
) -> None:
    way = Misbehaviour("endless", ("--behaviours", "endless_comments"), False, "")
    result = replay(way.url(base), timeout_s=120)
    assert ends(result) == ["failed: an answer without an end, longer than 2,179,072 bytes"] * 6


@pytest.mark.slow
@pytest.mark.parametrize("case", [*ANSWERS, *TELLING], ids=lambda case: case.name)
def test_each_alone_as_a_command(
    base: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    case: Misbehaviour,
) -> None:
    """As tests/benchmarks has it: six requests, all of which end, in time, for their reason."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    Path("trace.jsonl").write_text(TRACE)
    words = ["serve-trace", "trace.jsonl", "--endpoint", case.url(base), "--json", "--no-progress"]
    began = time.monotonic()
    code = main([*words, "--timeout", str(TIMEOUT_S)])
    assert time.monotonic() - began < 60  # a hang
    out, err = capfd.readouterr()
    assert code == (0 if case.finishes else 1), err
    run = json.loads(out)["runs"][0]
    outcome = "finished" if case.finishes else "failed"
    assert run["summary"]["metrics"][outcome]["value"] == 6
    if not case.finishes:
        assert sum(run["failures"].values()) == 6
        assert all(case.explains(reason) for reason in run["failures"])
    assert KEY[:8] not in out + err
