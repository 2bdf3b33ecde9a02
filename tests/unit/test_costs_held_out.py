"""What judges a fit was never seen by it: held out by shape, beside neighbours and as one."""

from __future__ import annotations

import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.profiles.points import Point, PointSetting
from nexusbench.profiling.fitting import fit_model, predicted, score, split_points

PREFILL, DECODE = BatchShape(0, 0, ((512, 0),)), BatchShape(8, 800)
OTHER, MIXED = BatchShape(4, 400), BatchShape(2, 100, ((64, 0),))


def point(shape, sms=8, ns=100.0, beside=None, held_out=False, contexts=()):
    phase = "pair" if beside is not None else "prefill" if shape.chunks else "decode"
    if shape.chunks and shape.num_decodes:
        phase = "mixed"
    setting = PointSetting(
        phase, shape, sms, beside, 8 if beside else 0, contexts=contexts, held_out=held_out
    )
    return Point(setting, ns, 0.0, (ns,), alone_ns=ns if beside else None)


def test_a_held_out_shape_is_fitted_nowhere():
    judge = point(DECODE, sms=8, held_out=True)
    elsewhere = point(DECODE, sms=16)
    kept = point(OTHER)
    assert split_points([judge, elsewhere, kept]) == ([kept], [judge])


def test_a_held_out_shape_is_no_neighbour_in_a_fit_either():
    judge = point(DECODE, held_out=True)
    beside = point(PREFILL, beside=DECODE)
    kept = point(PREFILL, beside=OTHER)
    alone = point(PREFILL)
    fitted, held_out = split_points([beside, judge, kept, alone])
    assert fitted == [kept, alone]
    assert held_out == [judge]


def test_decodes_of_other_lengths_are_another_shape():
    """A shape only holds the sum of contexts: unequal decodes are judged beside equal ones."""
    judge = point(DECODE, held_out=True, contexts=(100,) * 7 + (100,))
    equal = point(DECODE)
    pair = point(PREFILL, beside=DECODE)
    assert split_points([judge, equal, pair]) == ([equal, pair], [judge])


def test_points_that_are_all_held_out_fit_nothing():
    with pytest.raises(UsageError, match="no points to fit a cost model to"):
        fit_model("table", [point(DECODE, held_out=True)], None, stopwatch=lambda: 0)


class Flat:
    """Predicts 100 ns, 50 beside a neighbour on 8 SMs."""

    def predict(self, shape, sms, neighbour=None):
        return 100.0 if neighbour is None else 50.0 * neighbour[1] / 8


def test_a_prediction_is_made_beside_what_was_beside():
    made = predicted(Flat(), [point(DECODE), point(DECODE, beside=PREFILL)])
    assert made.tolist() == [100.0, 50.0]


def test_errors_are_in_percent_of_what_was_measured():
    points = [point(DECODE, ns=80.0), point(DECODE, ns=200.0), point(PREFILL, ns=125.0)]
    found = {(s.phase, s.corunning, s.sms): s for s in score(Flat(), points, 16)}
    # 8 of 16 SMs are in the second third: errors of +25, -50 and -20 %.
    assert set(found) == {
        (phase, False, sms) for phase in ("all", "decode", "prefill") for sms in ("all", "half")
    }
    decode = found["decode", False, "all"]
    assert (decode.n, decode.mape, decode.bias) == (2, 37.5, -12.5)
    assert decode.p95 == pytest.approx(25 + 0.95 * 25)
    everything = found["all", False, "half"]
    assert (everything.n, everything.mape, everything.bias) == (3, 31.667, -15.0)


@pytest.mark.parametrize(
    ("sms", "part"),
    [(1, "few"), (10, "few"), (11, "half"), (20, "half"), (21, "most"), (30, "most")],
)
def test_thirds_of_the_sms_include_their_upper_ends(sms, part):
    (_, named) = score(Flat(), [point(DECODE, sms=sms)], 30)[:2]
    assert named.sms == part


def test_scores_are_told_alone_first_then_by_phase_and_share():
    points = [
        point(MIXED, sms=30), point(DECODE, sms=30), point(PREFILL, sms=1),
        point(DECODE, sms=15, beside=PREFILL),
    ]  # fmt: skip
    order = [(s.phase, s.corunning, s.sms) for s in score(Flat(), points, 30)]
    assert order == [
        ("all", False, "all"), ("all", False, "few"), ("all", False, "most"),
        ("prefill", False, "all"), ("prefill", False, "few"),
        ("decode", False, "all"), ("decode", False, "most"),
        ("mixed", False, "all"), ("mixed", False, "most"),
        ("all", True, "all"), ("all", True, "half"),
        ("decode", True, "all"), ("decode", True, "half"),
    ]  # fmt: skip
