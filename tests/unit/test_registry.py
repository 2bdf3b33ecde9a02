"""Plug-ins of installed packages: found whenever they came, and none that left."""

from __future__ import annotations

import os
import shutil
from itertools import count
from pathlib import Path

import pytest

from nexusbench.core.errors import UsageError
from nexusbench.core.registry import installed_plugins
from nexusbench.schedulers.base import schedulers
from nexusbench.schedulers.vllm import VllmScheduler

_NS = count(1_700_000_000_000_000_000, 1_000_000_000)


def touch(place: Path) -> None:
    """Stamp a change: file systems do it by the tick, and a test makes several within one."""
    now = next(_NS)
    os.utime(place, ns=(now, now))


def install(place: Path, name: str, plugin: str, value: str) -> Path:
    """A distribution with one scheduler."""
    folder = place / f"{name}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[nexusbench.schedulers]\n{plugin} = {value}\n")
    touch(place)
    return folder


def test_what_is_installed_meanwhile_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = "nexusbench.schedulers.vllm:VllmScheduler"
    assert "mine" not in schedulers.names()
    install(tmp_path, "first", "mine", value)
    monkeypatch.syspath_prepend(tmp_path)
    assert schedulers.load("mine") is VllmScheduler
    second = install(tmp_path, "second", "theirs", value)
    assert {"mine", "theirs"} <= set(schedulers.names())
    shutil.rmtree(second)
    touch(tmp_path)
    assert "theirs" not in schedulers.names()
    monkeypatch.undo()
    assert "mine" not in schedulers.names()


def test_two_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "first", "vllm", "elsewhere:Vllm")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UsageError, match=r"two schedulers are called 'vllm': .* and elsewhere:Vllm"
    ):
        schedulers.load("vllm")


def test_asking_again_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = installed_plugins("nexusbench.schedulers")
    monkeypatch.setattr("nexusbench.core.registry.entry_points", None)
    assert installed_plugins("nexusbench.schedulers") is before
