"""Fitted cost models: what they promise of every prediction, and how far off they are."""

from __future__ import annotations

import math
from functools import cache

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.costs.base import cost_models
from nexusbench.physics.gpus import legal_splits
from nexusbench.profiles.points import Point
from nexusbench.profiling.fitting import build, fit_model, split_points
from tests.examples import examples
from tests.unit.profiled import profiled, sm_counts

TARGETS = (("l20", "qwen2.5-3b"), ("h200", "llama-3.1-8b"))
NAMES = ("linear", "roofline", "table")
MONOTONE = ("roofline", "table")
CASES = [(name, *target) for name in NAMES for target in TARGETS]
MODELS = pytest.mark.parametrize(("name", "gpu", "model"), CASES)
ROUNDING = 1 + 1e-12

CHUNKS = st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 60_000)), max_size=4)


@st.composite
def shapes(draw):
    chunks = tuple(draw(CHUNKS))
    decodes = draw(st.integers(0 if chunks else 1, 600))
    context = draw(st.integers(0, 40_000))
    return BatchShape(decodes, decodes * context, chunks)


@cache
def fitted(name, gpu, model):
    target, points = profiled(gpu, model)
    cls = cost_models.load(name)
    parameters = cls.fit(split_points(points)[0], target, cls.Options())
    return build(cls, cls.Options(), parameters, target)


def belief(name, gpu, model, points=None, **options):
    """A model with those options, fitted to some points or to all that are not held out."""
    target, made = profiled(gpu, model)
    cls = cost_models.load(name)
    chosen = cls.Options(**options)
    parameters = cls.fit(split_points(made)[0] if points is None else points, target, chosen)
    return build(cls, chosen, parameters, target)


@MODELS
def test_held_out_errors_are_within_the_targets(name, gpu, model):
    target, points = profiled(gpu, model)
    fit = fit_model(name, points, target, stopwatch=lambda: 0)
    found = {(s.phase, s.corunning): s for s in fit.scores if s.sms == "all"}
    assert found["all", False].mape <= 10
    assert found["all", True].mape <= 15
    for phase in ("prefill", "decode"):
        assert found[phase, False].mape <= 12
        assert found[phase, True].mape <= 15
    assert fit.num_held_out == sum(point.setting.held_out for point in points)


@MODELS
@pytest.mark.slow
def test_predictions_are_positive_and_finite(name, gpu, model):
    made = fitted(name, gpu, model)
    most = made._num_sms

    @settings(max_examples=examples(60))
    @given(shapes(), shapes(), st.integers(1, most), st.integers(1, most))
    def check(shape, other, sms, other_sms):
        for neighbour in (None, (other, other_sms)):
            time = made.predict(shape, sms, neighbour)
            assert math.isfinite(time)
            assert time > 0

    check()


@pytest.mark.parametrize(("name", "gpu", "model"), [c for c in CASES if c[0] in MONOTONE])
def test_more_sms_never_take_longer(name, gpu, model):
    made = fitted(name, gpu, model)

    @settings(max_examples=examples(60))
    @given(shapes(), st.integers(1, made._num_sms - 1))
    def check(shape, sms):
        assert made.predict(shape, sms + 1) <= made.predict(shape, sms) * ROUNDING

    check()


@MODELS
def test_a_neighbour_never_speeds_up(name, gpu, model):
    made = fitted(name, gpu, model)
    most = made._num_sms

    @settings(max_examples=examples(60))
    @given(shapes(), shapes(), st.integers(1, most - 1))
    def check(shape, other, sms):
        alone = made.predict(shape, sms)
        assert made.predict(shape, sms, (other, most - sms)) >= alone / ROUNDING

    check()


@pytest.mark.parametrize(("gpu", "model"), TARGETS)
def test_the_table_never_falls_with_more_work(gpu, model):
    made = fitted("table", gpu, model)

    @settings(max_examples=examples(60))
    @given(st.integers(1, 9000), st.integers(0, 60_000), st.integers(1, 500), st.integers(0, 5000))
    def check(count, before, more, sms):
        sms = 1 + sms % made._num_sms
        one = made.predict(BatchShape(0, 0, ((count, before),)), sms)
        assert made.predict(BatchShape(0, 0, ((count + more, before),)), sms) >= one / ROUNDING
        assert made.predict(BatchShape(0, 0, ((count, before + more),)), sms) >= one / ROUNDING
        one = made.predict(BatchShape(count, count * before), sms)
        wider = BatchShape(count + more, (count + more) * before)
        assert made.predict(wider, sms) >= one / ROUNDING
        longer = BatchShape(count, count * (before + more))
        assert made.predict(longer, sms) >= one / ROUNDING

    check()


