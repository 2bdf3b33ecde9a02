"""Files that take their place by a rename never take that of a device or a pipe."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from nexusbench.core.errors import UsageError
from nexusbench.core.outputs import atomic_file, check_writable, make_folder
from nexusbench.experiments.sweep_table import write_sweep
from nexusbench.gates.baseline import save_baseline
from nexusbench.workloads.source import write_atomic


def _page(path: Path) -> None:
    with atomic_file(path) as file:
        file.write(b"x")


@pytest.mark.parametrize(
    "write",
    [
        _page,
        check_writable,
        lambda path: write_atomic(path, b"x"),
        lambda path: write_sweep(pa.table({"a": [1]}), path),
        lambda path: save_baseline(path, {}),
    ],
    ids=["page", "check", "trace", "sweep", "baseline"],
)
def test_a_pipe_is_refused_and_stays(write: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(UsageError, match="is a device or a pipe"):
        write(path)
    assert path.is_fifo()
    assert [other.name for other in tmp_path.iterdir()] == ["pipe"]


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    _page(path)
    assert path.read_text() == "x"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(UsageError, match="cannot be made"):
        make_folder(tmp_path / "file" / "b")
