"""check_partitioner: the contract of a partitioner, on made-up states and in simulated runs."""

from __future__ import annotations

import random
from collections.abc import Iterator

from nexusbench.core.batch import Batch, BatchShape, Plan, Split
from nexusbench.core.specs import GpuSpec
from nexusbench.core.state import EngineState, InFlight
from nexusbench.engine.engine import Engine
from nexusbench.kv.manager import KVCacheManager
from nexusbench.partitioners.base import Partitioner
from nexusbench.schedulers.base import Scheduler
from nexusbench.testing._errors import ConformanceError, named
from nexusbench.testing._harness import (
    LIMITS,
    PartitionerLike,
    make_partitioner,
    make_scheduler,
    tiny_device,
    tiny_gpu,
)
from nexusbench.testing._log import check_log
from nexusbench.testing._twins import check_twins, twins
from nexusbench.testing._workloads import RandomWorkload, hand_made, seeded
from nexusbench.testing.scheduler import observed_run

# The scheduler for each set of partitions that a partitioner may serve, and on a pair of GPUs.
RUNS_ON: dict[tuple[str, ...], str] = {("all",): "vllm", ("prefill", "decode"): "nexus"}
RUNS_ON_PAIR: dict[tuple[str, ...], str] = {("prefill", "decode"): "adrenaline"}
TURNS = 60
GPUS = {
    "fine granularity": tiny_gpu(num_sms=92, sm_minimum=4, sm_multiple=2),
    "coarse granularity": tiny_gpu(num_sms=132, sm_minimum=8, sm_multiple=8),
    "one legal split": tiny_gpu(num_sms=4, sm_minimum=2, sm_multiple=2),
}


def check_partitioner(partitioner: PartitionerLike, *, seed: int = 0, examples: int = 12) -> None:
    """Ask a partitioner about made-up states, then let it size the partitions of real runs.

    ``partitioner`` is a name with options (``fixed:prefill=60``), a class or a factory called with
    ``partitions`` and ``belief``. Checked are: splits are legal and for its partitions (I5); same
    questions, same answers (I6); nothing from the future (I9); the state is left alone (I11); one
    side missing is survived; no flapping under a steady load; and the invariants of whole runs.
    Raises ConformanceError, its text begins with the invariant; UsageError if there is none such.
    """
    probe = make_partitioner(partitioner, ("prefill", "decode"), tiny_device())
    runs_on = RUNS_ON if 1 in type(probe).num_gpus else RUNS_ON_PAIR
    for partitions in type(probe).serves:
        for name, gpu in GPUS.items():
            with named(f"{'/'.join(partitions)}, {name}"):
                _check_answers(partitioner, partitions, gpu, seed)
                _check_steady(partitioner, partitions, gpu)
        if partitions in runs_on:
            _check_runs(partitioner, runs_on[partitions], seed, examples)


def _state(partitioner: Partitioner, partitions: tuple[str, ...], gpu: GpuSpec) -> EngineState:
    device = tiny_device(gpu=gpu, count=type(partitioner).num_gpus[0])
    split = partitioner.initial(device.spec)
    others = [KVCacheManager(1000, 4) for _ in device.spec.pools[1:]]
    state = EngineState(device.spec, KVCacheManager(1000, 4), LIMITS, partitions, split, others)
    _check_legal(split, state, "initial")
    return state


def _check_legal(split: object, state: EngineState, call: str) -> None:
    """I5: one of the device's splits, for the partitions that there are."""
    spec, partitions = state.device, tuple(state.in_flight)
    legal = (spec.whole,) if partitions == ("all",) else spec.splits
    if not isinstance(split, Split) or split not in legal:
        raise ConformanceError("I5", f"{call}() gives {split}, which is no legal split")


def _shape(rng: random.Random, partition: str) -> BatchShape:
    decodes = 0 if partition == "prefill" else rng.randint(1, 60)
    context = decodes * rng.randint(1, 500)
    chunks = tuple(
        (rng.randint(1, 64), rng.choice((0, rng.randint(0, 900))))
        for _ in range(0 if partition == "decode" else rng.randint(1, 3))
    )
    return BatchShape(decodes, context, chunks)


