"""What decisions cost: each one against the best legal split, judged by the truth.

On a simulated device every split of a decision can be asked for its true times. The policy's own
objective and constraint are applied (Nexus section 4.1.2): minimise the target stage's time while
the other stays within its slack of its time on all SMs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from nexusbench.core.batch import BatchShape, Plan, Split
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.specs import DeviceSpec
from nexusbench.core.state import EngineState
from nexusbench.devices.base import Device
from nexusbench.experiments.oracle import Oracle, make_oracle, not_simulated, simulated
from nexusbench.metrics.summary import Summary
from nexusbench.partitioners.base import Partitioner, shapes_to_run
from nexusbench.partitioners.nexus import NexusPartitionerOptions
from nexusbench.serving.assembly import assemble
from nexusbench.serving.belief import make_belief
from nexusbench.serving.opening import open_device
from nexusbench.serving.resolve import model_on_device, resolve_device
from nexusbench.serving.runner import Progress, RunResult, serve

TOLERANCE = 1e-9  # of the bound: a split that just meets it meets it
PAIR = ("prefill", "decode")


class Decision(msgspec.Struct, frozen=True):
    """A decision that had something to decide: both stages were about to run."""

    prefill: BatchShape
    decode: BatchShape
    prefill_first: bool
    sms: tuple[int, int]  # chosen


class DecisionJudgement(msgspec.Struct, frozen=True):
    """``regret``: how much longer the target takes than under the best split (share, at least 0);
    ``excess``: how far the other stage is beyond its bound (share, 0 if it is not); ``possible``:
    whether any legal split meets the bound.
    """

    regret: float
    excess: float
    possible: bool


class Regret(msgspec.Struct, frozen=True):
    """One belief (or partitioner) on one trace: what it decided and what followed.

    Shares in percent; ``broken`` counts decisions whose constraint does not hold in truth though
    some split would meet it. Latencies in ms, from the run's summary.
    """

    label: str
    partitioner: str
    belief: str | None
    decisions: int
    judged: int
    regret_mean: float
    regret_p95: float
    broken: float
    excess_mean: float
    impossible: float
    mape_alone: float | None
    mape_corunning: float | None
    ttft_mean: float | None
    ttft_p95: float | None
    tbt_mean: float | None
    tbt_p99: float | None
    output_throughput: float | None
    repartitions: float | None


class Watched(Partitioner):
    """A partitioner that behaves as ``inner`` and remembers what it decided."""

    def __init__(self, inner: Partitioner, most: int, seed: int) -> None:
        self.inner = inner
        self.options, self.partitions, self.belief = inner.options, inner.partitions, inner.belief
        self.count = 0
        self.kept: list[Decision] = []
        self._most, self._random = most, random.Random(seed)

    @property
    def name(self) -> str:
        """The inner one's."""
        return self.inner.name

    @property
    def mode(self) -> str:  # type: ignore[override]
        """The inner one's."""
        return self.inner.mode

    def initial(self, spec: DeviceSpec) -> Split:
        """The inner one's."""
        return self.inner.initial(spec)

    def split(self, plan: Plan, state: EngineState) -> Split:
        """The inner one's, remembered if both stages are to run: a fair sample of all (reservoir
        sampling).
        """
        chosen = self.inner.split(plan, state)
        shapes = shapes_to_run(plan, state)
        if all(side in shapes for side in PAIR):
            position = self.count if self.count < self._most else self._random.randrange(self.count)
            self.count += 1
            if position < self._most:
                decision = Decision(
                    shapes["prefill"],
                    shapes["decode"],
                    state.kv.usage <= self._objective.kv_switch,
                    (chosen.of("prefill"), chosen.of("decode")),
                )
                self.kept[position : position + 1] = [decision]
        return chosen

    @property
    def _objective(self) -> NexusPartitionerOptions:
        return objective(self.inner)


def objective(partitioner: Partitioner) -> NexusPartitionerOptions:
    """Whose slacks and switch a decision is judged by: Nexus's, with the run's own constants."""
    options = partitioner.options
    return options if isinstance(options, NexusPartitionerOptions) else NexusPartitionerOptions()


