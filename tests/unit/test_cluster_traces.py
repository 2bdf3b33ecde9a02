"""A node of a Ray cluster serves the trace that it was sent, or refuses and says what it found."""

from __future__ import annotations

import hashlib
import socket
import tempfile
from pathlib import Path

import pytest

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import NexusbenchError
from nexusbench.experiments import cluster
from nexusbench.experiments.keys import code_version

TRACE = b'{"timestamp": 0, "input_length": 3, "output_length": 2}\n'
SHA = hashlib.sha256(TRACE).hexdigest()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where a node keeps copies of traces."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "nexusbench-traces" / SHA[:16]


def on_node(trace: Path, content: bytes = TRACE, code: str | None = None) -> tuple[Path, bytes]:
    def read(config: RunConfig) -> tuple[Path, bytes]:
        return Path(config.trace), Path(config.trace).read_bytes()

    config = RunConfig(trace=str(trace))
    return cluster._on_node(read, config, content, SHA, code or code_version())


def test_a_trace_at_the_same_path_is_taken_only_if_it_is_that_one(
    node: Path, tmp_path: Path
) -> None:
    here = tmp_path / "t.jsonl"
    assert on_node(here) == (node / "t.jsonl", TRACE)  # there is none: the copy that was sent
    here.write_bytes(TRACE)
    assert on_node(here) == (here, TRACE)
    here.write_bytes(TRACE.replace(b"3", b"4"))  # another trace, as long as that one
    assert on_node(here) == (node / "t.jsonl", TRACE)


def test_a_copy_of_another_content_is_refused(node: Path, tmp_path: Path) -> None:
    node.mkdir(parents=True)
    other = TRACE.replace(b"3", b"4")
    (node / "t.jsonl").write_bytes(other)
    with pytest.raises(NexusbenchError) as caught:
        on_node(tmp_path / "t.jsonl")
    for part in (SHA, hashlib.sha256(other).hexdigest(), socket.gethostname(), str(node)):
        assert part in str(caught.value)
    assert (node / "t.jsonl").read_bytes() == other


def test_a_trace_that_changed_on_the_way_is_refused(node: Path, tmp_path: Path) -> None:
    with pytest.raises(NexusbenchError, match=SHA):
        on_node(tmp_path / "t.jsonl", TRACE[:-1])
    assert not node.exists()


def test_a_node_with_another_code_is_named(node: Path, tmp_path: Path) -> None:
    with pytest.raises(NexusbenchError, match=socket.gethostname()):
        on_node(tmp_path / "t.jsonl", code="another")
