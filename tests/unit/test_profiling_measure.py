"""Measuring one setting: when to stop, what is marked, when a neighbour does not count."""

from __future__ import annotations

import itertools
import random

import pytest
from profiling_fakes import POOL, FakeDevice

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.profiles.points import PointSetting
from nexusbench.profiling._statistics import estimate, falling, find_outliers, half_width
from nexusbench.profiling.desk import MOST_REPEATS, BatchDesk, ShapedBatch
from nexusbench.profiling.measure import Measurer, NothingMeasured, Readers, SamplingRule

SAMPLING = SamplingRule(5, 40, 0.01, 1e9)
PREFILL, DECODE = BatchShape(0, 0, ((256, 0),)), BatchShape(8, 8 * 100)


def measurer(duration, sampling=SAMPLING, late=None, readers=None):
    return Measurer(BatchDesk(FakeDevice(duration, late), POOL), sampling, readers)


def script(values):
    """Durations one after the other."""
    values = itertools.cycle(values)
    return lambda batch, sms: next(values)


def pair(sms=8):
    return PointSetting("pair", DECODE, sms, PREFILL, 16 - sms)


@pytest.mark.parametrize(("own", "beside"), [(DECODE, DECODE), (PREFILL, PREFILL)])
def test_two_batches_of_one_phase_share_all_sms(own, beside):
    """Each on a partition of its own, decodes several steps to a launch."""
    other = BatchShape(4, 400) if own is DECODE else BatchShape(0, 0, ((128, 0),))
    desk = measurer(lambda batch, sms: 1000)
    setting = PointSetting("streams", own, 16, other, 16)
    assert desk.measure(setting, 0, 500.0).slowdown == 2.0
    launched = {(partition, sms) for partition, sms, _ in desk.desk.device.launched}
    assert launched == {("prefill", 16), ("decode", 16)}
    repeats = {shape.repeat for _, _, shape in desk.desk.device.launched if shape != own}
    assert repeats == ({MOST_REPEATS} if own is DECODE else {1})


def test_quiet_samples_need_no_repetition():
    point = measurer(lambda batch, sms: 1000).measure(PointSetting("decode", DECODE, 16), 0)
    assert (point.ns, point.interval, len(point.samples_ns)) == (1000, 0, SAMPLING.least)
    assert point.warnings == ()


def test_repeats_until_the_interval_is_narrow():
    noise = random.Random(1)
    durations = lambda batch, sms: 100_000 * (1 + 0.09 * (noise.random() - 0.5))  # noqa: E731
    point = measurer(durations).measure(PointSetting("decode", DECODE, 16), 0)
    assert SAMPLING.least < len(point.samples_ns) < SAMPLING.most
    assert point.interval <= SAMPLING.interval
    assert point.ns == pytest.approx(100_000, rel=0.02)


def test_the_cap_is_said():
    point = measurer(script([1000, 2000])).measure(PointSetting("decode", DECODE, 16), 0)
    assert len(point.samples_ns) == SAMPLING.most
    assert "wide interval" in point.warnings[0]
    assert "after 40 samples" in point.warnings[0]


def test_time_is_a_cap_too_but_three_samples_are_taken():
    sampling = SamplingRule(5, 40, 0.01, 1e-6)
    point = measurer(lambda batch, sms: 10_000, sampling).measure(
        PointSetting("decode", DECODE, 16), 0
    )
    assert len(point.samples_ns) == 3


def test_outliers_are_kept_and_marked():
    warm = [1000, 1000]
    values = [1000, 1001, 999, 5000, 1000, 1001, 999, 1000] + [1000] * 50
    sampling = SamplingRule(8, 40, 0.01, 1e9)
    duration = script(warm + values)
    point = measurer(duration, sampling).measure(PointSetting("decode", DECODE, 16), 0)
    assert point.outliers == (3,)
    assert point.samples_ns[3] == 5000
    assert point.ns == 1000


def test_a_few_samples_have_no_outliers():
    assert find_outliers([1, 1, 100]) == ()
    assert find_outliers([100, 101, 99, 100, 102.9]) == ()


def test_a_second_mode_is_no_outlier():
    assert find_outliers([1, 2, 1, 2, 1]) == ()
    assert find_outliers([1, 1, 1, 1, 2]) == (4,)


def test_interval_of_the_mean_by_students_t():
    assert half_width([1.0]) == float("inf")
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5)
    assert estimate([2.0, 2.0, 2.0]).interval == 0


def test_falling_is_the_closest_falling_sequence():
    assert falling([5, 3, 4, 1]) == [5, 3.5, 3.5, 1]
    assert falling([1, 2, 3]) == [2, 2, 2]


