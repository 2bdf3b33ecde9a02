"""`python -m tests.mutation`: the share of mutants that the fast tests notice, by area."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.mutation import runner, sessions
from tests.mutation.mutants import AREAS, ROOT, Mutant
from tests.mutation.score import Score, table, told, write

SEED, PER_AREA, BUDGET = 1, 50, 12.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED, help="of the choice of mutants")
    parser.add_argument("--per-area", type=int, default=PER_AREA, help="mutants of each area")
    parser.add_argument("--area", action="append", choices=list(AREAS), help="only this area")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument(
        "--budget", type=float, default=BUDGET, help="seconds of tests for one mutant, at most"
    )
    parser.add_argument("--key", action="append", help="only these mutants, whatever the sample")
    parser.add_argument("--fresh", action="store_true", help="forget what was found before")
    parser.add_argument("--kills-of", help="take what an earlier run noticed (a found-*.jsonl)")
    parser.add_argument("--list", action="store_true", help="print the sample and end")
    parser.add_argument("--stale", action="store_true", help="print stale equivalents and end")
    parser.add_argument("--write", action="store_true", help="put the score into docs/mutation.md")
    return parser.parse_args()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    asked = arguments()
    os.chdir(ROOT)
    same = runner.equivalents()
    if asked.stale:
        print("\n".join(sorted(runner.stale(same))))
        return 0
    areas = asked.area or list(AREAS)
    per_area = 10**9 if asked.key else asked.per_area
    mutants = runner.sample(asked.seed, per_area, areas, {} if asked.key else same, bool(asked.key))
    if asked.key:
        mutants = [mutant for mutant in mutants if mutant.key in asked.key]
    if asked.list:
        for mutant in mutants:
            print(told(mutant))
        return 0
    runner.KEPT.mkdir(exist_ok=True)
    start = time.monotonic()
    sessions.preload()
    covered = runner.coverage(say)
    results = runner.Results(runner.whole_digest(), asked.budget, asked.fresh)
    if asked.kills_of:
        results.take_kills(asked.kills_of)
    left_out: set[str] = set()
    total = len(mutants)
    count = 0

    def done(mutant: Mutant, finding: runner.Finding) -> None:
        nonlocal count
        count += 1
        took = f"{finding.seconds:5.1f} s"
        say(f"{count}/{total} {mutant.key} {mutant.area:12} {finding.verdict:8} {took} "
            f"{finding.test or finding.how}")  # fmt: skip

    for _ in range(3):
        count = sum(mutant.key in results.found for mutant in mutants)
        runner.run(mutants, covered, results, asked.budget, asked.jobs, left_out, done)
        alarms = runner.false_alarms(results.found[mutant.key] for mutant in mutants)
        if not alarms - left_out:
            break
        say(f"fail without a change, taken back: {', '.join(sorted(alarms))}")
        left_out |= alarms
        results.forget(alarms)
    score = Score.of(mutants, results.found, asked.seed, len(same))
    for mutant in mutants:
        if results.found[mutant.key].verdict != "noticed":
            print(told(mutant, results.found[mutant.key].how))
    print(table(score))
    say(f"{time.monotonic() - start:.0f} s")
    if asked.write:
        write(score, mutants, results.found)
    return 0 if score.total.share >= 0.85 else 3


if __name__ == "__main__":
    sys.exit(main())
