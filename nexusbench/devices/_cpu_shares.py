"""Splits of a CPU: by cores, or, where there are few, by thread priority on shared cores."""

from __future__ import annotations

from nexusbench.core.batch import Split

PAIR = ("prefill", "decode")
PERCENT = 100
MOST_SPLITS = 16  # each is a thread team of its own; beyond this, finer steps decide nothing
# Linux's weights of niceness 0 to 10 (kernel/sched/core.c, sched_prio_to_weight): a thread gets its
# weight's share of a core that another one competes for.
WEIGHTS = (1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110)
NICE_STEPS = (10, 8, 6, 4, 2)


def core_splits(cores: int, per_core: int = 1) -> tuple[Split, ...]:
    """Every legal (prefill, decode) split of ``cores`` logical cores, and both sides on all.

    In steps of one core up to 16 cores, of more beyond; of whole physical cores (``per_core``
    threads each) where that leaves a choice.
    """
    step = -(-cores // MOST_SPLITS)
    if cores >= 2 * per_core:
        step = -(-step // per_core) * per_core
    apart = [Split(PAIR, (own, cores - own)) for own in range(step, cores, step)]
    return (*apart, Split(PAIR, (cores, cores), overlapping=True))


def shared_splits() -> tuple[Split, ...]:
    """Shares of the time of all cores in percent, one for each difference of niceness."""
    few = [Split(PAIR, (share, PERCENT - share)) for share in map(lesser_share, NICE_STEPS)]
    many = [Split(PAIR, (split.sms[1], split.sms[0])) for split in reversed(few)]
    even = Split(PAIR, (PERCENT // 2, PERCENT - PERCENT // 2))
    both = Split(PAIR, (PERCENT, PERCENT), overlapping=True)
    return (*few, even, *many, both)


def lesser_share(nice: int) -> int:
    """Percent of a core that the nicer of two busy threads gets."""
    return round(PERCENT * WEIGHTS[nice] / (WEIGHTS[0] + WEIGHTS[nice]))


def nice_of(percent: int) -> int:
    """The niceness of the side that has ``percent``; the side with more has none."""
    if percent * 2 >= PERCENT:
        return 0
    return min(NICE_STEPS, key=lambda nice: abs(lesser_share(nice) - percent))
