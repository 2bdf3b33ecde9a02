"""Take a sample of mutants, run the tests that could notice each, keep what was found."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.mutation import probes, sessions
from tests.mutation.mutants import AREAS, PACKAGE, ROOT, Mutant, area_files, mutants_of, mutated
from tests.mutation.selection import Coverage

KEPT = ROOT / ".mutation"  # ignored by git: what was recorded and found so far
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
WALL = 240.0  # seconds of a session, on a machine that others use too


@dataclass(frozen=True)
class Finding:
    """What became of a mutant: ``noticed``, ``survived`` or ``not run`` (no test reaches it)."""

    verdict: str
    test: str
    how: str
    seconds: float


def equivalents() -> dict[str, str]:
    """Mutants that compute the same as the original, judged by hand: key -> why."""
    entries = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get("equivalent", [])
    return {entry["key"]: entry["why"] for entry in entries}


def sample(
    seed: int, per_area: int, areas: Iterable[str], same: dict[str, str], every: bool = False
) -> list[Mutant]:
    """The first ``per_area`` mutants of each area by the hash of seed and key, one a statement.

    Which are taken depends on nothing but their own text: an edit elsewhere moves none.
    ``every`` takes all of a statement, equivalent ones too.
    """
    chosen: list[Mutant] = []
    for area in areas:
        found = [mutant for path in area_files(area) for mutant in mutants_of(area, path)]
        found.sort(key=lambda m: hashlib.sha256(f"{seed}:{m.key}".encode()).hexdigest())
        places: set[str] = set()
        taken = 0
        for mutant in found:
            if taken == per_area:
                break
            if not every and (mutant.key in same or mutant.place in places):
                continue
            places.add(mutant.place)
            chosen.append(mutant)
            taken += 1
    return chosen


def stale(same: dict[str, str]) -> set[str]:
    """Entries of the list of equivalents that are no mutants of today's text."""
    keys = {m.key for area in AREAS for path in area_files(area) for m in mutants_of(area, path)}
    return set(same) - keys


# -- what the fast tests run -----------------------------------------------------------------------


def _digest(paths: Iterable[Path]) -> str:
    hashed = hashlib.sha256()
    for path in paths:
        hashed.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return hashed.hexdigest()[:16]


def _test_files() -> list[Path]:
    return sorted((ROOT / "tests").rglob("test_*.py"))


def base_digest() -> str:
    """Changes with the package and with what tests share, not with one test file."""
    tests = set(_test_files())
    shared = [
        path for path in sorted((ROOT / "tests").rglob("*.py"))
        if path not in tests and "mutation" not in path.parts and "benchmarks" not in path.parts
    ]  # fmt: skip
    return _digest([*sorted(PACKAGE.rglob("*.py")), *shared])


def coverage(say: Callable[[str], None]) -> Coverage:
    """Marks of each fast test; only test files that changed since the last pass are run again."""
    paths: dict[str, Path] = {}
    ranges: dict[str, tuple[int, int]] = {}
    lines: dict[str, dict[int, int]] = {}
    total = 0
    for area in AREAS:
        for path in area_files(area):
            name = probes.module_name(path, ROOT)
            marker = probes.Marker(total)
            marker.tree(path.read_text(encoding="utf-8"))
            paths[name], ranges[name] = path, (total, marker.next)
            lines[name] = marker.of_line
            total = marker.next
    base = base_digest()
    kept = KEPT / "coverage" / base
    kept.mkdir(parents=True, exist_ok=True)
    for old in kept.parent.iterdir():
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)
    wanted = {path: kept / f"{_digest([path])}.pickle" for path in _test_files()}
    new = [path for path, out in wanted.items() if not out.exists()]
    if new:
        say(f"recording which lines {len(new)} test files run")
        _record(new, wanted, paths, {name: first for name, (first, _) in ranges.items()}, total)
    return _table(list(wanted.values()), ranges, lines, total, say)


def _record(
    new: list[Path], wanted: dict[Path, Path], paths: dict[str, Path], firsts: dict[str, int],
    total: int,
) -> None:  # fmt: skip
    out = KEPT / "recorded.pickle"
    out.unlink(missing_ok=True)
    files = [str(path.relative_to(ROOT)) for path in new]
    with tempfile.TemporaryDirectory() as folder:
        sessions.record(files, paths, firsts, total, f"{folder}/tests", out)
    found = pickle.loads(out.read_bytes())
    out.unlink()
    for path, name in zip(new, files, strict=True):
        own = {test: row for test, row in found["tests"].items() if test.split("::")[0] == name}
        broken = [node for node in found["broken"] if node.split("::")[0] == name]
        part = {"tests": own, "outside": found["outside"], "broken": broken}
        wanted[path].write_bytes(pickle.dumps(part))


