"""Replays against a real server of our own: what is sent, and what becomes of each request."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nexusbench
import nexusbench.serving.endpoint
from nexusbench.core.errors import Interrupted, NexusbenchError, UsageError
from nexusbench.core.events import OUTCOMES
from nexusbench.metrics.base import load_metrics
from nexusbench.metrics.run_events import RunEvents
from nexusbench.results.reader import RunReader
from nexusbench.serving.runner import RunResult
from tests.examples import sample

Send = Callable[..., RunResult]
Serve = Callable[..., Any]


def ends(result: RunResult) -> list[str]:
    """Outcome and reason of each request, in order."""
    ended, strings = result.events.tables["ended"], result.events.facts.strings
    found = {
        request: f"{OUTCOMES[outcome]}: {strings[reason]}"
        for request, outcome, reason in zip(
            ended["request"], ended["outcome"], ended["reason"], strict=True
        )
    }
    return [found.get(request, "no end") for request in range(result.events.num_requests)]


def values(result: RunResult) -> dict[str, Any]:
    return {tag: entry.get("value") for tag, entry in result.summary.metrics.items()}


@pytest.mark.slow
def test_every_way_to_fail_is_a_miss_with_its_reason(
    serve: Serve, send: Send, evenly: Callable[..., Any]
) -> None:
    expected = {
        "ok": "finished: length",
        "split": "finished: length",
        "crlf": "finished: length",
        "undone": "finished: length",
        "stall": "failed: no end within 2 s (--timeout)",
        "silent": "failed: no byte for 2 s (--timeout)",
        "reset": "failed: connection reset",
        "early": "failed: the stream ended early",
        "unfinished": "failed: the stream ended early",
        "garbage": "failed: garbage in the stream: '{\"choices\": [[\ufffd'",
        "nothttp": "failed: garbage: the answer is not HTTP",
        "event": "failed: error in the stream: out of memory",
        "nostream": "failed: answered without a stream of events",
        "busy": "failed: HTTP 429: too many requests",
        "broken": "failed: HTTP 500: the engine is dead",
    }
    served = serve("--behaviours", ",".join(expected))
    result = send(served, evenly(2 * len(expected)), timeout_s=2.0, goodput={"e2e": 60_000})
    found = ends(result)
    assert dict(zip(expected, found, strict=False)) == expected
    assert found[len(expected) :] == list(expected.values())
    numbers = values(result)
    assert (numbers["offered"], numbers["finished"], numbers["failed"]) == (30, 8, 22)
    assert numbers["attainment"] == pytest.approx(100 * 8 / 30)
    # What came before a failure is kept.
    tokens = dict(zip(expected, result.events.num_output_tokens.tolist(), strict=False))
    assert [tokens[name] for name in ("ok", "split", "crlf", "undone")] == [5, 6, 7, 8]
    assert tokens["stall"] == 2
    assert tokens["reset"] == tokens["early"] == 1
    assert tokens["silent"] == tokens["broken"] == 0


def test_what_a_client_cannot_know_has_no_value(
    serve: Serve, send: Send, evenly: Callable[..., Any]
) -> None:
    result = send(serve("--delay-ms", 1), evenly(5))
    assert result.summary.simulated is False
    metrics = result.summary.metrics
    hidden = {tag for tag, metric in load_metrics().items() if metric.needs_engine}
    assert {"busy", "preemptions", "kv_use_peak", "ttft_queueing", "repartitions"} <= hidden
    for tag in hidden:
        assert metrics[tag].get("value") is None
        assert metrics[tag].get("mean") is None
        assert metrics[tag].reason == "a client does not see the inside of the server"
    assert result.summary.split_shares == {}
    # The server says what it found in its cache: half.
    assert 40 < metrics["prefix_hit_rate"].value <= 50
    assert metrics["send_lag"].n == 5
    assert metrics["send_lag"].min >= 0
    assert metrics["ttft"].min >= metrics["send_lag"].min
    assert result.resolved.device.startswith("endpoint:127.0.0.1:")
    assert result.resolved.device.endswith("/made-up")


@pytest.mark.slow
def test_chunks_of_several_tokens(serve: Serve, send: Send, evenly: Callable[..., Any]) -> None:
    for takes in ("ids,pin,usage", "ids,pin,usage,chunks"):
        served = serve("--per-chunk", 3, "--delay-ms", 4, "--takes", takes)
        result = send(served, evenly(4))
        assert result.events.num_output_tokens.tolist() == [5, 6, 7, 8]
        # Two or three deliveries (fewer should some be read at once), not as many as tokens.
        assert 0 < result.summary.metrics["tbt"].n <= 6
        assert result.summary.metrics["tbt"].min > 0
        assert result.summary.metrics["tpot"].n == 4
        client = result.resolved.client
        assert client.several > 0
        words = "usage that came with each chunk" if "chunks" in takes else "spread"
        assert any(words in how for how in client.counting)


@pytest.mark.slow
def test_what_is_sent_is_what_the_trace_says(
    serve: Serve, send: Send, evenly: Callable[..., Any]
) -> None:
    served = serve()
    lines = evenly(6, prompt=30)
    for line in lines[3:]:
        line |= {"input_length": 40, "hash_ids": [1, 2, 3], "hash_block": 16}
    del lines[3]["hash_block"]
    lines[0]["hash_block"] = 16
    lines[0]["hash_ids"] = [7, 8]
    first, again = send(served, lines), send(served, lines, limit=6)
    assert first.resolved.client.prompts_exact == 6
    assert served.log[::2] == served.log[1::2]
    bodies = served.log[::2]
    assert [len(body["prompt"]) for body in bodies] == [30, 31, 32, 40, 40, 40]
    assert bodies[3]["prompt"] == bodies[4]["prompt"]
    assert bodies[1]["prompt"] != bodies[2]["prompt"][:31]
    assert [body["max_tokens"] for body in bodies] == [5, 6, 7, 8, 9, 10]
    assert all(body["max_tokens"] == body["min_tokens"] for body in bodies)
    assert all(body["ignore_eos"] is True and body["stream"] is True for body in bodies)
    assert ends(again) == ["finished: length"] * 6
    send(served, lines[:1], seed=1)
    assert len({str(body["prompt"]) for body in served.log[:3]}) == 2


@pytest.mark.parametrize(
    ("options", "config", "facts", "note"),
    sample([
        (["--takes", "text,usage,pin"], {}, ("completions", "text", True), "token ids are refused"),
        (["--takes", "ids"], {}, ("completions", "ids", False), "nothing is counted by it"),
        (["--takes", "text,chat,usage"], {"api": "chat"}, ("chat", "text", False), "answers may"),
        (["--takes", "ids,usage,pin", "--added", "1"], {}, ("completions", "ids", True), "adds 1"),
    ], 3),
)  # fmt: skip
@pytest.mark.slow
def test_the_words_that_a_server_takes(
    serve: Serve,
    send: Send,
    evenly: Callable[..., Any],
    options: list[str],
    config: dict[str, Any],
    facts: tuple[str, str, bool],
    note: str,
) -> None:
    result = send(serve(*options), evenly(3), **config)
    endpoint = result.resolved.endpoint
    assert (endpoint.api, endpoint.prompt, endpoint.pinned) == facts
    assert any(note in text for text in result.notes)
    assert ends(result) == ["finished: length"] * 3
    counted = "--added" not in options and "usage" in options[1]
    assert result.resolved.client.prompts_exact == (3 if counted else 0)


@pytest.mark.slow
def test_text_is_measured(serve: Serve, send: Send, evenly: Callable[..., Any]) -> None:
    """A chat template's own tokens are taken into account."""
    served = serve("--takes", "text,chat,usage,pin", "--added", "9")
    result = send(served, evenly(3, prompt=20), api="chat")
    assert result.resolved.endpoint.measure == {"per_word": 1.0, "fixed": 9.0}
    assert result.resolved.client.prompts_exact == 3
    words = [len(body["messages"][0]["content"].split()) for body in served.log]
    assert words == [11, 12, 13]


