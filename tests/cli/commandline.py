"""Helpers of the command-line tests: traces to serve, and command lines as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[2]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def write_trace(path: Path, count: int, gap_ms: float = 100.0, output: int = 5) -> Path:
    lines = (
        json.dumps(
            {
                "timestamp": index * gap_ms,
                "input_length": 100 + 37 * (index % 11),
                "output_length": output + index % 7,
            }
        )
        for index in range(count)
    )
    path.write_text("\n".join(lines) + "\n")
    return path


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "NEXUSBENCH_DEBUG"}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"}


def start(*arguments: object, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """Start a command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "nexusbench", *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    out, err = process.communicate(timeout=60)
    return Outcome(process.returncode, out, err)
