"""Which tests to run for a mutant, the nearest first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

REAL = ("tests/cpu", "tests/cuda", "tests/report")  # about real tokens and pages, and slow to start
FIRST_ROUND = 0.8  # seconds of the nearest tests, which notice most, and
FIRST_FILES = 4  # files of them
NEAR = 4.0  # how much nearer a test file named after the module is


@dataclass
class Coverage:
    """What one pass found: a row of marks per test."""

    names: list[str]
    seconds: np.ndarray[Any, Any]
    rows: np.ndarray[Any, Any]  # tests x marks, 0 or 1
    outside: np.ndarray[Any, Any]  # marks set while tests were collected
    ranges: dict[str, tuple[int, int]]  # module -> its marks
    lines: dict[str, dict[int, int]]  # module -> first line of a statement -> its mark

    def chosen(self, module: str, line: int, toplevel: bool, budget: float) -> list[list[str]]:
        """Rounds of tests to run for a change of the statement at ``line``; [] if no fast test runs
        it.

        First those that run it, by the share of their work that lies in the module for their time;
        then, as far as ``budget`` seconds go, those that run the module at all: what is computed
        once and kept (constants, classes, caches) is noticed by tests that come later.
        """
        first, end = self.ranges[module]
        mark = self.lines[module].get(line, -1)
        if mark < 0:
            return []
        own = self.rows[:, mark].astype(bool)
        if not own.any() and not self.outside[mark]:
            return []
        inside = self.rows[:, first:end].sum(axis=1)
        share = inside / np.maximum(self.rows.sum(axis=1), 1)
        stem = PurePath(module.replace(".", "/")).name.strip("_")
        package = module.split(".")[-2]
        near = np.array([_nearness(name, stem, package) for name in self.names])
        rank = (share + 0.02) * near / (self.seconds + 0.03)
        candidates = [i for i in np.argsort(-rank, kind="stable") if own[i] or inside[i]]
        if not toplevel:
            candidates.sort(key=lambda i: not own[i])
        picked, spent = [], 0.0
        for index in candidates:
            if spent + self.seconds[index] <= budget or not picked:
                picked.append(int(index))
                spent += self.seconds[index]
        return self._in_rounds(picked)

    def _in_rounds(self, picked: list[int]) -> list[list[str]]:
        """The nearest, of few files, then the others; file by file, so that a file's fixtures are
        made once.
        """
        rounds: list[dict[str, list[str]]] = [{}, {}]
        spent = 0.0
        for index in picked:
            spent += float(self.seconds[index])
            name = self.names[index]
            file = name.split("::")[0]
            nearest = spent <= FIRST_ROUND and (file in rounds[0] or len(rounds[0]) < FIRST_FILES)
            rounds[0 if nearest or spent == self.seconds[index] else 1].setdefault(file, []).append(
                name
            )
        return [[name for names in part.values() for name in names] for part in rounds if part]


def _nearness(test: str, stem: str, package: str) -> float:
    file = PurePath(test.split("::")[0]).stem
    words = file.split("_")
    if test.startswith(REAL):
        return 0.1
    if stem in file and len(stem) > 3:
        return NEAR
    return NEAR / 2 if package.rstrip("s") in {word.rstrip("s") for word in words} else 1.0
