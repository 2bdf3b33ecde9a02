"""Servers of our own, each a process, and traces to send to them."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

import nexusbench
from nexusbench.serving.runner import RunResult

_NUMBERS = count()
SERVER = Path(__file__).parent / "server.py"


class Process:
    """A process that serves."""

    def __init__(self, *options: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), *map(str, options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class Served:
    """A server; ``log`` is what it was asked, probes left out."""

    def __init__(self, process: Process, url: str) -> None:
        self._process, self.url, self.port = process, url, process.port

    @property
    def log(self) -> list[dict[str, Any]]:
        """Bodies, the shortest answer first."""
        with urllib.request.urlopen(f"{self.url.removesuffix('/v1')}/log", timeout=10) as answer:
            return sorted(
                (body for body, _ in json.load(answer)), key=lambda body: body["max_tokens"]
            )

    def end(self) -> None:
        self._process.end()


Serve = Callable[..., Served]
Send = Callable[..., RunResult]


@pytest.fixture(scope="session")
def shared() -> Iterator[Process]:
    """The process that is most servers."""
    process = Process()
    yield process
    process.end()


@pytest.fixture
def serve(shared: Process) -> Serve:
    """A server with these options, of the shared process."""

    def begin(*options: object) -> Served:
        words = [*map(str, options), "--n", str(next(_NUMBERS))]
        pairs = [(name.removeprefix("--"), value) for name, value in batched(words)]
        return Served(shared, f"http://127.0.0.1:{shared.port}/as/{urlencode(pairs)}/v1")

    return begin


@pytest.fixture
def serve_alone() -> Iterator[Serve]:
    """A server in a process of its own, which ends with the test."""
    running: list[Process] = []

    def begin(*options: object) -> Served:
        running.append(Process(*options))
        return Served(running[-1], f"http://127.0.0.1:{running[-1].port}/v1")

    yield begin
    for process in running:
        process.end()


@pytest.fixture
def send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Send:
    """Replay requests, given as the fields of a trace, against a server that is near."""
    monkeypatch.setattr("nexusbench.endpoint.replay.LEAD_NS", 80_000_000)
    monkeypatch.setattr("nexusbench.endpoint.probing._PAUSE_S", 0.01)

    def replay(served: Served, lines: list[dict[str, Any]], **options: Any) -> RunResult:
        options = {"timeout_s": 20.0, **options}
        config = nexusbench.EndpointConfig(
            trace=str(write(tmp_path / "trace.jsonl", lines)), endpoint=served.url, **options
        )
        return nexusbench.run(config, results=tmp_path / "results")

    return replay


def batched(words: list[str]) -> Iterator[tuple[str, str]]:
    return zip(words[::2], words[1::2], strict=True)


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def evenly(number: int, gap_ms: float = 8.0, prompt: int = 20) -> list[Any]:
    """Outputs of 5, 6, 7 ... tokens, by which the server tells the requests apart."""
    return [
        {"timestamp": index * gap_ms, "input_length": prompt + index, "output_length": 5 + index}
        for index in range(number)
    ]


@pytest.fixture(name="write_trace")
def _write_trace(tmp_path: Path) -> Callable[[list[dict[str, Any]]], Path]:
    return lambda lines: write(tmp_path / "trace.jsonl", lines)


@pytest.fixture(name="evenly")
def _evenly() -> Callable[..., list[Any]]:
    return evenly