def test_short_answers_are_told(serve: Serve, send: Send, evenly: Callable[..., Any]) -> None:
    result = send(serve("--behaviours", "ok,short,empty_last"), evenly(6))
    assert result.resolved.client.short == 2
    assert result.events.num_output_tokens.tolist() == [5, 3, 7, 8, 4, 10]


def test_sessions_wait_for_their_turns(serve: Serve, send: Send) -> None:
    turn = {"input_length": 9, "output_length": 5}
    lines = [
        {"timestamp": 0, "session": "a", "turn": 0, **turn},
        {"timestamp": 1, "session": "b", "turn": 0, **turn, "output_length": 6},
        {"session": "a", "turn": 1, "think_time": 120, **turn},
        {"session": "b", "turn": 1, "think_time": 5, **turn},
        {"session": "b", "turn": 2, **turn},
    ]
    result = send(serve("--behaviours", "ok,broken"), lines)
    assert ends(result) == [
        "finished: length",
        "failed: HTTP 500: the engine is dead",
        "finished: length",
        *["cancelled: earlier turn did not finish"] * 2,
    ]
    arrival, ended = result.events.arrival, result.events.ended
    assert arrival[2] == ended[0] + 120_000_000
    assert list(arrival[3:]) == [ended[1]] * 2
    assert values(result)["offered"] == 5


