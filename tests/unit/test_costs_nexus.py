"""Nexus's cost model: its curves, its readings of contention, and the fit."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.costs.base import Target
from nexusbench.costs.nexus import (
    NexusCost,
    NexusCostOptions,
    NexusParameters,
    NexusStage,
    SaturationCurve,
    exponential,
    gain,
)
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import load_gpu
from nexusbench.profiles.points import Point, PointSetting
from nexusbench.profiling.fitting import fit_model, score

GPU, MODEL = load_gpu("l20"), load_model("qwen2.5-3b")
PREFILL, DECODE = BatchShape(0, 0, ((2048, 2048),)), BatchShape(64, 64_000)
SHARES = st.floats(0.02, 1.0)
CURVES = st.builds(
    SaturationCurve,
    saturation=st.floats(0.05, 1),
    decay=st.floats(0, 1),
    efficiency=st.floats(0.1, 1),
)


def larger(a, b):
    return max(a, b)


def parameters(**stages):
    usual = {
        "dense": SaturationCurve(saturation=0.6, decay=0.75, efficiency=0.8),
        "attention": SaturationCurve(saturation=0.7, decay=0.6, efficiency=0.5),
        "dense_memory": SaturationCurve(saturation=0.4, decay=0.1, efficiency=0.9),
        "attention_memory": SaturationCurve(saturation=0.45, decay=0.1, efficiency=0.85),
        "fixed_ns": 1e6,
        "contention": (0.1, 0.2, 0.3, 0.4),
    }
    made = {name: NexusStage(**{**usual, **stages.get(name, {})}) for name in ("prefill", "decode")}
    return NexusParameters(**made)


def model(options=None, **stages):
    return NexusCost(options, gpu=GPU, model=MODEL, parameters=parameters(**stages))


def points_of(made, *, held_out=False):
    """What a noiseless device that behaves as ``made`` would give."""
    points = []
    sizes = (4, 12, 20, 28, 36, 44, 52, 60, 68, 76, 84, 92)
    shapes = [BatchShape(0, 0, ((n, c),)) for n in (64, 512, 2048) for c in (0, 4000, 24000)]
    shapes += [BatchShape(b, b * c) for b in (1, 16, 128, 256) for c in (100, 1000, 4000)]
    for shape in shapes:
        for sms in sizes:
            time = made.predict(shape, sms)
            points.append(
                Point(PointSetting("prefill", shape, sms, held_out=held_out), time, 0.0, (time,))
            )
    for prefill in shapes[3:9:2]:
        for decode in shapes[9::2]:
            for mine, other in ((prefill, decode), (decode, prefill)):
                for sms in sizes[:-1:2]:
                    time = made.predict(mine, sms, (other, 92 - sms))
                    setting = PointSetting("pair", mine, sms, other, 92 - sms, held_out=held_out)
                    alone = made.predict(mine, sms)
                    points.append(Point(setting, time, 0.0, (time,), alone_ns=alone))
    return points


def test_form_a_gives_the_two_statements_of_section_3():
    """R_sat 0.60 and lambda 0.75: 30 to 40 % saves 25 %, 70 to 80 % saves 10 %."""
    curve = SaturationCurve(saturation=0.6, decay=0.75)
    times = {share: 1 / gain(curve, share, larger, "A") for share in (0.3, 0.4, 0.7, 0.8)}
    assert 1 - times[0.4] / times[0.3] == pytest.approx(0.25)
    assert 1 - times[0.8] / times[0.7] == pytest.approx(0.10, abs=0.001)


@given(CURVES, SHARES, SHARES, st.sampled_from("AB"))
def test_more_sms_are_never_slower_and_all_reach_the_efficiency(curve, a, b, form):
    few, many = sorted((a, b))
    assert gain(curve, few, larger, form) <= gain(curve, many, larger, form) * (1 + 1e-12)
    assert gain(curve, 1.0, larger, form) == pytest.approx(curve.efficiency)


@given(CURVES, st.sampled_from("AB"))
def test_the_two_regimes_meet(curve, form):
    below = gain(curve, curve.saturation * (1 - 1e-9), larger, form)
    above = gain(curve, curve.saturation * (1 + 1e-9), larger, form)
    assert below == pytest.approx(above, rel=1e-6)


@given(st.floats(0, 2))
def test_the_series_is_the_exponential(x):
    assert exponential(x) == pytest.approx(math.exp(x), rel=1e-9)


@pytest.mark.parametrize("contention", ["counts", "rates", "classes", "none"])
@pytest.mark.parametrize("memory", ["printed", "curve"])
def test_many_splits_at_once_are_the_same_bits(contention, memory):
    made = model(NexusCostOptions(curve="B", memory=memory, contention=contention))
    sizes = list(range(4, 90, 2))
    rest = [92 - sms for sms in sizes]
    for shape, other in ((PREFILL, DECODE), (DECODE, PREFILL)):
        together = made.predict_splits(shape, sizes, other, rest)
        assert together == [
            made.predict(shape, a, (other, b)) for a, b in zip(sizes, rest, strict=True)
        ]
        assert made.predict_splits(shape, sizes) == [made.predict(shape, a) for a in sizes]


def test_printed_memory_time_does_not_depend_on_sms():
    made = model(NexusCostOptions(memory="printed", contention="none"), decode={"fixed_ns": 0.0})
    tiny = BatchShape(1, 50_000)  # one row: memory-bound everywhere but on the fewest SMs
    assert made.predict(tiny, 30) == made.predict(tiny, 92)


def test_counts_compare_a_step_with_a_whole_chunk_and_rates_do_not():
    """The reading as printed starves a decode beside a long chunk; docs/decisions/0005."""
    slow = {}
    for contention in ("none", "counts", "rates"):
        made = model(NexusCostOptions(contention=contention))
        slow[contention] = made.predict(DECODE, 30, (PREFILL, 62))
    assert slow["none"] <= slow["rates"] < slow["counts"]
    # No prefill beside it: nothing to share with.
    for contention in ("counts", "rates"):
        made = model(NexusCostOptions(contention=contention))
        assert made.predict(DECODE, 30, (DECODE, 62)) == made.predict(DECODE, 30)


def test_contention_by_classes_is_the_probability_that_they_overlap():
    made = model(decode={"contention": (0.0, 0.0, 0.0, 1.0), "fixed_ns": 0.0})
    alone, beside = made.predict(DECODE, 46), made.predict(DECODE, 46, (PREFILL, 46))
    stages = made._stages
    mine = made._parts(stages.work(DECODE), made.parameters.decode, 0.5, larger)
    theirs = made._parts(stages.work(PREFILL), made.parameters.prefill, 0.5, larger)
    share = theirs.attention / (theirs.attention + theirs.dense + theirs.fixed)
    assert beside - alone == pytest.approx(0.5 * mine.attention * share)


def test_a_piece_of_the_layers_and_repetitions():
    made = model()
    piece = msgspec.structs.replace(PREFILL, layers=(0, MODEL.num_layers // 4))
    assert made.predict(piece, 46) == pytest.approx(made.predict(PREFILL, 46) / 4)
    many = msgspec.structs.replace(DECODE, repeat=3)
    assert made.predict(many, 46) == pytest.approx(3 * made.predict(DECODE, 46))


@pytest.mark.parametrize("options", ["", ":curve=B", ":memory=printed,contention=none"])
def test_a_fit_finds_what_behaves_as_the_model_does(options):
    reading = {"": NexusCostOptions(), ":curve=B": NexusCostOptions(curve="B")}.get(
        options, NexusCostOptions(memory="printed", contention="none")
    )
    truth = model(reading)
    points = points_of(truth)
    made = fit_model("nexus" + options, points, Target(GPU, MODEL), stopwatch=lambda: 0)
    again = NexusCost(
        reading, gpu=GPU, model=MODEL, parameters=msgspec.convert(made.parameters, NexusParameters)
    )
    for row in score(again, points, GPU.num_sms):
        assert row.mape < 3, row


def test_parameters_survive_the_profile_bit_by_bit():
    given_ = parameters()
    text = msgspec.json.encode(msgspec.to_builtins(given_))
    assert msgspec.convert(msgspec.json.decode(text), NexusParameters) == given_


def test_too_few_points_say_what_to_measure():
    points = [p for p in points_of(model()) if p.setting.shape.chunks]
    with pytest.raises(UsageError, match=r"points of decode alone .* measure at least"):
        fit_model("nexus", points, Target(GPU, MODEL), stopwatch=lambda: 0)
    with pytest.raises(UsageError, match="run the sweep first"):
        fit_model("nexus", [], Target(GPU, MODEL), stopwatch=lambda: 0)


def test_held_out_shapes_are_fitted_nowhere():
    """A shape that judges is not fitted on other SMs or as a neighbour either."""
    made = model()
    points = points_of(made)
    judged = points[0].setting.shape
    marked = [
        msgspec.structs.replace(p, setting=msgspec.structs.replace(p.setting, held_out=True))
        if p.setting.shape == judged and p.setting.sms == 92
        else p
        for p in points
    ]
    from nexusbench.profiling.fitting import split_points

    fitted, held_out = split_points(marked)
    assert {p.setting.shape for p in held_out} == {judged}
    assert all(judged not in (p.setting.shape, p.setting.neighbour) for p in fitted)
    assert len(fitted) < len(points) - len(held_out)


def test_scores_are_of_the_held_out_points_by_phase_and_sms():
    made = model()
    points = [msgspec.structs.replace(p, ns=p.ns * 1.25) for p in points_of(made, held_out=True)]
    rows = {(row.phase, row.corunning, row.sms): row for row in score(made, points, 92)}
    assert rows["all", False, "all"].bias == pytest.approx(-20)
    assert rows["decode", True, "few"].mape == pytest.approx(20)
    total = sum(rows["all", False, part].n for part in ("few", "half", "most"))
    assert total == rows["all", False, "all"].n == sum(not p.setting.neighbour for p in points)
    assert np.isclose(rows["prefill", False, "most"].p95, 20)
