"""Terminal output in the documents, and how to make it again: ``python -m tests.docs.readme``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
# Every document with an output block of its own.
DOCUMENTS = (README, ROOT / "docs" / "profiling.md")
BLOCK = re.compile(r"<!-- output: (.+?) -->\n```text\n(.*?)```\n<!-- end of output -->", re.DOTALL)
TERMINAL = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
# Rows of real time: they differ from run to run.
REAL_TIME = ("decision time",)
# Lines that name the folder of a run.
FOLDERS = re.compile(
    r"^\s*(kept|nexus|vllm|sglang)\b.*results/|Look further|nexusbench explain", re.I
)


def shown(document: Path = README) -> tuple[list[str], str]:
    """The command (as arguments after ``nexusbench``) and the output that a document shows."""
    found = BLOCK.search(document.read_text())
    assert found is not None, f"{document.name} has lost its output block"
    return found.group(1).split()[1:], found.group(2)


def link_workloads(folder: Path) -> None:
    """Make ``workloads/`` in ``folder`` that of the checkout, as the commands expect."""
    (folder / "workloads").symlink_to(ROOT / "workloads")


def run(arguments: list[str]) -> str:
    """Stdout of the command, 100 columns wide, without colour, kept nowhere."""
    with tempfile.TemporaryDirectory() as scratch:
        link_workloads(Path(scratch))
        environment = {**os.environ, **TERMINAL, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "nexusbench", *arguments],
            cwd=scratch, env=environment, capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
    return done.stdout


def stable_lines(text: str) -> list[str]:
    """Lines that are the same in every run, without trailing blanks."""
    lines = [line.rstrip() for line in text.splitlines()]
    return [
        line
        for line in lines
        if line and not any(word in line for word in REAL_TIME) and not FOLDERS.search(line)
    ]


def main() -> None:
    """Put the present output into every document."""
    for document in DOCUMENTS:
        arguments, _ = shown(document)
        lines = [line.rstrip() for line in run(arguments).splitlines()]
        text = "\n".join(line for line in lines if not FOLDERS.search(line)).strip("\n")
        block = f"<!-- output: nexusbench {' '.join(arguments)} -->\n```text\n{text}\n```\n"
        block += "<!-- end of output -->"
        document.write_text(BLOCK.sub(lambda _, block=block: block, document.read_text()))


if __name__ == "__main__":
    main()