def _turns(rng: random.Random, state: EngineState, count: int) -> Iterator[Plan]:
    """Plans for a state that changes as an engine's would: partitions start, go on, and end."""
    pool = state.kv
    assert isinstance(pool, KVCacheManager)
    for step in range(count):
        state.now += rng.choice((0, 1, rng.randint(1, 10**9)))
        used = pool.pool.take(rng.randint(0, pool.num_free))[0]
        plan = Plan()
        for partition, running in state.in_flight.items():
            shape = _shape(rng, partition)
            batch = Batch(partition, [], [], shape)
            choice = rng.random()
            running.clear()
            if choice < 0.4:
                running.append(InFlight(step, batch, 2))
            elif choice < 0.8:
                plan.batches.append(batch)
        yield plan
        pool.pool.release(used)


def _check_answers(
    partitioner: PartitionerLike, partitions: tuple[str, ...], gpu: GpuSpec, seed: int
) -> None:
    """Legal, deterministic, hands off; the same questions twice, with different ends."""
    answers: list[list[Split]] = []
    for ending in (1, 2):
        made = make_partitioner(partitioner, partitions, tiny_device(gpu=gpu))
        state = _state(made, partitions, gpu)
        given: list[Split] = [state.split]
        rngs = (random.Random(f"same {seed}"), random.Random(f"end {ending} {seed}"))
        for rng, count in zip(rngs, (TURNS, 5), strict=True):
            for plan in _turns(rng, state, count):
                before = _facts(state, plan)
                split = made.split(plan, state)
                if _facts(state, plan) != before:
                    raise ConformanceError("I11", f"'{made.name}' changes the state or the plan")
                _check_legal(split, state, "split")
                state.split = split
                given.append(split)
        answers.append(given[: TURNS + 1])
    if answers[0] != answers[1]:
        at = next(i for i, pair in enumerate(zip(*answers, strict=True)) if pair[0] != pair[1])
        was, now = answers[0][at], answers[1][at]
        problem = f"the same questions in the same order get different answers: {was}, then {now}"
        raise ConformanceError("I6", problem)


def _facts(state: EngineState, plan: Plan) -> object:
    flying = {
        name: [(entry.step, entry.batch.shape, entry.sms) for entry in running]
        for name, running in state.in_flight.items()
    }
    planned = [(batch.partition, batch.shape) for batch in plan.batches]
    queues = (len(state.waiting), list(state.decoding), list(state.prefilling))
    return state.now, state.split, state.limits, flying, planned, queues, state.kv.num_free


def _check_steady(partitioner: PartitionerLike, partitions: tuple[str, ...], gpu: GpuSpec) -> None:
    """Under a constant load the split changes at most once; under one that wobbles by a few
    percent, in at most a quarter of the turns.
    """
    for wobble in (0, 1):
        made = make_partitioner(partitioner, partitions, tiny_device(gpu=gpu))
        state = _state(made, partitions, gpu)
        changes = 0
        for turn in range(TURNS):
            state.now += 50_000_000
            context = 9000 + 90 * wobble * (turn % 3)
            decode = BatchShape(30, context)
            prefill = BatchShape(0, 0, ((60 + wobble * (turn % 2), 500),))
            shapes = {"prefill": prefill, "decode": decode, "all": decode}
            plan = Plan([Batch(name, [], [], shapes[name]) for name in partitions])
            split = made.split(plan, state)
            changes += split != state.split
            state.split = split
        most = TURNS // 4 if wobble else 1
        if changes > most:
            load = "a load that wobbles by 2 %" if wobble else "a constant load"
            problem = f"flaps: {changes} changes of split in {TURNS} turns under {load}"
            raise ConformanceError("contract", problem)


def _check_runs(partitioner: PartitionerLike, policy: str, seed: int, examples: int) -> None:
    """Whole runs keep every invariant, twice the same, and do not look ahead."""

    def make() -> Scheduler:
        return make_scheduler(policy)

    def run(workload: RandomWorkload) -> Engine:
        return observed_run(workload, make, partitioner, seed)

    for workload in (*hand_made(), *seeded(seed, examples)):
        with named(f"{policy}, {workload.name}"):
            engine = run(workload)
            check_log(engine)
            for split in engine.splits:
                _check_legal(split, engine.state, "split")
            if run(workload).log.digest() != engine.log.digest():
                raise ConformanceError("I6", "two runs of the same workload give different logs")
    for pair in twins(seed, examples):
        with named(f"{policy}, {pair.name}"):
            check_twins(pair, run)