@MODELS
def test_all_splits_at_once_are_the_same_to_the_bit(name, gpu, model):
    made, target = fitted(name, gpu, model), profiled(gpu, model)[0]
    sides = [split.sms for split in legal_splits(target.gpu)]
    sms, others = [s[0] for s in sides], [s[1] for s in sides]

    @settings(max_examples=examples(40))
    @given(shapes(), shapes(), st.integers(1, 3))
    def check(shape, other, repeat):
        shape = msgspec.structs.replace(shape, repeat=repeat)
        assert made.predict_splits(shape, sms) == [made.predict(shape, own) for own in sms]
        beside = [made.predict(shape, a, (other, b)) for a, b in sides]
        assert made.predict_splits(shape, sms, other, others) == beside

    check()


@MODELS
def test_parameters_survive_json(name, gpu, model):
    made, target = fitted(name, gpu, model), profiled(gpu, model)[0]
    text = msgspec.json.encode(msgspec.to_builtins(made.parameters))
    cls = cost_models.load(name)
    again = msgspec.convert(msgspec.json.decode(text), cls.Parameters)
    other = build(cls, cls.Options(), again, target)

    @settings(max_examples=examples(40))
    @given(shapes(), shapes(), st.integers(1, made._num_sms))
    def check(shape, neighbour, sms):
        beside = (neighbour, made._num_sms)
        assert made.predict(shape, sms, beside) == other.predict(shape, sms, beside)

    check()


