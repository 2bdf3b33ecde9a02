"""MuxWise's dispatcher: the fewest SMs with which decode's worst case keeps the bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.core.batch import Batch, BatchShape, Plan
from nexusbench.core.errors import InputError
from nexusbench.core.request import Request
from nexusbench.core.state import EngineState, InFlight, Limits
from nexusbench.kv.manager import KVCacheManager
from nexusbench.partitioners.muxwise import MuxwisePartitioner, MuxwisePartitionerOptions
from nexusbench.testing import tiny_device, tiny_gpu

GPU = tiny_gpu(num_sms=40, sm_minimum=2, sm_multiple=1)
BOTH = ("prefill", "decode")
PREFILL, DECODE = BatchShape(0, 0, ((2048, 1000),)), BatchShape(16, 16_000)
MS = 1_000_000
SOMEBODY = Request("r0", 0, 0, 8, 8, 16)


class Inverse:
    """A decode step of 600 ms on one SM, inverse in SMs; a prefill does not matter."""

    learns = False

    def __init__(self, monotone=True):
        self.monotone = monotone

    def predict(self, shape, sms, neighbour=None):
        return 600.0 * MS / sms


def muxwise(belief=None, tbt_ms=None, **options):
    made = MuxwisePartitioner(MuxwisePartitionerOptions(**options), belief=belief or Inverse())
    spec = tiny_device(gpu=GPU).spec
    limits = Limits(8, 64, 1024, tbt_ms=tbt_ms)
    state = EngineState(spec, KVCacheManager(100, 4), limits, BOTH, made.initial(spec))
    return made, state


def decide(made, state, prefill=PREFILL, decode=DECODE):
    batches = Batch("prefill", [], [], prefill), Batch("decode", [SOMEBODY], [], decode)
    return made.split(Plan(list(batches)), state), batches


def observe(made, state, slowdown, decode=DECODE):
    """A decode step beside a prefill that took ``slowdown`` times what the belief says."""
    split, (prefill, batch) = decide(made, state, decode=decode)
    state.split = split
    state.now += round(slowdown * made.belief.predict(decode, split.of("decode")))
    made.completed(batch, state.now)
    made.completed(prefill, state.now)


@pytest.mark.parametrize("monotone", [True, False])
def test_the_smallest_decode_partition_that_surely_keeps_the_bound(monotone):
    made, state = muxwise(Inverse(monotone), tbt_ms=50.0, guard=1.3)
    # 600 x 1.3 / 50 = 15.6 SMs.
    assert decide(made, state)[0].sms == (24, 16)
    made, state = muxwise(Inverse(monotone), tbt_ms=50.0, guard=1.0)
    assert decide(made, state)[0].sms == (28, 12)


@given(
    st.floats(5, 500), st.lists(st.tuples(st.floats(0.5, 4), st.integers(1, 2000)), max_size=20),
    st.integers(1, 200),
)  # fmt: skip
def test_the_worst_case_never_breaks_a_bound_that_a_legal_split_keeps(bound, seen, decodes):
    made, state = muxwise(tbt_ms=bound)
    for slowdown, count in seen:
        observe(made, state, slowdown, BatchShape(count, 1000 * count))
    decode = BatchShape(decodes, 1000 * decodes)
    chosen = decide(made, state, decode=decode)[0]
    legal = [split for split in state.device.splits if not split.overlapping]
    keep = [s for s in legal if made.worst(PREFILL, decode, s) <= bound * MS]
    if keep:
        assert chosen in keep
        assert chosen.of("decode") == min(split.of("decode") for split in keep)
    else:
        assert chosen.of("decode") == max(split.of("decode") for split in legal)


def test_an_observed_slow_down_raises_the_guard_of_its_cell_alone():
    made, state = muxwise(tbt_ms=50.0, guard=1.0)
    assert decide(made, state)[0].of("decode") == 12
    observe(made, state, 1.5)
    assert decide(made, state)[0].of("decode") == 13  # nobody has seen 13 SMs yet
    bigger = BatchShape(17, 17_000)
    assert decide(made, state, decode=bigger)[0].of("decode") == 12
    observe(made, state, 1.0)
    assert made.worst(PREFILL, DECODE, decide(made, state)[0]) <= 50.0 * MS
    twelve = next(s for s in state.device.splits if s.of("decode") == 12)
    assert made.worst(PREFILL, DECODE, twelve) == pytest.approx(75.0 * MS)


def test_steps_alone_and_steps_on_shared_sms_teach_nothing():
    made, state = muxwise(tbt_ms=50.0, guard=1.0)
    alone = Batch("decode", [SOMEBODY], [], DECODE)
    made.split(Plan([alone]), state)
    made.completed(alone, 900 * MS)
    # A prefill that was alone has all SMs until it ends: that is the switch, not contention.
    state.now = 1000 * MS
    state.in_flight["prefill"].append(InFlight(0, Batch("prefill", [], [], PREFILL), 40))
    beside = Batch("decode", [SOMEBODY], [], DECODE)
    made.split(Plan([beside]), state)
    made.completed(beside, 2000 * MS)
    assert decide(made, state)[0].of("decode") == 12


def test_where_the_bound_comes_from():
    made, state = muxwise(tbt_ms=50.0, guard=1.0)
    assert decide(made, state)[0].of("decode") == 12
    made, state = muxwise(guard=1.0)  # the paper's 50 ms
    assert decide(made, state)[0].of("decode") == 12
    made = MuxwisePartitioner(MuxwisePartitionerOptions(tbt_ms=100.0, guard=1.0), belief=Inverse())
    made.initial(state.device)
    assert decide(made, state)[0].of("decode") == 6


@pytest.mark.parametrize("options", [{"tbt_ms": 0.0}, {"tbt_ms": -1.0}, {"guard": 0.9}])
def test_impossible_options_are_named(options):
    with pytest.raises(InputError, match=next(iter(options))):
        MuxwisePartitioner(MuxwisePartitionerOptions(**options), belief=Inverse())
