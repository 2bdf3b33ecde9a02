"""Random runs under an independent checker: ``python -m tests.benchmarks.random_runs``.

Every scheduler x partitioner x order x preemption, tight pools and pairs of GPUs included. Prints
each run that stalls, goes round for ever or whose event log breaks a book, and how to repeat it;
then how many runs each of them got. Exit code 1 if there is a breach, or if a combination had none
though there were runs enough for all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from itertools import islice

from nexusbench.schedulers.base import schedulers
from tests.sim.random_runs import ORDERS, PREEMPTIONS, Case, breaches, cases, pairs, turns

LINE = 100


class Coverage:
    """How many runs there were of what."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.combinations: Counter[tuple[str, ...]] = Counter()

    def add(self, one: Case) -> None:
        """Count a run under each heading."""
        scheduler, _, options = one.scheduler.partition(":")
        partitioner = one.partitioner.partition(":")[0]
        given = dict(option.split("=", 1) for option in options.split(","))
        gpus = schedulers.load(scheduler).num_gpus
        room = one.room
        for heading, value in (
            ("scheduler", scheduler),
            ("partitioner", partitioner),
            ("order", given["order"]),
            ("preemption", given["preemption"]),
            ("GPUs", "a pair" if gpus > 1 else "one"),
            ("pool", "for one request" if room < 1.5 else "for two" if room < 2.5 else "for more"),
            ("prefix cache", "on" if one.setting.prefix_caching else "off"),
            ("loop", "closed" if one.setting.concurrency else "open"),
        ):
            self.counts.setdefault(heading, Counter())[value] += 1
        self.combinations[scheduler, partitioner, given["order"], given["preemption"]] += 1

    def missing(self) -> int:
        """Combinations of scheduler, partitioner, order and preemption that had no run."""
        return len(pairs()) * len(ORDERS) * len(PREEMPTIONS) - len(self.combinations)

    def table(self) -> str:
        """A line for each heading, and one for how evenly the combinations were tried."""
        lines = []
        for heading, counts in self.counts.items():
            line = f"{heading:<13}"
            for word in [f"{name} {count:,}" for name, count in sorted(counts.items())]:
                if len(line) + len(word) + 2 > LINE:
                    lines.append(line)
                    line = " " * 13
                line += ("  " if line.strip() not in ("", heading) else "") + word
            lines.append(line)
        fewest = 0 if self.missing() else min(self.combinations.values())
        lines.append(
            f"{len(self.combinations):,} combinations of scheduler, partitioner, order and "
            f"preemption, {self.missing()} missing, {fewest} runs or more of each"
        )
        return "\n".join(lines)


def main() -> int:
    """Run them; how many, from which seed, and where to begin are flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first run")
    parser.add_argument("--only-count", action="store_true", help="run nothing, show the table")
    asked = parser.parse_args()
    started, bad, seen = time.perf_counter(), 0, Coverage()
    runs = islice(cases(asked.seed, asked.first + asked.runs), asked.first, None)
    for number, one in enumerate(runs, asked.first):
        seen.add(one)
        found = [] if asked.only_count else breaches(one)
        if found:
            bad += 1
            print(f"run {number}: {one.scheduler} {one.partitioner}: {'; '.join(found[:3])}")
            print(f"  repeat: --seed {asked.seed} --first {number} --runs 1", flush=True)
    wall = time.perf_counter() - started
    did = (
        "drawn, not run" if asked.only_count else f"in {wall:.0f} s: {bad} with a breach or a stall"
    )
    print(f"{asked.runs:,} runs of {len(pairs())} pairs of plug-ins, seed {asked.seed}, {did}")
    print(seen.table())
    return 1 if bad or (asked.runs >= len(turns()) and seen.missing()) else 0


if __name__ == "__main__":
    sys.exit(main())
