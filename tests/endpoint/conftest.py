"""Servers of our own, each a process, and traces to send to them."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nexusbench
from nexusbench.runner import RunResult

SERVER = Path(__file__).parent / "server.py"


class Served:
    """A server that runs; ``log`` is what it was asked, probes left out."""

    def __init__(self, *options: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), *map(str, options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> list[dict[str, Any]]:
        """Bodies, the shortest answer first."""
        with urllib.request.urlopen(f"{self.url}/log", timeout=10) as answer:
            return sorted(
                (body for body, _ in json.load(answer)), key=lambda body: body["max_tokens"]
            )

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


Serve = Callable[..., Served]
Send = Callable[..., RunResult]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers, which end with the test."""
    running: list[Served] = []

    def start(*options: object) -> Served:
        running.append(Served(*options))
        return running[-1]

    yield start
    for served in running:
        served.end()


@pytest.fixture
def send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Send:
    """Replay requests, given as the fields of a trace, against a server that is near."""
    monkeypatch.setattr("nexusbench.endpoint.replay.LEAD_NS", 80_000_000)

    def replay(served: Served, lines: list[dict[str, Any]], **options: Any) -> RunResult:
        options = {"timeout_s": 20.0, **options}
        config = nexusbench.EndpointConfig(
            trace=str(write(tmp_path / "trace.jsonl", lines)), endpoint=served.url, **options
        )
        return nexusbench.run(config, results=tmp_path / "results")

    return replay


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def evenly(count: int, gap_ms: float = 8.0, prompt: int = 20) -> list[Any]:
    """Outputs of 5, 6, 7 ... tokens, by which the server tells the requests apart."""
    return [
        {"timestamp": index * gap_ms, "input_length": prompt + index, "output_length": 5 + index}
        for index in range(count)
    ]


@pytest.fixture(name="write_trace")
def _write_trace(tmp_path: Path) -> Callable[[list[dict[str, Any]]], Path]:
    return lambda lines: write(tmp_path / "trace.jsonl", lines)


@pytest.fixture(name="evenly")
def _evenly() -> Callable[..., list[Any]]:
    return evenly
