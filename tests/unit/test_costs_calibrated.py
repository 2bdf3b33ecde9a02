"""Bullet's SM-scaling roofline (Eq. 1) and its calibration along the SMs while serving (Eq. 2)."""

from __future__ import annotations

import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.costs.roofline import Roofline, RooflineOptions
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import load_gpu
from nexusbench.serving.following import LEAST, Calibrated
from nexusbench.testing import serve
from tests.sim.golden_runs import trace

DECODE, PREFILL = BatchShape(8, 4000), BatchShape(0, 0, ((2048, 0),))
SMS = 92


def roofline(**options):
    gpu, model = load_gpu("l20"), load_model("llama-3.1-8b")
    return Roofline(RooflineOptions(**options), gpu=gpu, model=model)


def calibrated():
    return Calibrated(roofline(), SMS)


def teach(belief, shape, sms, truth, times=200):
    """Launch after launch of one shape, each taking ``truth(sms)`` times what the roofline says."""
    for i in range(times):
        own = sms[i % len(sms)]
        actual = truth(own) * belief.belief.predict(shape, own)
        belief.observe(shape, own, belief.predict(shape, own), actual)


def test_what_is_bound_by_bandwidth_stops_gaining_at_n_d_and_what_computes_scales_on():
    belief = roofline(bandwidth_sms=0.5)  # N_d = 46 of 92
    assert belief.predict(DECODE, 23) == pytest.approx(2 * belief.predict(DECODE, 46))
    assert belief.predict(DECODE, 92) == pytest.approx(belief.predict(DECODE, 46))
    assert belief.predict(PREFILL, 46) == pytest.approx(2 * belief.predict(PREFILL, 92), rel=0.01)
    assert belief.predict(PREFILL, 23) == pytest.approx(4 * belief.predict(PREFILL, 92), rel=0.01)


def test_many_splits_at_once_are_the_same_to_the_bit():
    own = list(range(2, 92, 6))
    other = [92 - sms for sms in own]
    for shape, neighbour in ((DECODE, PREFILL), (PREFILL, DECODE), (DECODE, DECODE)):
        for belief in (roofline(), roofline(contention=False), calibrated()):
            together = belief.predict_splits(shape, own, neighbour, other)
            pairs = zip(own, other, strict=True)
            assert together == [belief.predict(shape, a, (neighbour, b)) for a, b in pairs]
            assert belief.predict_splits(shape, own) == [belief.predict(shape, a) for a in own]


@pytest.mark.parametrize("sms", [2, 23, 30, 92])
@pytest.mark.parametrize("factor", [0.6, 1.61])
def test_a_constant_factor_is_learnt_and_holds_where_nothing_was_measured(sms, factor):
    belief = calibrated()
    before = belief.predict(PREFILL, 40)
    teach(belief, DECODE, [sms], lambda _: factor)
    raw = belief.belief
    for own in (2, 23, 30, 60, 92):
        expected = factor * raw.predict(DECODE, own)
        assert belief.predict(DECODE, own) == pytest.approx(expected, rel=0.02)
    assert belief.predict(PREFILL, 40) == before  # the other phase has its own alpha


def test_alpha_is_linear_along_the_sms_between_what_was_measured():
    belief = calibrated()

    def truth(sms):
        return 2.0 - sms / 92

    teach(belief, PREFILL, [23, 46], truth, 600)
    for sms in (23, 30, 40, 46):
        ratio = belief.predict(PREFILL, sms) / belief.belief.predict(PREFILL, sms)
        assert ratio == pytest.approx(truth(sms), rel=0.02)


def test_what_was_not_predicted_teaches_nothing_and_nonsense_little():
    belief = calibrated()
    before = belief.predict(DECODE, 40)
    belief.observe(DECODE, 40, 0.0, 5.0)
    belief.observe(DECODE, 40, 5.0, 0.0)
    assert belief.predict(DECODE, 40) == before
    for _ in range(500):
        belief.observe(DECODE, 40, 1e9, 1.0)
    assert belief.predict(DECODE, 40) == pytest.approx(LEAST * before)


def errors(scheduler):
    """|predicted/actual - 1| of each prefill launch under a policy; the simulated GPU is slower
    than its data sheet.
    """
    log = serve(trace(8, 60), scheduler).log
    submitted, done = log.tables["submitted"].columns, log.tables["step_done"].columns
    ends = dict(zip(done["step"], done["time"], strict=True))
    rows = zip(
        submitted["step"], submitted["time"], submitted["predicted"], submitted["chunks"],
        strict=True,
    )  # fmt: skip
    return [abs(told / (ends[step] - time) - 1) for step, time, told, chunks in rows if chunks]


def test_a_run_learns():
    made = errors("duetserve")
    first, last = made[:10], made[-60:]
    assert sum(last) / len(last) < 0.5 * sum(first) / len(first)
