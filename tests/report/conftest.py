"""Runs to report on, made once: three schedulers, several seeds and rates, hostile names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from browser import Browser, find_chromium
from stored import HOSTILE, edit_manifest, folders, write_trace

from nexusbench.core.config import RunConfig
from nexusbench.costs.base import Target
from nexusbench.profiles.profile import POINTS_FILE, read_points, write_profile
from nexusbench.profiling.facts import derive_facts
from nexusbench.serving.runner import run
from tests.sim.profiles import make_profile


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``three/``: one run per scheduler."""
    root = tmp_path_factory.mktemp("results")
    trace = str(write_trace(root / "small.jsonl", 120))
    for scheduler in ("nexus", "vllm", "sglang"):
        run(RunConfig(trace=trace, scheduler=scheduler), results=root / "three")
    return root


@pytest.fixture(scope="session")
def rates(results: Path) -> Path:
    """Two schedulers at two rates, two seeds."""
    trace = str(results / "small.jsonl")
    for rate in (2.0, 20.0):
        for scheduler in ("nexus", "vllm"):
            for seed in (0, 1):
                config = RunConfig(
                    trace=trace, scheduler=scheduler, request_rate=rate, seed=seed, limit=40,
                    goodput={"ttft": 500.0},
                )  # fmt: skip
                run(config, results=results / "rates")
    return results / "rates"


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two runs, one cut short, with markup wherever a user may put text."""
    root = tmp_path_factory.mktemp("hostile")
    trace = write_trace(root / "a\"><script>alert(3)<b onload='x'>.jsonl", 30, HOSTILE)
    made: list[str] = []
    for scheduler in ("nexus", "vllm"):
        run(RunConfig(trace=str(trace), scheduler=scheduler), results=root / "runs")
    made = folders(root / "runs")
    edit_manifest(
        made[1], status="interrupted", message=f"stopped {HOSTILE}", partitions=[HOSTILE],
        config={"scheduler": f"vllm{HOSTILE}"}, run_id=HOSTILE,
    )  # fmt: skip
    renamed = shutil.move(made[1], Path(made[1]).with_name("b'\"><script>alert(4)<b>"))
    return [made[0], str(renamed)]


@pytest.fixture(scope="session")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished profile."""
    folder = tmp_path_factory.mktemp("profile") / "a<b>"
    profile = make_profile(folder)
    points = read_points(folder / POINTS_FILE)
    facts = derive_facts(points, Target(profile.gpu, profile.model), profile.splits)
    notes = (f"a note {HOSTILE}",)
    write_profile(
        folder,
        msgspec.structs.replace(profile, facts=msgspec.to_builtins(facts), notes=notes),
    )
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium, where there is one."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    binary, driver = find_chromium()
    if not binary or not driver:
        pytest.skip("no chromium with its chromedriver on this machine")
    opened = Browser(binary, driver)
    yield opened
    opened.quit()