def test_a_pair_keeps_its_neighbour_busy():
    made = measurer(lambda batch, sms: 10_000 if batch.chunks else 1000)
    point = made.measure(pair(), 0, alone_ns=500.0)
    assert (point.ns, point.slowdown, point.discarded) == (1000, 2.0, 0)
    launched = made.desk.device.launched
    assert {(partition, sms) for partition, sms, _ in launched} == {("prefill", 8), ("decode", 8)}


def test_prefill_beside_short_decodes_relaunches_them():
    made = measurer(lambda batch, sms: 100_000 if batch.chunks else 1000)
    point = made.measure(PointSetting("pair", PREFILL, 8, DECODE, 8), 0)
    assert point.ns == 100_000
    repeats = {shape.repeat for partition, _, shape in made.desk.device.launched
               if partition == "decode"}  # fmt: skip
    assert repeats == {16}


def test_a_sample_beside_an_idle_neighbour_is_discarded():
    """Every launch of the neighbour ends in the middle of a sample, and is told of too late."""
    made = measurer(lambda batch, sms: 3500 if batch.chunks else 1000, late={"prefill": 400})
    point = made.measure(pair(), 0)
    assert point.discarded > 0
    assert len(point.samples_ns) >= SAMPLING.least
    assert any("discarded" in warning for warning in point.warnings)


def test_nothing_but_discarded_samples_is_an_error_not_a_point():
    made = measurer(lambda batch, sms: 500 if batch.chunks else 1000, late={"prefill": 400})
    with pytest.raises(NothingMeasured, match="neighbour was not busy"):
        made.measure(pair(), 0)


@pytest.mark.slow
def test_a_neighbour_without_length_does_not_hang():
    made = measurer(lambda batch, sms: 0 if batch.chunks else 10_000)
    with pytest.raises(NothingMeasured):
        made.measure(pair(), 0)


def test_a_device_that_reports_no_end_is_named():
    class Silent(FakeDevice):
        def wait(self, until):
            return []

    made = Measurer(BatchDesk(Silent(lambda batch, sms: 1), POOL), SAMPLING)
    for setting in (PointSetting("decode", DECODE, 16), pair()):
        with pytest.raises(NexusbenchError, match=r"fake has .* reports no end"):
            made.measure(setting, 0)


class Reader:
    sources = {"fake": "on"}

    def __init__(self, warning=""):
        self.warning, self.calls = warning, []

    def before(self):
        self.calls.append("before")

    def after(self, steps):
        self.calls.append(steps)
        return {"fake.energy": 2.0, "fake.clock": None}

    def warnings(self):
        return [self.warning] if self.warning else []


def test_counters_are_read_around_the_samples_and_intrusive_ones_apart():
    timed, intrusive = Reader("throttled: power cap"), Reader()
    made = measurer(lambda batch, sms: 1000, readers=Readers(timed, intrusive))
    point = made.measure(PointSetting("decode", DECODE, 16), 0)
    assert timed.calls == ["before", 5]
    assert intrusive.calls == ["before", 5]
    assert len(made.desk.device.launched) == 2 + 5 + 5
    assert point.counters == {"fake.energy": 2.0, "fake.clock": None}
    assert point.warnings == ("throttled: power cap",)


def test_the_desk_holds_real_blocks_and_frees_them_for_others():
    desk = BatchDesk(FakeDevice(lambda batch, sms: 1), POOL)
    small = desk.batch(ShapedBatch(BatchShape(4, 400)), "decode")
    assert [len(r.blocks) for r in small.decodes] == [7] * 4
    assert desk.batch(ShapedBatch(BatchShape(4, 400)), "decode") is small
    large = ShapedBatch(BatchShape(16, 16 * 3980))
    assert desk.batch(large, "decode").shape.num_decodes == 16
    assert small.decodes[0].blocks == []
    with pytest.raises(UsageError, match=r"max_num_seqs|KV blocks"):
        desk.batch(ShapedBatch(BatchShape(64, 64 * 4000)), "decode")


def test_both_batches_of_a_pair_hold_their_blocks_at_once():
    desk = BatchDesk(FakeDevice(lambda batch, sms: 1), POOL)
    mine = desk.batch(ShapedBatch(BatchShape(10, 10 * 4000)), "decode")
    other = desk.batch(ShapedBatch(PREFILL), "prefill", beside=mine)
    assert set(mine.decodes[0].blocks).isdisjoint(other.chunks[0].request.blocks)
    with pytest.raises(UsageError, match="together"):
        desk.batch(ShapedBatch(BatchShape(14, 14 * 4000)), "prefill", beside=mine)