def test_a_closed_loop_keeps_its_users_busy(
    serve: Serve, send: Send, evenly: Callable[..., Any]
) -> None:
    result = send(serve("--delay-ms", 1, "--behaviours", "ok,broken"), evenly(12), concurrency=3)
    arrival, ended = np.sort(result.events.arrival), np.sort(result.events.ended)
    assert list(arrival[:3]) == [0, 0, 0]
    # Everyone but the first three arrives at the end of another, whatever became of that.
    assert arrival[3:].tolist() == ended[:9].tolist()
    assert Counter(end.partition(":")[0] for end in ends(result)) == {"finished": 6, "failed": 6}


def test_clients_that_give_up(serve: Serve, send: Send, evenly: Callable[..., Any]) -> None:
    lines = evenly(4)
    lines[0]["timeout"], lines[1]["cancel_after"], lines[2]["timeout"] = 60, 60, 10_000
    result = send(serve("--behaviours", "stall,silent,ok,ok"), lines)
    assert ends(result) == [
        "cancelled: timeout", "cancelled: cancelled by client", *["finished: length"] * 2
    ]  # fmt: skip
    waited = result.events.ended - result.events.arrival
    assert all(waited[:2] >= 60_000_000)


def test_what_is_measured_is_stored_while_it_is_measured(
    serve: Serve,
    send: Send,
    evenly: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also what ended after, and what is under way beside, a request that hears nothing."""
    monkeypatch.setattr("nexusbench.serving.endpoint.FLUSH_NS", 50_000_000)
    read: list[RunEvents] = []
    look = nexusbench.serving.endpoint.ReplayRecorder.look
    expected = [0, 6, 2, 8, 9, 10, 11, 12]

    def look_and_read(self: Any) -> None:
        look(self)
        for file in (tmp_path / "results").glob("*/manifest.json"):
            events = RunEvents.from_reader(RunReader(file.parent))
            for table in ("arrived", "admitted", "step_done", "ended"):
                assert (np.diff(events.tables[table]["time"]) >= 0).all()
            assert len(events.tables["arrived"]["request"]) == events.offered.sum()
            if events.num_output_tokens.tolist() == expected and (events.outcome == 0).sum() == 6:
                read.append(events)
                raise Interrupted("seen")

    monkeypatch.setattr(nexusbench.serving.endpoint.ReplayRecorder, "look", look_and_read)
    served = serve("--behaviours", "silent,ok,stall,ok,ok,ok,ok,ok")
    with pytest.raises(Interrupted, match=r"seen. Kept: ") as caught:
        send(served, evenly(8), timeout_s=60)
    assert read[0].outcome[[0, 2]].tolist() == [-1, -1]
    kept = RunReader(str(caught.value).rpartition("Kept: ")[2])
    assert kept.status == "interrupted"
    events = RunEvents.from_reader(kept)
    assert events.num_output_tokens.tolist() == expected
    assert events.ended.tolist() == read[0].ended.tolist()


@pytest.mark.slow
def test_what_is_too_long_is_not_sent(serve: Serve, send: Send, evenly: Callable[..., Any]) -> None:
    served = serve()
    lines = evenly(3)
    lines[1]["input_length"] = 4095  # the server says that it takes 4096
    result = send(served, lines)
    assert ends(result)[1] == "rejected: exceeds max_model_len 4096"
    assert len(served.log) == 2
    assert values(send(served, lines, too_long="clip"))["finished"] == 3


@pytest.mark.slow
def test_a_server_that_dies(serve_alone: Serve, send: Send, evenly: Callable[..., Any]) -> None:
    served = serve_alone()
    kill = nexusbench.serving.endpoint.ReplayRecorder.look

    def look(self: Any) -> None:
        if self._replay.recording.num_ended >= 4:
            served.end()
        kill(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nexusbench.serving.endpoint.ReplayRecorder, "look", look)
        # Long enough that a busy machine still has requests to send when the server is gone.
        result = send(served, evenly(80, gap_ms=50))
    kinds = Counter(ends(result))
    assert kinds["finished: length"] >= 4
    assert sum(count for kind, count in kinds.items() if kind.startswith("failed: connection")) >= 1
    assert sum(kinds.values()) == 80


def test_nothing_listens(serve_alone: Serve, send: Send, evenly: Callable[..., Any]) -> None:
    served = serve_alone()
    served.end()
    with pytest.raises(NexusbenchError, match=r"connection refused\. Is the server up\?"):
        send(served, evenly(3))


@pytest.mark.parametrize(
    ("options", "config", "words"),
    [
        (["--models", "a,b"], {}, "has 2 models: a, b. Choose one with --model NAME"),
        (["--models", "one,two"], {"model": "tow"}, "no model 'tow'. Did you mean 'two'?"),
        ([], {"prompt": "ids", "api": "chat"}, "the chat API takes text alone"),
        ([], {"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
    ],
)
def test_what_the_user_has_to_say(
    serve: Serve,
    send: Send,
    evenly: Callable[..., Any],
    options: list[str],
    config: dict[str, Any],
    words: str,
) -> None:
    with pytest.raises(UsageError) as caught:
        send(serve(*options), evenly(2), **config)
    assert words in str(caught.value)


@pytest.mark.slow
def test_the_key_is_used_and_nowhere_kept(
    serve_alone: Serve,
    send: Send,
    evenly: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    result = send(serve_alone("--key", "sk-very-secret"), evenly(3), api_key_env="MY_KEY")
    assert ends(result) == ["finished: length"] * 3
    files = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not any(b"sk-very-secret" in path.read_bytes() for path in files)
    # The server repeats the key that it was given.
    with pytest.raises(NexusbenchError, match=r"wrong key Bearer \*\*\*") as caught:
        send(serve_alone("--key", "another"), evenly(3), api_key_env="MY_KEY")
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_over_tls(
    serve_alone: Serve,
    send: Send,
    evenly: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    key, certificate, both = (tmp_path / name for name in ("key.pem", "cert.pem", "both.pem"))
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    served = serve_alone("--certificate", both, "--delay-ms", 1)
    served.url = f"https://localhost:{served.port}/v1"
    with pytest.raises(NexusbenchError, match="certificate verify failed"):
        send(served, evenly(2))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    result = send(served, evenly(12))
    assert ends(result) == ["finished: length"] * 12
    assert result.events.num_output_tokens.tolist() == list(range(5, 17))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "SCHED_FIFO"), reason="this system has no scheduling classes")
def test_replays_ahead_of_other_processes_where_allowed_and_gives_that_up(
    serve: Serve, send: Send, evenly: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda pid, policy, param: asked.append(policy))
    assert set(ends(send(serve(), evenly(3)))) == {"finished: length"}
    assert asked == [os.SCHED_FIFO, os.SCHED_OTHER]
    refusals: list[int] = []

    def refuse(pid: int, policy: int, param: object) -> None:
        refusals.append(policy)
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert set(ends(send(serve(), evenly(3)))) == {"finished: length"}
    assert refusals == [os.SCHED_FIFO]