@MODELS
def test_layers_and_repetitions_scale(name, gpu, model):
    made, layers = fitted(name, gpu, model), profiled(gpu, model)[0].model.num_layers
    whole, half = BatchShape(0, 0, ((640, 10),)), BatchShape(0, 0, ((640, 10),), (0, layers // 2))
    share = layers // 2 / layers
    assert made.predict(half, 16) == pytest.approx(share * made.predict(whole, 16))
    decode, three = BatchShape(3, 300), BatchShape(3, 300, repeat=3)
    assert made.predict(three, 16) == pytest.approx(3 * made.predict(decode, 16))


@MODELS
def test_a_neighbour_on_the_same_sms_costs_more(name, gpu, model):
    """The first launch beside a batch that had expanded to all SMs."""
    made = fitted(name, gpu, model)
    most = made._num_sms
    prefill, decode = BatchShape(0, 0, ((4096, 0),)), BatchShape(64, 64 * 1000)
    for shape, other in ((prefill, decode), (decode, prefill)):
        apart = made.predict(shape, 24, (other, most - 24))
        assert made.predict(shape, 24, (other, most)) > apart


@MODELS
def test_beyond_what_was_measured_times_go_on_growing(name, gpu, model):
    made = fitted(name, gpu, model)
    for sms in (8, 16, 64):
        chunks = [made.predict(BatchShape(0, 0, ((8192 * k, 0),)), sms) for k in (1, 2, 3)]
        assert chunks[1] - chunks[0] > 0.5 * chunks[0]
        assert chunks[2] - chunks[1] > 0.5 * chunks[0]
        decodes = [made.predict(BatchShape(64 * k, 64 * k * 9000), sms) for k in (1, 2, 4)]
        assert decodes[0] < decodes[1] < decodes[2]
    fewer = [made.predict(BatchShape(0, 0, ((4096, 0),)), sms) for sms in (1, 2, 4)]
    assert fewer[0] > 1.5 * fewer[1]
    assert fewer[1] > 1.5 * fewer[2]


@MODELS
def test_where_it_was_measured_it_is_close(name, gpu, model):
    """At the points of the fit themselves: nothing is lost between points and parameters."""
    points = split_points(profiled(gpu, model)[1])[0]
    made = fitted(name, gpu, model)
    errors = []
    for point in points:
        if point.setting.kind in ("prefill", "decode"):
            errors.append(abs(made.predict(point.setting.shape, point.setting.sms) / point.ns - 1))
    errors.sort()
    assert errors[len(errors) // 2] < (0.002 if name == "table" else 0.03)


@MODELS
def test_a_profile_of_something_tiny_names_what_is_missing(name, gpu, model):
    target, points = profiled(gpu, model)
    cls = cost_models.load(name)
    points = split_points(points)[0]
    prefills = [p for p in points if p.setting.kind == "prefill"]
    decodes = [p for p in points if p.setting.kind == "decode"]
    one_count = [p for p in points if p.setting.sms == target.gpu.num_sms]
    for few, word in (
        (prefills, "decode alone"),
        (decodes, "prefill alone"),
        (one_count, "shares of two or more sizes"),
        (prefills + decodes, "pairs"),
    ):
        with pytest.raises(UsageError, match=word) as raised:
            cls.fit(few, target, cls.Options())
        assert "Profile" in str(raised.value)
    without = {"linear": {"guard": "none"}}.get(name, {"contention": False})
    alone = belief(name, gpu, model, prefills + decodes, **without)
    shape, other = decodes[-1].setting.shape, prefills[0].setting.shape
    assert alone.predict(shape, 20, (other, 60)) == alone.predict(shape, 20)


@pytest.mark.parametrize("name", ["linear", "table"])
def test_without_a_profile_they_say_so(name):
    target, _ = profiled(*TARGETS[0])
    with pytest.raises(UsageError, match="--profile"):
        cost_models.create(name, gpu=target.gpu, model=target.model)


def made_by(model, points):
    """The same settings, measured on a device whose truth is that model."""
    again = []
    for point in points:
        setting, beside, alone = point.setting, None, None
        if setting.neighbour is not None:
            beside = (setting.neighbour, setting.neighbour_sms)
            alone = model.predict(setting.shape, setting.sms)
        ns = model.predict(setting.shape, setting.sms, beside)
        again.append(Point(setting, ns, 0.0, (ns,), alone_ns=alone))
    return again


@pytest.mark.parametrize(("gpu", "model"), TARGETS)
def test_a_roofline_is_found_again(gpu, model):
    truth = fitted("roofline", gpu, model)
    target, points = profiled(gpu, model)
    again = fit_model("roofline", made_by(truth, points), target, stopwatch=lambda: 0)
    found = {(s.phase, s.corunning): s.mape for s in again.scores if s.sms == "all"}
    assert max(found.values()) < 4


def test_lines_with_sm_counts_of_their_own_are_resampled():
    """Sweeps choose SM positions line by line; each line lacks others than its neighbour does."""
    gpu, model = TARGETS[0]
    points = split_points(profiled(gpu, model)[1])[0]
    counts = sm_counts(profiled(gpu, model)[0].gpu)
    kept = []
    for number, point in enumerate(sorted(points, key=lambda p: str(p.setting.shape))):
        rank = counts.index(point.setting.sms) if point.setting.sms in counts else 0
        inner = 0 < rank < len(counts) - 1
        odd = len(str(point.setting.shape)) + number // len(counts)
        if point.setting.kind in ("pair", "mixed") or not inner or (rank + odd) % 2:
            kept.append(point)
    assert len(kept) < 0.85 * len(points)
    for name in NAMES:
        made, sparse = fitted(name, gpu, model), belief(name, gpu, model, kept)
        for shape in (BatchShape(0, 0, ((1500, 900),)), BatchShape(50, 50 * 700)):
            for sms in (8, 30, 55, 92):
                assert sparse.predict(shape, sms) == pytest.approx(
                    made.predict(shape, sms), rel=0.06
                )


def test_a_bent_line_is_smoothed():
    """One odd point may not make fewer SMs faster."""
    gpu, model = TARGETS[0]
    points = split_points(profiled(gpu, model)[1])[0]
    worst = next(
        number for number, point in enumerate(points)
        if point.setting.kind == "decode" and 20 < point.setting.sms < 60
    )  # fmt: skip
    points[worst] = msgspec.structs.replace(points[worst], ns=points[worst].ns * 3)
    made = belief("table", gpu, model, points)
    times = [made.predict(points[worst].setting.shape, sms) for sms in range(1, 93)]
    assert times == sorted(times, reverse=True)


@MODELS
@pytest.mark.slow
def test_the_order_of_points_does_not_matter(name, gpu, model):
    points = split_points(profiled(gpu, model)[1])[0]
    made, turned = fitted(name, gpu, model), belief(name, gpu, model, points[::-1])
    shape, other = BatchShape(50, 50 * 700), BatchShape(0, 0, ((1500, 900),))
    for own, beside in ((shape, other), (other, shape)):
        expected = made.predict(own, 24, (beside, 40))
        assert turned.predict(own, 24, (beside, 40)) == pytest.approx(expected, rel=1e-6)


@MODELS
@pytest.mark.slow
def test_one_split_is_enough_where_a_device_has_no_more(name, gpu, model):
    """A CPU with two cores."""
    target, points = profiled(gpu, model)
    points = split_points(points)[0]
    pairs = [p for p in points if p.setting.kind == "pair"]
    split = next(p.setting.sms for p in pairs if 20 < p.setting.sms < target.gpu.num_sms / 2)
    some = {split, target.gpu.num_sms - split}
    kept = [p for p in points if p.setting.kind != "pair" or p.setting.sms in some]
    made = belief(name, gpu, model, kept)
    shape, other = BatchShape(64, 64 * 512), BatchShape(0, 0, ((2048, 0),))
    sides = (target.gpu.num_sms - split, split)
    for own, sms, beside, others in ((shape, sides[0], other, sides[1]),
                                     (other, sides[1], shape, sides[0])):  # fmt: skip
        assert made.predict(own, sms, (beside, others)) > made.predict(own, sms)
