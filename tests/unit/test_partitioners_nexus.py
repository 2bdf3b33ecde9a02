"""Nexus's controller: the end point of Algorithm 1, modes, hysteresis, both readings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.core.batch import Batch, BatchShape, Plan, Split
from nexusbench.core.errors import UsageError
from nexusbench.core.state import EngineState, InFlight
from nexusbench.costs.roofline import Roofline
from nexusbench.kv.manager import KVCacheManager
from nexusbench.partitioners.fixed import FixedPartitioner, FixedPartitionerOptions
from nexusbench.partitioners.nexus import NexusPartitioner, NexusPartitionerOptions
from nexusbench.partitioners.whole import WholePartitioner
from nexusbench.testing import tiny_device, tiny_gpu, tiny_model
from nexusbench.testing._harness import LIMITS

PREFILL = BatchShape(0, 0, ((2048, 1000),))
DECODE = BatchShape(64, 64_000)
BOTH = ("prefill", "decode")
GPU = tiny_gpu(num_sms=40, sm_minimum=2, sm_multiple=1)


class Table:
    """A belief given as numbers: ns of each side by its own SMs."""

    def __init__(self, prefill, decode):
        self.times = {"prefill": prefill, "decode": decode}
        self.monotone = True

    def predict(self, shape, sms, neighbour=None):
        return self.times["prefill" if shape.chunks else "decode"][sms]

    def predict_splits(self, shape, sms, neighbour=None, neighbour_sms=()):
        return [self.predict(shape, own) for own in sms]


def nexus(belief, gpu=GPU, **options):
    made = NexusPartitioner(NexusPartitionerOptions(**options), belief=belief)
    device = tiny_device(gpu=gpu)
    kv = KVCacheManager(100, 4)
    return made, EngineState(device.spec, kv, LIMITS, BOTH, made.initial(device.spec))


def plan(*shapes):
    names = ["prefill" if shape.chunks else "decode" for shape in shapes]
    return Plan([Batch(n, [], [], shape) for n, shape in zip(names, shapes, strict=True)])


def use_kv(state, share):
    state.kv.pool.take(round(100 * share) - state.kv.num_used)


@st.composite
def falling(draw):
    """Times by SMs, 0 to 40, that never rise."""
    steps = draw(st.lists(st.floats(0, 5), min_size=41, max_size=41))
    base = draw(st.floats(0.5, 50))
    times = [base]
    for step in steps:
        times.append(times[-1] + step)
    return times[:0:-1]


def algorithm_1(belief, spec, start, target, slack):
    """Lines 15 to 32 as printed, in steps of one split instead of one percent."""
    other = "decode" if target == "prefill" else "prefill"
    shape = DECODE if other == "decode" else PREFILL
    legal = [split for split in spec.splits if not split.overlapping]
    if target == "decode":
        legal = legal[::-1]  # in order of the target's growing share
    at = legal.index(start)
    bound = slack * belief.predict(shape, spec.num_sms)
    while at > 0 and belief.predict(shape, legal[at].of(other)) > bound:
        at -= 1
    while at + 1 < len(legal) and belief.predict(shape, legal[at + 1].of(other)) <= bound:
        at += 1
    return legal[at]


@given(
    falling(),
    falling(),
    st.integers(0, 36),
    st.booleans(),
    st.sampled_from(["literal", "swapped"]),
    st.floats(1, 3),
    st.floats(1, 3),
)
def test_bisection_ends_where_algorithm_1_ends(prefill, decode, start, full, reading, alpha, beta):
    belief = Table(prefill, decode)
    made, state = nexus(belief, reading=reading, alpha=alpha, beta=beta, delta=0)
    legal = [split for split in state.device.splits if not split.overlapping]
    state.split = legal[start]
    use_kv(state, 0.9 if full else 0.1)
    target = "decode" if full else "prefill"
    literal = {"prefill": beta, "decode": alpha}[target]
    swapped = {"prefill": alpha, "decode": beta}[target]
    slack = literal if reading == "literal" else swapped
    expected = algorithm_1(belief, state.device, state.split, target, slack)
    assert made.split(plan(PREFILL, DECODE), state) == expected


@given(st.integers(64, 4096), st.integers(0, 8000), st.integers(1, 200), st.integers(10, 4000))
def test_bisection_holds_for_the_roofline_too(tokens, context, decodes, length):
    """Its contention depends on both sides, so that it is monotone is not obvious."""
    belief = Roofline(gpu=GPU, model=tiny_model())
    prefill, decode = BatchShape(0, 0, ((tokens, context),)), BatchShape(decodes, decodes * length)
    for share in (0.1, 0.9):
        made, state = nexus(belief, delta=0)
        use_kv(state, share)
        chosen = made.split(plan(prefill, decode), state)
        target, other = (prefill, decode) if share < 0.7 else (decode, prefill)
        side, slack = (1, 1.1) if share < 0.7 else (0, 1.3)
        bound = slack * belief.predict(other, 40)

        def meets(split, target=target, other=other, side=side, bound=bound):
            own = split.sms[side]
            return belief.predict(other, own, (target, 40 - own)) <= bound

        legal = [split for split in state.device.splits if not split.overlapping]
        good = [split.sms[side] for split in legal if meets(split)]
        expected = min(good) if good else max(split.sms[side] for split in legal)
        assert chosen.sms[side] == expected


def test_the_mode_follows_kv_use():
    made, state = nexus(Table([1.0] * 41, [1.0] * 41), kv_switch=0.7, delta=0)
    use_kv(state, 0.70)
    assert made.split(plan(PREFILL, DECODE), state).sms == (38, 2)
    assert made.mode == "prefill-prioritized"
    use_kv(state, 0.71)
    assert made.split(plan(PREFILL, DECODE), state).sms == (2, 38)
    assert made.mode == "decode-prioritized"


@pytest.mark.parametrize(("now", "chosen"), [(54, 54), (55, 50), (46, 46), (45, 50)])
def test_the_default_hysteresis_is_five_percent_of_the_sms(now, chosen):
    """As docs/decisions/0005 has it; on 100 SMs a change of 4 is not worth it, one of 5 is."""
    half = [10.0 if sms < 50 else 1.0 for sms in range(101)]  # decode needs 50 SMs
    gpu = tiny_gpu(num_sms=100, sm_minimum=2, sm_multiple=1)
    made, state = nexus(Table(half, half), gpu)
    state.split = Split(BOTH, (now, 100 - now))
    assert made.split(plan(PREFILL, DECODE), state).sms[0] == chosen


def test_where_no_split_meets_the_slack_the_other_stage_gets_the_most_it_can():
    steep = [1000.0 * (41 - sms) for sms in range(41)]
    made, state = nexus(Table(steep, steep), delta=0, alpha=1, beta=1)
    assert made.split(plan(PREFILL, DECODE), state).sms == (2, 38)
    use_kv(state, 0.9)
    assert made.split(plan(PREFILL, DECODE), state).sms == (38, 2)


def test_readings_swap_the_slacks():
    """With the printed constants prefill gets fewer SMs as the target than decode leaves it."""
    inverse = [1000.0 / max(1, sms) for sms in range(41)]
    sms = {}
    for reading in ("literal", "swapped"):
        for share in (0.1, 0.9):
            made, state = nexus(Table(inverse, inverse), reading=reading, delta=0)
            use_kv(state, share)
            sms[reading, share] = made.split(plan(PREFILL, DECODE), state).sms[0]
    # Decode within 1.1 of its best needs 37 of 40 SMs, prefill within 1.3 needs 31.
    assert sms == {("literal", 0.1): 3, ("literal", 0.9): 31,
                   ("swapped", 0.1): 9, ("swapped", 0.9): 37}  # fmt: skip


def needs(sms):
    """A belief under which decode needs exactly this many SMs."""
    return Table([1.0] * 41, [2.0 if n < sms else 1.0 for n in range(41)])


def test_hysteresis_compares_with_the_split_in_force():
    made, state = nexus(needs(20), delta=10)  # 4 of 40 SMs
    assert state.split.sms == (20, 20)
    for decode, expected in ((22, 20), (23, 20), (24, 16), (26, 16), (27, 16), (28, 12), (25, 12)):
        made.belief = needs(decode)
        state.split = made.split(plan(PREFILL, DECODE), state)
        assert state.split.sms[0] == expected, f"decode needs {decode}"


def test_hysteresis_is_at_least_one_step_of_the_device():
    coarse = tiny_gpu(num_sms=132, sm_minimum=8, sm_multiple=8)
    made, _ = nexus(needs(20), coarse, delta=1)
    assert made._least_change == 8


def test_the_shortest_time_between_two_changes():
    made, state = nexus(needs(30), min_interval_ms=10)
    state.split = made.split(plan(PREFILL, DECODE), state)
    assert state.split.sms == (10, 30)
    made.belief = needs(10)
    state.now = 9_999_999
    assert made.split(plan(PREFILL, DECODE), state).sms == (10, 30)
    state.now = 10_000_000
    assert made.split(plan(PREFILL, DECODE), state).sms == (30, 10)


@pytest.mark.parametrize("shapes", [(), (PREFILL,), (DECODE,)])
def test_without_a_neighbour_the_split_stays(shapes):
    made, state = nexus(needs(30))
    assert made.split(plan(*shapes), state) is state.split


def test_what_is_in_flight_is_a_neighbour():
    made, state = nexus(needs(30))
    state.in_flight["decode"].append(InFlight(0, Batch("decode", [], [], DECODE), 20))
    assert made.split(plan(PREFILL), state).sms == (10, 30)


@pytest.mark.parametrize(("percent", "sms"), [(50, 20), (1, 2), (99, 38), (33, 13)])
def test_fixed_takes_the_nearest_legal_split(percent, sms):
    made = FixedPartitioner(FixedPartitionerOptions(prefill=percent))
    assert made.initial(tiny_device(gpu=GPU).spec).sms == (sms, 40 - sms)


def test_whole_gives_everybody_everything():
    spec = tiny_device(gpu=GPU).spec
    assert WholePartitioner(partitions=("all",)).initial(spec) == Split(("all",), (40,))
    both = WholePartitioner(partitions=BOTH).initial(spec)
    assert both.sms == (40, 40)
    assert both.overlapping


@pytest.mark.parametrize("make", [FixedPartitioner, NexusPartitioner])
def test_a_device_that_cannot_be_split_is_a_usage_error(make):
    spec = tiny_device(gpu=tiny_gpu(num_sms=8, sm_minimum=8, sm_multiple=8)).spec
    with pytest.raises(UsageError, match="8 SMs do not make two partitions"):
        make().initial(spec)
