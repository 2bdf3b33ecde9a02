"""tests/gpu/run_all.sh without a GPU: a stand-in for Python that fails, hangs or succeeds."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "gpu" / "run_all.sh"
SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]
# Fails the tests, hangs in the counters, and knows two schedulers.
PYTHON = """#!/bin/sh
case "$*" in
    "-m pytest"*) echo "1 failed"; exit 3 ;;
    "-m tests.gpu.cross_check"*) exec sleep 30 ;;
    *schedulers.names*) echo vllm nexus ;;
    *) echo "ran: $*" ;;
esac
"""


def run_all(
    tmp_path: Path, *words: str, shell: str = SHELLS[0], python: str = PYTHON, **settings: str
) -> subprocess.CompletedProcess[str]:
    stand_in = tmp_path / "python"
    stand_in.write_text(python)
    stand_in.chmod(0o755)
    own = {"OUT": str(tmp_path / "out"), "PYTHON": str(stand_in), **settings}
    return subprocess.run(
        [shell, str(SCRIPT), *words],
        env={**os.environ, **own}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def summary(tmp_path: Path) -> dict[str, str]:
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    return {line[:22].strip(): line[22:35].strip() for line in lines[:-1]}


@pytest.mark.slow
def test_a_part_that_fails_or_hangs_stops_nothing(tmp_path: Path) -> None:
    done = run_all(tmp_path, "tests", "counters", "serve", "doctor", TOTAL="3")
    assert done.returncode == 1, done.stderr
    found = summary(tmp_path)
    assert found.pop("doctor") == "ok"
    assert found.pop("tests") == "failed (3)"
    assert found.pop("counters") == "time limit"
    assert found == {"serve-vllm": "no time", "serve-nexus": "no time"}
    assert "parts: 5, failed: 4" in done.stdout
    assert "1 failed" in (tmp_path / "out" / "logs" / "tests.log").read_text()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.slow
def test_all_well_is_exit_code_0_and_every_part_has_a_log(tmp_path: Path, shell: str) -> None:
    kind = PYTHON.replace("exit 3", "exit 0").replace("exec sleep 30", "exit 0")
    done = run_all(tmp_path, shell=shell, python=kind)
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path)
    assert set(found.values()) == {"ok"}
    assert list(found) == [
        "doctor", "tests", "counters", "kernels", "profile", "serve-vllm", "serve-nexus",
    ]  # fmt: skip
    logs = {path.stem for path in (tmp_path / "out" / "logs").iterdir()}
    assert logs == {*found, "machine"}
    served = (tmp_path / "out" / "logs" / "serve-nexus.log").read_text()
    assert "--scheduler nexus" in served
    assert "--load-format dummy" in served


def test_every_file_of_gpu_tests_is_run(tmp_path: Path) -> None:
    words = run_all(tmp_path, "--dry-run", "tests").stdout.split()
    files = {f"tests/gpu/{path.name}" for path in SCRIPT.parent.glob("test_*.py")}
    assert files == {word for word in words if word.endswith(".py")}


def test_a_dry_run_prints_the_parts_and_leaves_nothing(tmp_path: Path) -> None:
    done = run_all(tmp_path, "--dry-run")
    assert done.returncode == 0
    assert not (tmp_path / "out").exists()
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names[:2] == ["doctor", "tests"]
    assert names[-1] == "serve-nexus"
    for word, text in (("--fast", "unknown option --fast"), ("kernel", "there is no part kernel")):
        refused = run_all(tmp_path, "--dry-run", word)
        assert refused.returncode == 2
        assert text in refused.stderr


def test_without_a_gpu_it_stops_at_once_and_says_why(tmp_path: Path) -> None:
    broken = '#!/bin/sh\necho "no NVIDIA driver was found" >&2; exit 2\n'
    done = run_all(tmp_path, python=broken)
    assert done.returncode == 2
    assert done.stderr == "no NVIDIA driver was found\n"
    assert (tmp_path / "out" / "summary.txt").read_text() == ""


def test_the_flags_it_uses_exist(tmp_path: Path) -> None:
    from typer.main import get_command

    from nexusbench.cli.main import app
    from nexusbench.devices.base import devices

    commands = get_command(app).commands
    seen = set()
    for line in run_all(tmp_path, "--dry-run").stdout.splitlines():
        words = line.split()
        if "nexusbench" not in words:
            continue
        name = words[words.index("nexusbench") + 1]
        seen.add(name)
        if name == "doctor" and "cuda" not in devices.names():
            continue  # doctor looks closely at a device since there is one of this kind
        known = {flag for parameter in commands[name].params for flag in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
    assert seen == {"doctor", "profile", "serve-trace"}
