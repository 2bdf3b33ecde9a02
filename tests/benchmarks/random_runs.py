"""Random runs under an independent checker: ``python -m tests.benchmarks.random_runs``.

Every scheduler x partitioner x order x preemption, tight pools and pairs of GPUs included. Prints
each run that stalls, goes round for ever or whose event log breaks a book, and how to repeat it;
exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from itertools import islice

from tests.sim.random_runs import breaches, cases, pairs


def main() -> int:
    """Run them; how many, from which seed, and where to begin are flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first run")
    asked = parser.parse_args()
    started, bad, seen = time.perf_counter(), 0, Counter[str]()
    runs = islice(cases(asked.seed, asked.first + asked.runs), asked.first, None)
    for number, one in enumerate(runs, asked.first):
        seen[one.scheduler.partition(":")[0]] += 1
        found = breaches(one)
        if found:
            bad += 1
            print(f"run {number}: {one.scheduler} {one.partitioner}: {'; '.join(found[:3])}")
            print(f"  repeat: --seed {asked.seed} --first {number} --runs 1", flush=True)
    wall = time.perf_counter() - started
    print(
        f"{asked.runs:,} runs of {len(pairs())} pairs of plug-ins, seed {asked.seed}, in "
        f"{wall:.0f} s: {bad} with a breach or a stall"
    )
    print("runs by scheduler: " + ", ".join(f"{name} {n:,}" for name, n in sorted(seen.items())))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
