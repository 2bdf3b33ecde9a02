"""Servers that misbehave, each way of tests/endpoint/misbehaviours.py, as cases of their own."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.benchmarks.hostile.cases import Case, Left

TRACE = "server.jsonl"
_REQUESTS = 6
_KEY = "sk-very/secret+key-42"  # for the servers that tell it


@contextmanager
def server_cases(material: Path) -> Iterator[list[Case]]:
    """A case for each way, while a process is all of these servers; none where that cannot be."""
    if find_spec("httptools") is None or find_spec("tests.endpoint.misbehaviours") is None:
        yield []
        return
    known: Any = importlib.import_module("tests.endpoint.misbehaviours")
    (material / TRACE).write_text(known.TRACE)
    asked = [(way, False, "") for way in known.ANSWERS]
    asked += [(way, False, _KEY) for way in known.TELLING]
    asked += [(way, True, "") for way in known.PROBES]
    with known.serving() as base:
        yield [
            _case(number, way, base, known.TIMEOUT_S, key, before=before)
            for number, (way, before, key) in enumerate(asked)
        ]


def _case(number: int, way: Any, base: str, timeout_s: float, key: str, *, before: bool) -> Case:
    words = (
        "serve-trace", TRACE, "--endpoint", way.url(base), "--timeout", f"{timeout_s:g}",
        "--no-progress", "--json", "--results", "out",
    )  # fmt: skip

    def check(left: Left) -> str:
        if key and key[:8] in left.out + left.err:
            return "the key is told"
        if before:
            # What a flag can settle is the user's to settle.
            wanted_code = 2 if "with --model" in left.err else 1
            told = left.code == wanted_code and way.explains(left.err)
            return "" if told else f"does not end with {way.reason!r}"
        found = _counts(left.out)
        wanted = {"finished": _REQUESTS if way.finishes else 0}
        wanted["failed"] = _REQUESTS - wanted["finished"]
        return "" if found == wanted else f"{found}, not {wanted}"

    variables = {"OPENAI_API_KEY": key} if key else {}
    return Case(
        f"s{number}", "serve-trace", f"server {way.name}", words, variables=variables, check=check
    )


def _counts(out: str) -> dict[str, int]:
    """Requests that finished and failed, by a run's JSON; empty where there is none."""
    try:
        metrics = json.loads(out)["runs"][0]["summary"]["metrics"]
        return {name: int(metrics[name]["value"]) for name in ("finished", "failed")}
    except (ValueError, KeyError, IndexError, TypeError):
        return {}