def judge(
    decision: Decision, truth: Oracle, splits: Sequence[Split], rules: NexusPartitionerOptions
) -> DecisionJudgement:
    """``decision`` against the best of ``splits`` (disjoint ones) in truth."""
    literal = decision.prefill_first == (rules.reading == "literal")
    slack = rules.beta if literal else rules.alpha
    target, other = (
        (decision.prefill, decision.decode)
        if decision.prefill_first
        else (decision.decode, decision.prefill)
    )
    side = 0 if decision.prefill_first else 1
    all_sms = max(sum(split.sms) for split in splits)
    bound = slack * truth.predict(other, all_sms) * (1.0 + TOLERANCE)

    def times(sms: tuple[int, ...]) -> tuple[float, float]:
        mine, theirs = sms[side], sms[1 - side]
        return (
            truth.predict(target, mine, (other, theirs)),
            truth.predict(other, theirs, (target, mine)),
        )

    made = [times(split.sms) for split in splits]
    feasible = [goal for goal, held in made if held <= bound]
    got, held = times(decision.sms)
    # Where nothing meets the bound, the policy is to give the other stage all it can.
    best = min(feasible) if feasible else min(made, key=lambda pair: pair[1])[0]
    return DecisionJudgement(
        max(0.0, got / best - 1.0), max(0.0, held / bound - 1.0), bool(feasible)
    )


def check_beliefs(configs: Iterable[RunConfig]) -> None:
    """Raise what :func:`regret` would for the device or belief of any of ``configs``, which share
    their device and model: before the first of them is served.
    """
    device: Device | None = None
    try:
        for config in configs:
            name = resolve_device(config.device)
            if name.partition(":")[0] in ("cpu", "cuda"):
                raise not_simulated(name)  # opening it would take long, or have faults of its own
            what = model_on_device(config)
            if device is None:
                device, _ = open_device(what)
                simulated(device)
            make_belief(what.config, device, what.model)
    finally:
        if device is not None:
            device.close()


def regret(
    config: RunConfig,
    label: str,
    *,
    sample: int = 300,
    oracle: bool = False,
    progress: Progress | None = None,
) -> Regret:
    """Serve ``config`` and judge a sample of its decisions.

    ``oracle`` replaces the belief by the truth. Raises UsageError unless the device is simulated
    and the scheduler runs prefill beside decode.
    """
    return judged_run(config, label, sample=sample, oracle=oracle, progress=progress)[0]


def judged_run(
    config: RunConfig,
    label: str,
    *,
    sample: int = 300,
    oracle: bool = False,
    progress: Progress | None = None,
) -> tuple[Regret, RunResult]:
    """:func:`regret`, and the run that was judged."""
    assembly = assemble(config, make_oracle if oracle else make_belief)
    try:
        device = simulated(assembly.device)
        if assembly.scheduler.partitions != PAIR:
            raise UsageError(
                f"scheduler '{assembly.scheduler.name}' has one stream: there is no split to judge"
            )
        watched = Watched(assembly.partitioner, sample, config.seed)
        assembly.partitioner = watched
        result = serve(assembly, None, progress)
        splits = [split for split in device.spec.splits if not split.overlapping]
        truth, rules = Oracle(device), objective(watched.inner)
        judged = [judge(decision, truth, splits, rules) for decision in watched.kept]
    finally:
        assembly.device.close()
    row = _result(label, watched, judged, result.summary, scored=not oracle)
    return row, result


def _result(
    label: str,
    watched: Watched,
    judged: Sequence[DecisionJudgement],
    summary: Summary,
    *,
    scored: bool,
) -> Regret:
    def value(tag: str, statistic: str) -> float | None:
        found = summary.value(tag, statistic)
        return None if found is None else float(found)

    def over(get: Callable[[DecisionJudgement], float], reduce: Callable[[Any], Any]) -> float:
        values = [get(j) for j in judged]
        return 100.0 * float(reduce(values)) if values else 0.0

    broken = [j.excess > 0 and j.possible for j in judged]
    excesses = [j.excess for j, b in zip(judged, broken, strict=True) if b]
    belief = watched.inner.belief
    return Regret(
        label=label,
        partitioner=watched.name,
        belief=None if belief is None else belief.name,
        decisions=watched.count,
        judged=len(judged),
        regret_mean=over(lambda j: j.regret, np.mean),
        regret_p95=over(lambda j: j.regret, lambda v: np.percentile(v, 95)),
        broken=100.0 * float(np.mean(broken)) if broken else 0.0,
        excess_mean=100.0 * float(np.mean(excesses)) if excesses else 0.0,
        impossible=over(lambda j: not j.possible, np.mean),
        mape_alone=value("belief_error_alone", "mean") if scored else None,
        mape_corunning=value("belief_error_corunning", "mean") if scored else None,
        ttft_mean=value("ttft", "mean"),
        ttft_p95=value("ttft", "p95"),
        tbt_mean=value("tbt", "mean"),
        tbt_p99=value("tbt", "p99"),
        output_throughput=value("output_throughput", "value"),
        repartitions=value("repartitions", "value"),
    )
