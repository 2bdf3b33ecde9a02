"""Regret: decisions judged by the truth, on cases whose answer is known."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from nexusbench.core.batch import BatchShape, Split
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.experiments.oracle import Oracle, simulated
from nexusbench.experiments.regret import Decision, judge, regret
from nexusbench.partitioners.nexus import NexusPartitionerOptions
from tests.sim.profiles import open_sim

PREFILL, DECODE = BatchShape(0, 0, ((1000, 0),)), BatchShape(10, 10_000)
SPLITS = [Split(("prefill", "decode"), (p, 10 - p)) for p in range(1, 10)]


class Known:
    """Truth in numbers: a stage takes work / SMs, decode at least ``floor``."""

    def __init__(self, floor=0.0):
        self.floor = floor

    def predict(self, shape, sms, neighbour=None):
        return 100.0 / sms if shape.chunks else max(self.floor, 40.0 / sms)


def decide(sms, *, prefill_first=True):
    return Decision(PREFILL, DECODE, prefill_first, sms)


def test_the_best_split_has_no_regret_and_breaks_nothing():
    # Decode on all 10 SMs takes 4, its bound with beta 2 is 8: at least 5 SMs.
    rules = NexusPartitionerOptions(beta=2.0, alpha=3.0)
    best = judge(decide((5, 5)), Known(), SPLITS, rules)
    assert (best.regret, best.excess, best.possible) == (0.0, 0.0, True)


def test_regret_is_what_the_target_loses():
    rules = NexusPartitionerOptions(beta=2.0)
    timid = judge(decide((4, 6)), Known(), SPLITS, rules)
    assert timid.regret == pytest.approx(5 / 4 - 1)
    assert timid.excess == 0.0


def test_a_broken_constraint_is_counted_apart_from_regret():
    rules = NexusPartitionerOptions(beta=2.0)
    greedy = judge(decide((8, 2)), Known(), SPLITS, rules)
    assert greedy.regret == 0.0  # the target even gains
    assert greedy.excess == pytest.approx(20 / 8 - 1)
    assert greedy.possible


def test_modes_and_readings_pick_the_slack():
    # Decode first: prefill within alpha of 10; alpha 2 needs 5 SMs of 10.
    rules = NexusPartitionerOptions(alpha=2.0, beta=100.0)
    assert judge(decide((5, 5), prefill_first=False), Known(), SPLITS, rules).regret == 0.0
    swapped = NexusPartitionerOptions(alpha=100.0, beta=2.0, reading="swapped")
    assert judge(decide((5, 5), prefill_first=False), Known(), SPLITS, swapped).regret == 0.0


def test_where_nothing_meets_the_bound_all_is_for_the_other_stage():
    rules = NexusPartitionerOptions(beta=1.01)
    judged = judge(decide((1, 9)), Known(), SPLITS, rules)
    assert not judged.possible
    assert judged.regret == 0.0
    assert judge(decide((9, 1)), Known(), SPLITS, rules).excess > 1


def test_the_oracle_is_the_devices_own_physics():
    device = open_sim()
    oracle = Oracle(simulated(device))
    load = device.physics.load(PREFILL, 40)
    assert oracle.predict(PREFILL, 40) == load.solo
    other = device.physics.load(DECODE, 52)
    slow = device.physics.slowdown(load, other)
    assert oracle.predict(PREFILL, 40, (DECODE, 52)) == load.solo * slow
    with pytest.raises(UsageError, match="is not simulated"):
        simulated(SimpleNamespace(spec=device.spec))


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("regret") / "t.jsonl"
    rows = [{"timestamp": 90 * i, "input_length": 900, "output_length": 60} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_truth_breaks_fewer_constraints_than_the_analytic_belief(trace):
    config = RunConfig(trace=str(trace), device="sim:l20", model="qwen2.5-3b")
    analytic = regret(config, "analytic", sample=100)
    truth = regret(config, "truth", sample=100, oracle=True)
    assert analytic.decisions > 50
    assert 0 < analytic.judged <= 100
    assert truth.broken < analytic.broken
    assert truth.mape_alone is None
    assert analytic.mape_corunning is not None
    again = regret(config, "analytic", sample=100)
    assert again == analytic  # sampling is seeded


def test_one_stream_has_no_split_to_judge(trace):
    config = RunConfig(trace=str(trace), device="sim:l20", scheduler="vllm")
    with pytest.raises(UsageError, match="one stream"):
        regret(config, "vllm")
