"""The README and the guides say what the code does: their examples run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nexusbench.cli.main import main
from tests.docs import readme
from tests.examples import sample

ROOT = readme.ROOT
PYTHON_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
BASH_BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)


def run_module(
    module: str, *arguments: str, path: Path, cwd: Path
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("document", sample(readme.DOCUMENTS, 2), ids=lambda path: path.stem)
def test_documents_show_what_the_command_prints(
    document: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, text = readme.shown(document)
    readme.link_workloads(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, value in readme.TERMINAL.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == 0
    assert readme.stable_lines(text) == readme.stable_lines(capsys.readouterr().out), (
        f"the output in {document.name} is old; refresh it with: python -m tests.docs.readme"
    )
    assert "SIMULATED" in text


def test_readme_has_exactly_two_set_up_commands() -> None:
    section = readme.README.read_text().split("## Set up")[1].split("## ")[0]
    assert BASH_BLOCK.findall(section) == [
        "pip install -e . && nexusbench serve-trace workloads/mixed.jsonl "
        "--scheduler nexus,vllm,sglang\n",
        'pip install -e ".[test]" && pytest\n',
    ]


@pytest.mark.slow
def test_readme_python_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = PYTHON_BLOCK.findall(readme.README.read_text())
    readme.link_workloads(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.endswith("ms, simulated: True\n")


@pytest.mark.slow
def test_readme_commands_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    text = readme.README.read_text()
    flags = {
        (command, flag)
        for line in re.findall(r"^nexusbench .*$", text, re.MULTILINE)
        for words in [line.split()]
        for command in [" ".join(words[1 : 3 if words[1] in ("trace", "validate", "gate") else 2])]
        for flag in re.findall(r"--[a-z-]+", line.split("#")[0])
    }
    helps = {}
    for command in {command for command, _ in flags} | {"list", "doctor", "compare", "rerun"}:
        assert main([*command.split(), "--help"]) == 0
        helps[command] = capsys.readouterr().out
    assert all("Usage" in text for text in helps.values())
    for command, flag in sorted(flags):
        assert flag in helps[command], f"README uses {command} {flag}"


@pytest.fixture(scope="module")
def package_with_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the guide's scheduler dropped in as one file."""
    path = tmp_path_factory.mktemp("dropped-in")
    shutil.copytree(
        ROOT / "nexusbench", path / "nexusbench", ignore=shutil.ignore_patterns("__pycache__")
    )
    code = PYTHON_BLOCK.findall((ROOT / "docs" / "adding-a-scheduler.md").read_text())[0]
    (path / "nexusbench" / "schedulers" / "longest_first.py").write_text(code)
    return path


@pytest.mark.slow
def test_dropped_in_scheduler_is_listed(package_with_example: Path, tmp_path: Path) -> None:
    done = run_module("nexusbench", "list", "schedulers", path=package_with_example, cwd=tmp_path)
    assert done.returncode == 0
    assert "longest-first" in done.stdout


@pytest.mark.slow
def test_dropped_in_scheduler_conforms(package_with_example: Path, tmp_path: Path) -> None:
    done = run_module(
        "nexusbench.testing", "scheduler", "longest-first", path=package_with_example, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_dropped_in_scheduler_serves(package_with_example: Path, tmp_path: Path) -> None:
    trace = str(ROOT / "workloads" / "mixed.jsonl")
    done = run_module(
        "nexusbench", "serve-trace", trace, "--scheduler", "longest-first,vllm", "--limit", "40",
        path=package_with_example, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "longest-first" in done.stdout


def test_architecture_follows_a_request_through_at_most_six_files() -> None:
    section = (ROOT / "docs" / "architecture.md").read_text().split("## One request, six files")[1]
    files = re.findall(r"^\d+\. \*\*`([^`]+)`", section.split("## ")[0], re.MULTILINE)
    assert 3 <= len(files) <= 6
    for file in files:
        assert (ROOT / "nexusbench" / file).is_file(), file


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in [readme.README, *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not link.startswith("http"):
                assert (document.parent / link).exists(), f"{document.name}: {link}"
