"""What an installed package and the repository promise: types, addresses, a workflow."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_package_says_who_made_it_and_where_it_lives() -> None:
    assert PROJECT["authors"] == [{"name": "nexusbench contributors"}]
    home = "https://github.com/nexusbench/nexusbench"
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} <= PROJECT["urls"].keys()
    assert all(address.startswith(home) for address in PROJECT["urls"].values())
    assert (ROOT / "nexusbench" / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_the_workflow_runs_what_a_change_must_pass() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "bash .ci/run" in text
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").startswith("#!/usr/bin/env bash")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling is not installed")
def test_the_wheel_ships_its_types(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "nexusbench/py.typed" in names
    assert not any(name.startswith("tests/") for name in names)
