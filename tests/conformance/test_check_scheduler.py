"""check_scheduler passes what is shipped, and fails what is wrong with the right name."""

from __future__ import annotations

import pytest

from nexusbench.core.errors import UsageError
from nexusbench.partitioners.base import partitioners
from nexusbench.schedulers.base import schedulers
from nexusbench.testing import ConformanceError, check_scheduler
from nexusbench.testing.__main__ import main
from nexusbench.testing._errors import named
from nexusbench.testing._harness import make_scheduler
from nexusbench.testing._log import check_log
from nexusbench.testing._twins import check_twins, twins
from nexusbench.testing._workloads import hand_made, seeded
from nexusbench.testing.scheduler import check_starvation, observed_run
from tests.conformance import bad_schedulers as bad
from tests.examples import sample

# One partition, and two: these meet every check in the fast set, all others in the whole suite.
REPRESENTATIVES = ("nexus",)  # vllm: test_command_line


def pairs():
    """Every shipped scheduler on its own partitioner, and on every other that serves it, in order
    of arrival and shortest first.
    """
    for scheduler in schedulers.names():
        cls = schedulers.load(scheduler)
        for partitioner in partitioners.names():
            sizes = partitioners.load(partitioner)
            if cls.partitions not in sizes.serves or cls.num_gpus not in sizes.num_gpus:
                continue
            for order in ("fcfs", "spf"):
                own = cls.default_partitioner.partition(":")[0]
                usual = partitioner == own and order == "fcfs"
                fast = usual and scheduler in REPRESENTATIVES
                marks = () if fast else (pytest.mark.slow,)
                yield pytest.param(order, scheduler, partitioner, marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize(("order", "scheduler", "partitioner"), list(pairs()))
def test_shipped(order, scheduler, partitioner):
    # Where decode has few SMs, all that may go before an old prompt takes longer than the overload
    # lasts: ageing four times as fast there.
    foreign = partitioner != schedulers.load(scheduler).default_partitioner.partition(":")[0]
    ageing = ",gamma=60" if order == "spf" and foreign else ""
    check_scheduler(f"{scheduler}:order={order}{ageing}", partitioner=partitioner, examples=4)


@pytest.mark.parametrize("name", sample(schedulers.names(), 4))
def test_shipped_on_a_few_mixtures(name):
    """What is left of :func:`check_scheduler` in the fast set, for every policy."""

    def run(workload):
        return observed_run(workload, lambda: make_scheduler(name))

    tight = next(workload for workload in hand_made() if workload.name == "tight KV")
    for workload in (tight, *seeded(0, 1)):
        with named(workload.name):
            check_log(run(workload))
    *_, pair = twins(0, 1)
    with named(pair.name):
        check_twins(pair, run)


@pytest.mark.slow
@pytest.mark.parametrize("name", schedulers.names())
@pytest.mark.parametrize("order", ["lpm", "hit-rate"])
def test_shipped_with_orders_that_look_at_the_cache(name, order):
    def run(workload):
        return observed_run(workload, lambda: make_scheduler(f"{name}:order={order}"))

    for workload in (*hand_made(), *seeded(1, 6)):
        with named(workload.name):
            check_log(run(workload))
    for pair in twins(1, 4):
        with named(pair.name):
            check_twins(pair, run)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [bad.Honest, lambda: bad.TwoStreams()])
def test_classes_and_factories_are_taken(policy):
    check_scheduler(policy, examples=1)


BREACHES = [
    (bad.PeeksAtLength, "I9: "),
    (bad.PeeksThroughState, "I9: "),
    (bad.PeeksThroughGc, "I9: "),
    (bad.PeeksThroughFrames, "I9: "),
    (bad.NeverChunks, "I10: stalls"),
    (bad.NeverChunksAndSaysNothing, "I7: "),
    (bad.HoldsAndWaits, "I10: stalls"),
    (bad.Lifo, "I10: starves"),
    (bad.NeglectsOldDecodes, "I10: starves: 'r0'"),
    (bad.Mutates, "I11: "),
    (bad.MutatesQueue, "I11: "),
    (bad.MutatesInHook, "I11: "),
    (bad.PreemptsInFlight, "I11: "),
    (bad.ReschedulesInFlight, "I11: "),
    (bad.LaunchesInFlight, "I11: "),
    (bad.OverBudget, "contract: "),
    (bad.Unscheduled, "contract: "),
    (bad.Twice, "contract: schedules 'r"),
    (bad.Forgets, "contract: "),
    (bad.WrongShape, "contract: "),
    (bad.InventsPreemptions, "contract: "),
    (bad.DecodesByTrySchedule, "contract: "),
    (bad.Idles, "I7: "),
    (bad.Livelock, "I10: stalls: "),
    (bad.WakesForEver, "I10: makes no progress"),
    (bad.LoopsInside, "I10: makes no progress"),
    (bad.Random, "I6: "),
    (bad.Raises, "contract: raises ZeroDivisionError"),
    (bad.ReturnsNothing, "contract: schedule returns None"),
    (bad.TakesBlocks, "I3: "),
]


FIRST = {begins.partition(":")[0]: policy for policy, begins in reversed(BREACHES)}.values()


@pytest.mark.parametrize(
    ("policy", "begins"),
    [
        pytest.param(
            *breach, id=breach[0].__name__, marks=() if breach[0] in FIRST else pytest.mark.slow
        )
        for breach in BREACHES
    ],
)
def test_bad_policies_fail_by_name(policy, begins):
    with pytest.raises(ConformanceError) as caught:
        check_scheduler(policy, examples=2)
    assert str(caught.value).startswith(begins)
    assert "workload: " in str(caught.value)
    assert caught.value.invariant == begins.partition(":")[0]


@pytest.mark.slow
def test_opting_out_of_i7_opts_out_of_nothing_else():
    check_scheduler(bad.IdlesAndSaysSo, examples=2)


# FastServe's levels, not the order, say who goes first, and it lifts whoever is idle for too long.
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*schedulers.names()} - {"fastserve"}))
def test_spf_without_ageing_starves(name):
    check_starvation(lambda: make_scheduler(f"{name}:order=spf"))
    with pytest.raises(ConformanceError, match=r"^I10: starves: 'r15' \(160 prompt tokens"):
        check_starvation(lambda: make_scheduler(f"{name}:order=spf,gamma=0"))


def test_unknown_names_are_usage_errors():
    with pytest.raises(UsageError, match="Did you mean 'vllm'"):
        check_scheduler("vlm")
    with pytest.raises(UsageError, match="no Scheduler"):
        check_scheduler(lambda: 3)


@pytest.mark.slow
def test_command_line(capsys):
    assert main(["scheduler", "vllm", "--examples", "1"]) == 0
    assert "scheduler 'vllm' keeps the contract" in capsys.readouterr().out
    assert main(["scheduler", "vllm:order=spf,gamma=0", "--examples", "0"]) == 1
    assert "fails: I10: starves" in capsys.readouterr().err
    assert main(["partitioner", "fxed"]) == 2
    assert "Did you mean 'fixed'" in capsys.readouterr().err