def _table(
    parts: list[Path], ranges: dict[str, Any], lines: dict[str, Any], total: int,
    say: Callable[[str], None],
) -> Coverage:  # fmt: skip
    names, seconds, rows = [], [], []
    outside = np.zeros(total, dtype=np.uint8)
    for part in parts:
        found = pickle.loads(part.read_bytes())
        outside |= _unpacked(found["outside"], total)
        for node in found["broken"]:
            say(f"not collected: {node}")
        for test, row in found["tests"].items():
            if row["failed"]:
                say(f"fails although nothing is changed, left out: {test}")
                continue
            names.append(test)
            seconds.append(row["seconds"])
            rows.append(_unpacked(row["bits"], total))
    return Coverage(names, np.array(seconds), np.array(rows), outside, ranges, lines)


def _unpacked(bits: bytes, total: int) -> Any:
    return np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=total)


# -- running ---------------------------------------------------------------------------------------


class Results:
    """Findings by mutant, kept line by line, so that a run that was ended goes on where it was."""

    def __init__(self, digest: str, budget: float, fresh: bool) -> None:
        self.path = KEPT / f"found-{digest}-{budget:g}.jsonl"
        if fresh:
            self.path.unlink(missing_ok=True)
        self.found = _read(self.path) if self.path.exists() else {}

    def take_kills(self, path: str) -> None:
        """Believe what an earlier run noticed, with tests that may have changed since."""
        for key, finding in _read(Path(path)).items():
            if finding.verdict == "noticed" and key not in self.found:
                self.add(key, finding)

    def forget(self, tests: set[str]) -> None:
        """Take back what these tests noticed."""
        self.found = {key: f for key, f in self.found.items() if f.test not in tests}

    def add(self, key: str, finding: Finding) -> None:
        self.found[key] = finding
        with self.path.open("a") as out:
            out.write(json.dumps({"key": key, **asdict(finding)}) + "\n")


def _read(path: Path) -> dict[str, Finding]:
    found = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        key = entry.pop("key")
        found[key] = Finding(**entry)
    return found


def whole_digest() -> str:
    """Changes with any file that decides what is found."""
    return _digest([*sorted(PACKAGE.rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))])


def run(
    mutants: list[Mutant], covered: Coverage, results: Results, budget: float, jobs: int,
    left_out: set[str], done: Callable[[Mutant, Finding], None],
) -> None:  # fmt: skip
    """Try every mutant that is not in ``results`` yet, of all areas in turn."""
    turn: Counter[str] = Counter()
    rounds_of: list[tuple[int, Mutant]] = []
    for mutant in mutants:
        turn[mutant.area] += 1
        if mutant.key not in results.found:
            rounds_of.append((turn[mutant.area], mutant))
    waiting = [mutant for _, mutant in sorted(rounds_of, key=lambda pair: -pair[0])]
    running: dict[int, tuple[int, float, Any]] = {}
    seconds = dict(zip(covered.names, covered.seconds.tolist(), strict=True))

    def finish(mutant: Mutant, told: tuple[str, str, str], took: float) -> None:
        finding = Finding(*told, round(took, 2))
        results.add(mutant.key, finding)
        done(mutant, finding)

    def start(mutant: Mutant, rounds: list[list[str]], before: float) -> None:
        base = tempfile.mkdtemp(dir=folder)
        pid, reading = sessions.attempt(
            mutant.module, ROOT / mutant.file, _change(mutant), rounds[0], seconds, f"{base}/tests"
        )
        running[reading] = (pid, time.monotonic(), (mutant, rounds[1:], before, base))

    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop()
                rounds = covered.chosen(
                    mutant.module, mutant.first_line, not _in_function(mutant), budget
                )
                rounds = [[test for test in part if test not in left_out] for part in rounds]
                rounds = [part for part in rounds if part]
                if rounds:
                    start(mutant, rounds, 0.0)
                else:
                    finish(mutant, ("not run", "", "no fast test runs it"), 0.0)
            if not running:
                continue
            for (mutant, rounds, before, base), told, took in sessions.collect(running, WALL):
                shutil.rmtree(base, ignore_errors=True)
                if told[0] == "survived" and rounds:
                    start(mutant, rounds, before + took)
                else:
                    finish(mutant, told, before + took)


def _in_function(mutant: Mutant) -> bool:
    """Whether its statement runs when a function is called, not when its file is read."""
    last = mutant.function.rpartition(".")[2]
    return mutant.kind != "default" and bool(last) and not last.lstrip("_")[:1].isupper()


def _change(mutant: Mutant) -> probes.Change:
    return lambda name, text: mutated(mutant, text)


def false_alarms(findings: Iterable[Finding]) -> set[str]:
    """Tests that are said to have noticed something and fail without any change."""
    killers = sorted({found.test for found in findings if found.verdict == "noticed"} - {""})
    if not killers:
        return set()
    with tempfile.TemporaryDirectory() as folder:
        return sessions.control(killers, f"{folder}/tests", Path(folder) / "failed.json")
