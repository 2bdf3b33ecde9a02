"""Brakes that all partitioners share, and Nexus's end point for beliefs that are not monotone."""

from __future__ import annotations

import pytest

from nexusbench.core.batch import Batch, BatchShape, Plan, Split
from nexusbench.core.state import EngineState, InFlight
from nexusbench.kv.manager import KVCacheManager
from nexusbench.partitioners.base import nearest_half, shapes_to_run
from nexusbench.partitioners.fixed import FixedPartitioner, FixedPartitionerOptions
from nexusbench.partitioners.nexus import NexusPartitioner, NexusPartitionerOptions
from nexusbench.testing import tiny_device, tiny_gpu
from nexusbench.testing._harness import LIMITS

BOTH = ("prefill", "decode")
GPU = tiny_gpu(num_sms=40, sm_minimum=2, sm_multiple=1)
PREFILL, DECODE = BatchShape(0, 0, ((2048, 1000),)), BatchShape(64, 64_000)
PLAN = Plan([Batch("prefill", [], [], PREFILL), Batch("decode", [], [], DECODE)])
MS = 1_000_000


def split(prefill):
    return Split(BOTH, (prefill, 40 - prefill))


def brakes(min_interval_ms):
    made = FixedPartitioner(FixedPartitionerOptions(min_interval_ms=min_interval_ms))
    spec = tiny_device(gpu=GPU).spec
    return made, EngineState(spec, KVCacheManager(100, 4), LIMITS, BOTH, split(20))


def settle(made, state, prefill, at_ms, least_change=1):
    state.now = round(at_ms * MS)
    state.split = made.settle(split(prefill), state, least_change)
    return state.split.sms[0]


def test_the_first_change_is_free_and_the_next_waits_for_the_budget():
    made, state = brakes(10)
    assert settle(made, state, 24, 3) == 24
    assert settle(made, state, 30, 12.999) == 24
    assert settle(made, state, 30, 13) == 30
    assert settle(made, state, 24, 22.9) == 30
    assert settle(made, state, 24, 23) == 24


def test_a_wish_that_changes_nothing_spends_no_budget():
    made, state = brakes(10)
    assert settle(made, state, 24, 0) == 24
    assert settle(made, state, 24, 9, least_change=0) == 24  # asks for what is in force
    assert settle(made, state, 25, 9.5, least_change=4) == 24  # too small a change
    assert settle(made, state, 30, 10) == 30


def test_a_wish_that_came_too_early_spends_no_budget():
    made, state = brakes(10)
    assert settle(made, state, 24, 0) == 24
    assert settle(made, state, 30, 9) == 24
    assert settle(made, state, 30, 11) == 30


def test_without_a_budget_every_change_is_due():
    made, state = brakes(0)
    assert [settle(made, state, sms, 1) for sms in (24, 30, 20)] == [24, 30, 20]


@pytest.mark.parametrize(("wanted", "applied"), [(23, 20), (24, 24), (17, 20), (16, 16)])
def test_a_change_of_exactly_the_buffer_is_worth_it(wanted, applied):
    made, state = brakes(0)
    assert settle(made, state, wanted, 1, least_change=4) == applied


def test_a_new_batch_comes_before_the_one_in_flight():
    _, state = brakes(0)
    running = BatchShape(3, 30)
    state.in_flight["decode"].append(InFlight(0, Batch("decode", [], [], running), 20))
    assert shapes_to_run(Plan([PLAN.batches[0]]), state) == {"prefill": PREFILL, "decode": running}
    assert shapes_to_run(PLAN, state) == {"prefill": PREFILL, "decode": DECODE}


class Measured:
    """A belief that is not monotone: ns of decode by its own SMs, and what it was asked."""

    monotone = False

    def __init__(self, decode, prefill=None):
        self.times = {"prefill": prefill or decode, "decode": decode}
        self.asked = []

    def predict(self, shape, sms, neighbour=None):
        self.asked.append((sms, neighbour))
        return self.times["prefill" if shape.chunks else "decode"][sms]

    def predict_splits(self, shape, sms, neighbour=None, neighbour_sms=()):
        self.asked.append((tuple(sms), neighbour, tuple(neighbour_sms)))
        return [self.times["prefill" if shape.chunks else "decode"][own] for own in sms]


def controller(belief, **options):
    made = NexusPartitioner(NexusPartitionerOptions(delta=0, **options), belief=belief)
    spec = tiny_device(gpu=GPU).spec
    return made, EngineState(spec, KVCacheManager(100, 4), LIMITS, BOTH, made.initial(spec))


STEEP = [1000.0 * (41 - sms) for sms in range(41)]


def test_where_a_bent_belief_meets_no_slack_the_other_stage_gets_the_most_it_can():
    made, state = controller(Measured(STEEP), alpha=1, beta=1)
    assert made.split(PLAN, state).sms == (2, 38)
    state.kv.pool.take(90)
    assert made.split(PLAN, state).sms == (38, 2)


def test_a_bent_belief_is_asked_for_every_split():
    """Decode is fast enough on 5 and from 12 SMs on: the fewest count, whatever lies between."""
    decode = [2.0] * 41
    decode[5] = 1.0
    decode[12:] = [1.0] * 29
    belief = Measured(decode, prefill=[1.0] * 41)
    made, state = controller(belief, beta=1.5)
    assert made.split(PLAN, state).sms == (35, 5)
    every = tuple(range(2, 39))
    assert belief.asked == [
        (40, None), (every, PREFILL, tuple(40 - own for own in every)),
    ]  # fmt: skip


def test_a_bent_belief_may_be_asked_without_a_neighbour():
    belief = Measured([1.0] * 41)
    made, state = controller(belief, contention=False)
    assert made.split(PLAN, state).sms == (38, 2)
    assert belief.asked == [(40, None), (tuple(range(2, 39)), None, ())]


def test_a_time_of_exactly_the_slack_is_within_it():
    decode = [1.5 if sms < 20 else 1.0 for sms in range(41)]
    for monotone in (True, False):
        belief = Measured(decode)
        belief.monotone = monotone
        made, state = controller(belief, beta=1.5)
        assert made.split(PLAN, state).sms == (38, 2)
        made, state = controller(belief, beta=1.4999)
        assert made.split(PLAN, state).sms == (20, 20)


def test_half_is_of_the_first_side_where_a_split_leaves_sms_idle():
    """A profile may hold splits that do not add up to all SMs."""
    thirds, halves = Split(BOTH, (10, 20)), Split(BOTH, (20, 10))
    assert nearest_half([thirds, halves], 40) is halves
    assert nearest_half([split(18), split(22)], 40) == split(18)
