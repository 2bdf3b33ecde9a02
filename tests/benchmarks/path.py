"""How far one request travels: files and lines executed between its trace line and the table.

``python -m tests.benchmarks.path [--files]``: one request under ``--scheduler nexus`` through the
command line, in a process that has served it once before, so that reading shipped data and filling
caches does not count. Lines count once however often they run; module bodies, class bodies and
comprehensions' own frames are part of the line they stand in. A reader who wants to understand a
run reads at most these.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import nexusbench
from nexusbench.cli.main import main as command_line
from nexusbench.engine.engine import Engine

PACKAGE = str(Path(nexusbench.__file__).parent)
REQUEST = {"timestamp": 300, "input_length": 4000, "output_length": 70}

Line = tuple[str, int]


@contextlib.contextmanager
def traced(inside: CodeType | None = None) -> Iterator[set[Line]]:
    """The lines of functions of the package that run meanwhile, or only within ``inside``."""
    lines: set[Line] = set()
    depth = 0

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal depth
        if event == "line" and (inside is None or depth):
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        if event == "return" and frame.f_code is inside:
            depth -= 1
        return local

    def called(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal depth
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or not code.co_flags & inspect.CO_OPTIMIZED:
            return None
        depth += code is inside
        return local

    sys.settrace(called)
    try:
        yield lines
    finally:
        sys.settrace(None)


def serve_once(trace: Path) -> None:
    """The whole way, its output thrown away."""
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with quiet[0], quiet[1]:
        code = command_line(
            ["serve-trace", str(trace), "--scheduler", "nexus", "--device", "sim:l20", "--no-save"]
        )
    assert code == 0


def measure(work: Callable[[], None], inside: CodeType | None = None) -> Counter[str]:
    """Lines by file, paths from the package on."""
    with traced(inside) as lines:
        work()
    return Counter(str(Path(file).relative_to(PACKAGE)) for file, _ in lines)


def main() -> None:
    """Print both counts, with --files each file's lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", action="store_true", help="list them")
    parser.add_argument("--json", action="store_true", help="one document")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "one.jsonl"
        trace.write_text(json.dumps(REQUEST) + "\n")
        serve_once(trace)
        ways = {
            "serve-trace": measure(lambda: serve_once(trace)),
            "Engine.run": measure(lambda: serve_once(trace), Engine.run.__code__),
        }
    if asked.json:
        print(json.dumps({name: dict(counts) for name, counts in ways.items()}, indent=2))
        return
    for name, counts in ways.items():
        print(f"{name}: {len(counts)} files, {counts.total():,} lines")
        if asked.files:
            for file, count in counts.most_common():
                print(f"  {count:5} {file}")


if __name__ == "__main__":
    main()
