"""Runs to report on, made once: three schedulers, several seeds and rates, hostile names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_chromium

from nexusbench.config import RunConfig
from nexusbench.runner import run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&%{x}\u202e"


def write_trace(path: Path, count: int, names: str = "") -> Path:
    lines = (
        json.dumps(
            {
                "timestamp": index * 60.0,
                "input_length": 200 + 370 * (index % 13),
                "output_length": 4 + 5 * (index % 9),
                **({"id": f"{names}{index}"} if names else {}),
            }
        )
        for index in range(count)
    )
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``three/``: one run per scheduler; ``rates/``: two schedulers at two rates, two seeds."""
    root = tmp_path_factory.mktemp("results")
    trace = str(write_trace(root / "small.jsonl", 120))
    for scheduler in ("nexus", "vllm", "sglang"):
        run(RunConfig(trace=trace, scheduler=scheduler), results=root / "three")
    for rate in (2.0, 20.0):
        for scheduler in ("nexus", "vllm"):
            for seed in (0, 1):
                config = RunConfig(
                    trace=trace, scheduler=scheduler, request_rate=rate, seed=seed, limit=40,
                    goodput={"ttft": 500.0},
                )  # fmt: skip
                run(config, results=root / "rates")
    return root


def folders(root: Path) -> list[str]:
    order = {"nexus": 0, "vllm": 1, "sglang": 2}
    found = [path for path in root.iterdir() if (path / "manifest.json").is_file()]

    def key(path: Path) -> tuple[int, str]:
        return next(order[name] for name in order if name in path.name), path.name

    return [str(path) for path in sorted(found, key=key)]


def edit_manifest(folder: str, **changes: object) -> None:
    file = Path(folder) / "manifest.json"
    document = json.loads(file.read_text())
    for key, value in changes.items():
        if isinstance(value, dict):
            document[key] |= value
        else:
            document[key] = value
    file.write_text(json.dumps(document))


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
def browser() -> Iterator[Browser]:
    """A headless Chromium, where there is one."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    binary, driver = find_chromium()
    if not binary or not driver:
        pytest.skip("no chromium with its chromedriver on this machine")
    opened = Browser(binary, driver)
    yield opened
    opened.quit()
