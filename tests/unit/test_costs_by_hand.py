"""What beliefs are built of, worked out on paper: surfaces, grids, rates, guards, SLOs, duets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nexusbench.core.batch import Batch, BatchShape, Chunk, Split
from nexusbench.core.errors import UsageError
from nexusbench.core.state import Limits
from nexusbench.core.work import chunk_work, equivalent_context, model_work, portion
from nexusbench.costs import _fit_grids as grids
from nexusbench.costs import _fit_linear as fits
from nexusbench.costs import _fit_roofline
from nexusbench.costs._calibration import Beside, Rates, RooflineParameters, rooflines
from nexusbench.costs.linear import (
    Guard,
    _Nearest,
    cell_of,
    contested_share,
    decode_amounts,
    power_of_4,
    prefill_amounts,
)
from nexusbench.costs.nexus import NexusStage, NexusTimes, SaturationCurve, gain, slowed
from nexusbench.costs.roofline import Roofline, RooflineOptions
from nexusbench.policies.bullet import MOST_FORGOTTEN, BulletSlo, Pace, expected
from nexusbench.policies.duetserve import duets
from nexusbench.profiles.points import Point, PointSetting
from nexusbench.profiles.stages import Stages
from nexusbench.profiles.surface import (
    Slowdowns,
    Surface,
    between,
    bracket,
    contested,
    corners,
    place_of,
)
from nexusbench.serving.following import Calibrated, Recalibrated
from nexusbench.testing import offer, tiny_gpu, tiny_model

MS = 1_000_000
ONES, PROMPT = BatchShape(4, 400), BatchShape(0, 0, ((100, 50),))


def near(value):
    return pytest.approx(value, rel=1e-12)


def point(shape, sms=8, ns=100.0, beside=None, neighbour_sms=8, contexts=(), kind=None, alone=None):
    named = kind or ("pair" if beside is not None else "prefill" if shape.chunks else "decode")
    setting = PointSetting(named, shape, sms, beside, neighbour_sms if beside else 0, contexts)
    return Point(setting, ns, 0.0, (ns,), alone_ns=alone)


# -- surfaces --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "found"),
    [(0.0, (0, 0.0)), (1.0, (0, 0.0)), (2.0, (0, 0.5)), (3.0, (1, 0.0)), (5.0, (1, 0.4)),
     (8.0, (1, 1.0)), (9.0, (1, 1.0))],
)  # fmt: skip
def test_a_bracket_is_clamped_to_its_axis(x, found):
    assert bracket((1.0, 3.0, 8.0), x) == (found[0], near(found[1]))
    i, u = found
    values = (10.0, 20.0, 40.0)
    assert between((1.0, 3.0, 8.0), values, x) == near(values[i] * (1 - u) + values[i + 1] * u)


def test_corners_weigh_both_axes():
    """A grid of 2 x 3, row by row: a quarter along one axis, half along the other."""
    found = corners(((0.0, 4.0), (0.0, 10.0, 20.0)), 1.0, 15.0)
    assert found == ((1, 0.375), (2, 0.375), (4, 0.125), (5, 0.125))


def test_a_surface_is_linear_in_size_context_and_inverse_sms():
    values = tuple(
        tuple(
            tuple(1.0 * size + 2.0 * context + 64.0 * x for x in (0.125, 0.5)) for context in (0, 8)
        )
        for size in (0, 16)
    )
    made = Surface((0.0, 16.0), (0.0, 8.0), (0.125, 0.5), values)
    assert made.value(4, 2, 4) == near(4 + 4 + 64 / 4)
    assert made.line(4, 2) == [near(8 + 8), near(8 + 32)]
    assert made.value(99, -5, 1) == near(16 + 0 + 32)  # constant beyond its ends


# -- grids of a fit --------------------------------------------------------------------------------


def test_only_whole_launches_of_a_kind_are_fitted_alone():
    whole, piece = (
        point(PROMPT),
        point(BatchShape(0, 0, ((100, 50),), layers=(0, 2)), kind="prefill"),
    )
    twice, pair = point(BatchShape(4, 400, repeat=2), kind="decode"), point(PROMPT, beside=ONES)
    assert grids.alone([whole, piece, twice, pair], "prefill") == [whole]
    assert grids.alone([whole, piece, twice, pair, point(ONES)], "decode") == [point(ONES)]


def test_points_of_one_shape_are_averaged_and_unequal_decodes_left_out():
    points = [
        point(ONES, 8, 100.0), point(ONES, 8, 300.0), point(ONES, 16, 50.0),
        point(ONES, 8, 900.0, contexts=(1, 2, 3, 394)), point(PROMPT, 8, 7.0),
    ]  # fmt: skip
    assert grids.lines_of(points) == {
        (4.0, 100.0): {8: 200.0, 16: 50.0}, (100.0, 50.0): {8: 7.0},
    }  # fmt: skip


def test_lines_go_on_beyond_both_ends():
    x = np.array([0.0, 1.0, 2.0, 4.0, 5.0])
    found = grids.extended(x, np.array([1.0, 2.0, 4.0]), np.array([10.0, 12.0, 18.0]))
    assert found.tolist() == [8.0, 10.0, 12.0, 18.0, 21.0]
    assert grids.extended(x, np.array([1.0]), np.array([3.0])).tolist() == [3.0] * 5


def test_more_sms_than_measured_gain_at_most_in_proportion():
    """100 ns on 8 SMs, 400 on 2: to 16 SMs the line would go on to 50; a steeper one is held."""
    inverse = np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0])
    found = grids.over_sms({8: 100.0, 2: 400.0}, inverse)
    assert found.tolist() == [near(50), near(100), near(200), near(400), near(800)]
    steep = grids.over_sms({8: 100.0, 4: 300.0}, inverse)
    assert steep.tolist() == [near(50), near(100), near(300), near(700), near(1500)]
    flat = grids.over_sms({8: 100.0, 2: 130.0}, inverse)
    assert flat.tolist() == [near(95), near(100), near(110), near(130), near(170)]


def test_a_bent_line_is_halfway_between_its_hulls():
    assert grids.isotonic(np.array([1.0, 5.0, 3.0, 4.0])).tolist() == [1.0, 4.0, 4.0, 4.5]
    square = grids.isotonic(np.array([[1.0, 4.0], [3.0, 2.0]]))
    assert square.tolist() == [[1.0, 3.0], [2.5, 3.0]]


def test_contexts_of_one_size_only_are_left_out_where_others_share_two():
    assert grids._common_contexts({1.0: [0.0, 5.0, 9.0], 2.0: [0.0, 9.0]}) == [0.0, 9.0]
    assert grids._common_contexts({1.0: [0.0, 5.0], 2.0: [0.0, 9.0]}) == [0.0, 5.0, 9.0]
    assert grids._inverse_axis([4, 8, 4], 16).tolist() == [1 / 16, 1 / 8, 1 / 4, 1.0]


def test_a_size_with_one_context_takes_the_slope_of_the_nearest_in_proportion():
    """Size 8 gains 2 ns a token of context, size 64 gains 5: size 16 gains 4, 256 gains 20."""
    lines = {
        (8.0, 0.0): np.array([10.0]), (8.0, 10.0): np.array([30.0]),
        (64.0, 0.0): np.array([100.0]), (64.0, 10.0): np.array([150.0]),
        (16.0, 10.0): np.array([60.0]), (256.0, 0.0): np.array([400.0]),
    }  # fmt: skip
    rows = {8.0: [0.0, 10.0], 64.0: [0.0, 10.0], 16.0: [10.0], 256.0: [0.0]}
    found = grids._fill(lines, rows, np.array([0.0, 10.0, 20.0]))
    assert list(found) == [8.0, 16.0, 64.0, 256.0]
    assert found[16.0][:, 0].tolist() == [20.0, 60.0, 100.0]
    assert found[256.0][:, 0].tolist() == [400.0, 600.0, 800.0]
    assert found[8.0][:, 0].tolist() == [10.0, 30.0, 50.0]


def test_a_slope_is_that_from_the_first_context_to_the_last():
    lines = {
        (8.0, at): np.array([ns])
        for at, ns in ((0.0, 10.0), (10.0, 11.0), (30.0, 70.0))
    }  # fmt: skip
    lines[16.0, 0.0] = np.array([20.0])
    rows = {8.0: [0.0, 10.0, 30.0], 16.0: [0.0]}
    found = grids._fill(lines, rows, np.array([0.0, 30.0]))
    assert found[16.0][:, 0].tolist() == [20.0, 140.0]


def test_a_line_is_never_believed_below_a_quarter_of_what_was_measured():
    lines = {(8.0, 10.0): np.array([100.0]), (8.0, 20.0): np.array([190.0])}
    found = grids._fill(lines, {8.0: [10.0, 20.0]}, np.array([0.0, 10.0, 20.0]))
    assert found[8.0][:, 0].tolist() == [25.0, 100.0, 190.0]
    falling = {
        (8.0, 0.0): np.array([100.0]),
        (8.0, 10.0): np.array([80.0]),
        (9.0, 0.0): np.array([50.0]),
    }
    found = grids._fill(falling, {8.0: [0.0, 10.0], 9.0: [0.0]}, np.array([0.0, 10.0]))
    assert found[9.0][:, 0].tolist() == [50.0, 50.0]  # a slope below 0 is noise


def test_axes_are_anchored_where_no_batch_goes():
    axis, values = grids._anchored(np.array([2.0, 4.0]), np.array([[30.0], [50.0]]), 0.0, along=0)
    assert axis.tolist() == [0.0, 2.0, 4.0, grids.FAR]
    assert values[:, 0].tolist() == [10.0, 30.0, 50.0, 50.0 + 10.0 * (grids.FAR - 4)]
    # Not below a quarter of the first, not above it; and never down towards the far end.
    axis, values = grids._anchored(np.array([2.0, 4.0]), np.array([[30.0], [90.0]]), 0.0, along=0)
    assert values[0, 0] == 7.5
    axis, values = grids._anchored(np.array([2.0, 4.0]), np.array([[30.0], [20.0]]), 0.0, along=0)
    assert values[:, 0].tolist() == [30.0, 30.0, 20.0, 20.0]
    axis, values = grids._anchored(
        np.array([0.0, grids.FAR]), np.array([[1.0], [2.0]]), 0.0, along=0
    )
    assert axis.tolist() == [0.0, grids.FAR]
    axis, values = grids._anchored(np.array([2.0, 4.0]), np.array([[30.0, 50.0]]), 0.0, along=1)
    assert values[0].tolist()[:3] == [10.0, 30.0, 50.0]


def test_a_surface_is_the_plane_that_was_measured():
    lines = {
        (float(size), float(context)): {sms: 1000.0 + 10 * size + context + 640.0 / sms
                                        for sms in (4, 8, 16)}
        for size in (16, 64) for context in (0, 100)
    }  # fmt: skip
    made = grids.surface(lines, 16, phase="decode", what="batch sizes", lowest_context=0.0)
    assert made.inverse_sms == (1 / 16, 1 / 8, 1 / 4, 1.0)
    for size, context, sms in ((16, 0, 16), (40, 50, 8), (64, 100, 4), (64, 100, 1), (100, 200, 8)):
        assert made.value(size, context, sms) == pytest.approx(
            1000 + 10 * size + context + 640 / sms, rel=1e-9
        )
    with pytest.raises(UsageError, match=r"two or more batch sizes .* measured were 1 batch sizes"):
        grids.surface(
            {key: line for key, line in lines.items() if key[0] == 16.0}, 16,
            phase="decode", what="batch sizes", lowest_context=0.0,
        )  # fmt: skip
    with pytest.raises(UsageError, match="two or more contexts"):
        grids.surface(
            {key: line for key, line in lines.items() if key[1] == 0.0}, 16,
            phase="decode", what="batch sizes", lowest_context=0.0,
        )  # fmt: skip


def test_a_factor_minimises_relative_errors():
    known, part = np.array([10.0, 20.0]), np.array([5.0, 10.0])
    assert grids.factor(known, part, known + 1.5 * part) == near(1.5)
    # One of two at 1, one at 3 of the same relative weight: the middle, by 1/measured^2.
    measured = np.array([15.0, 50.0])
    weight = part / measured**2
    best = float(((measured - known) * weight).sum() / (part * weight).sum())
    assert grids.factor(known, part, measured) == near(best)
    assert grids.factor(known, 0.0 * part, known) == 1.0
    assert grids.factor(known, part, known - part) == 0.0


def test_nodes_keep_both_ends_and_spread_by_rank():
    assert grids.nodes([5.0, 1.0, 3.0, 3.0], 5) == [1.0, 3.0, 5.0]
    assert grids.nodes([float(i) for i in range(9)], 5) == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert grids.nodes([float(i) for i in range(10)], 2) == [0.0, 9.0]
    assert grids.nodes([7.0, 7.0], 5) == [7.0, 8.0]
    assert grids.nodes([1.0, 2.0, 3.0], 3) == [1.0, 2.0, 3.0]


def test_what_was_not_measured_is_weighted_by_inverse_distance():
    places, values = np.array([[0.0], [3.0]]), np.array([[10.0], [30.0]])
    found = grids.spread_over(places, values, np.array([[0.0], [1.0], [1.5]]), lambda at: at)
    assert found[0, 0] == pytest.approx(10.0)
    assert found[1, 0] == near((10 * 16 + 30 * 1) / 17)  # weights go with the fourth power
    assert found[2, 0] == near(20.0)


def test_hats_are_weights_of_interpolation():
    found = grids.hats(np.array([0.0, 1.5, 9.0]), np.array([1.0, 2.0]))
    assert found.tolist() == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]


# -- linear ----------------------------------------------------------------------------------------


def test_the_amounts_of_linear():
    shape = BatchShape(3, 300, ((10, 5), (20, 0)))
    assert prefill_amounts(shape) == (500.0, 50.0, 33.0, 1.0)
    assert decode_amounts(BatchShape(3, 300)) == (300.0, 3.0, 1.0)


@pytest.mark.parametrize(
    ("count", "power"), [(0, 0), (1, 1), (3, 1), (4, 2), (15, 2), (16, 3), (64, 4)]
)
def test_cells_are_powers_of_four(count, power):
    assert power_of_4(count) == power


def test_a_cell_holds_both_sides_whichever_is_which():
    prefill, decode = BatchShape(0, 0, ((2048, 8192), (2048, 0))), BatchShape(16, 32_768)
    assert cell_of(prefill, decode) == cell_of(decode, prefill) == (1, 2, 3, 3)
    assert cell_of(BatchShape(1, 2047), BatchShape(0, 0, ((2047, 2047),))) == (0, 0, 1, 0)


def test_a_share_is_contested_where_both_claim_it():
    assert contested_share(10, 6, 16) == 0.0
    assert contested_share(10, 11, 16) == 0.5
    assert contested_share(4, 16, 16) == 1.0
    assert contested_share(2, 16, 16) == 1.0


def test_a_guard_answers_by_the_nearest_cell_and_the_worse_of_equals():
    cells = ((1, 0, 1, 0, 8, 8), (3, 0, 1, 0, 8, 8), (1, 0, 1, 0, 16, 16))
    guard = Guard(cells, (1.2, 1.5, 3.0), (1.1, 1.3, 2.0))
    worst, mean = _Nearest(guard, "max", 16), _Nearest(guard, "mean", 16)
    assert worst((1, 0, 1, 0), 8, 8) == 1.2
    assert mean((1, 0, 1, 0), 8, 8) == 1.1
    assert worst((2, 0, 1, 0), 8, 8) == 1.5
    assert worst((4, 0, 1, 0), 8, 8) == 1.5
    assert worst((1, 0, 1, 0), 16, 16) == 3.0
    # Own SMs count four cells a whole GPU, contested SMs eight.
    assert worst((2, 0, 1, 0), 11, 5) == 1.5
    assert worst((1, 0, 1, 0), 16, 5) == 1.2
    assert worst((1, 0, 1, 0), 16, 6) == 3.0  # 2 + 3 and 0 + 5: as far
    assert worst((1, 0, 1, 0), 16, 7) == 3.0
    assert _Nearest(guard, "none", 16)((1, 0, 1, 0), 8, 8) == 1.0
    assert _Nearest(Guard((), (), ()), "max", 16)((1, 0, 1, 0), 8, 8) == 1.0


def linear_ns(shape, sms):
    """Coefficients that are linear in 1/SMs."""
    if not shape.chunks:
        r, count, one = decode_amounts(shape)
        return 5.0 * r / sms + (100.0 + 800.0 / sms) * count + 1000.0 * one
    squares, products, tokens, one = prefill_amounts(shape)
    return (2.0 * squares + 1.0 * products + 900.0 * tokens) / sms + 5000.0 * one


PREFILLS = [BatchShape(0, 0, ((n, r),)) for n in (16, 64, 256) for r in (0, 128, 512)]
DECODES = [BatchShape(b, b * c) for b in (1, 4, 16) for c in (10, 100, 1000)]


def test_a_linear_truth_is_found_again():
    points = [point(s, sms, linear_ns(s, sms)) for s in (*PREFILLS, *DECODES) for sms in (4, 8, 16)]
    prefill = fits.fit_phase(
        points[: 3 * len(PREFILLS)], prefill_amounts, 4, 32, "prefill", "chunks"
    )
    decode = fits.fit_phase(points[3 * len(PREFILLS) :], decode_amounts, 3, 32, "decode", "batches")
    assert prefill[0] == decode[0] == (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
    assert prefill[1][0] == pytest.approx([2.0 * x for x in prefill[0]], rel=1e-6)
    assert prefill[1][2] == pytest.approx([900.0 * x for x in prefill[0]], rel=1e-6)
    assert prefill[1][3][1:4] == pytest.approx([5000.0] * 3, rel=1e-5)
    assert decode[1][0] == pytest.approx([5.0 * x for x in decode[0]], rel=1e-6)
    assert decode[1][1] == pytest.approx([100.0 + 800.0 * x for x in decode[0]], rel=1e-6)
    assert decode[1][2] == pytest.approx([1000.0] * 5, rel=1e-6)
    # A mixed batch is a prefill, each decode one more token of it, and 1.5 times the contexts.
    mixed = []
    for sms in (4, 8):
        shape = BatchShape(2, 50_000, ((64, 0),))
        ns = linear_ns(shape, sms) + 1.5 * 5.0 * 50_000 / sms
        mixed.append(point(shape, sms, ns, kind="mixed"))
    assert fits._fit_mixed(mixed, prefill, decode) == pytest.approx(1.5, rel=1e-4)


def test_a_linear_fit_needs_as_many_shapes_as_coefficients_on_two_counts():
    few = [point(s, sms, linear_ns(s, sms)) for s in DECODES[:2] for sms in (4, 8)]
    with pytest.raises(UsageError, match=r"at least 3 different batches .* 2 shapes on 2"):
        fits.fit_phase(few, decode_amounts, 3, 32, "decode", "batches")
    one = [point(s, 8, linear_ns(s, 8)) for s in DECODES]
    with pytest.raises(UsageError, match="9 shapes on 1"):
        fits.fit_phase(one, decode_amounts, 3, 32, "decode", "batches")


def test_a_count_that_a_shape_lacks_is_interpolated_in_inverse_sms():
    assert fits._at({4: 400.0, 16: 100.0}, 4) == 400.0
    assert fits._at({4: 400.0, 16: 100.0}, 8) == near(200.0)


def test_a_guard_keeps_the_worst_and_the_mean_of_each_cell_and_split():
    pairs = [
        point(ONES, 8, 150.0, PROMPT, alone=100.0), point(ONES, 8, 130.0, PROMPT, alone=100.0),
        point(ONES, 8, 90.0, PROMPT, neighbour_sms=12, alone=100.0),
        point(PROMPT, 8, 300.0, ONES, alone=100.0), point(ONES, 8, 100.0),
    ]  # fmt: skip
    found = fits.fit_guard(pairs, "decode", needed=True)
    cell = cell_of(ONES, PROMPT)
    assert found.cells == ((*cell, 8, 8), (*cell, 8, 12))
    assert found.worst == (1.5, 1.0)  # nothing gets faster beside another
    assert found.mean == (near(1.4), 1.0)
    assert fits.fit_guard(pairs[-1:], "decode", needed=False) == Guard((), (), ())
    with pytest.raises(UsageError, match="in which decode ran beside the other phase"):
        fits.fit_guard(pairs[-2:], "decode", needed=True)


# -- counts of work --------------------------------------------------------------------------------


def test_chunks_as_one_chunk_and_pieces_as_passes():
    assert chunk_work(((10, 5), (4, 0))) == (14, 10 * (5 + 5.5) + 4 * 2.5)
    assert equivalent_context(10, 10 * (5 + 5.5)) == 5.0
    assert portion(BatchShape(1, 1, repeat=3), 8) == 3.0
    assert portion(BatchShape(0, 0, ((5, 0),), layers=(2, 4)), 8) == 0.25


def test_work_of_a_tiny_model():
    model, gpu = tiny_model(), tiny_gpu()
    work = model_work(model)
    shape = BatchShape(3, 300, ((10, 5), (4, 0)))
    found = Stages(gpu, model).work(shape)
    rows = 17
    sizes = [(256, 512), (256, 256), (256, 1024), (512, 256)]
    for (flops, moved), (a, b) in zip(found.dense, sizes, strict=False):
        assert flops == near(2.0 * a * b * 4 * rows)
        assert moved == near(a * b * 4 * 2.0 + (a + b) * 4 * 2.0 * rows)
    assert found.dense[-1] == (near(2.0 * 256 * 1000 * 5), near(256 * 1000 * 2.0))
    pairs = 10 * (5 + 5.5) + 4 * 2.5
    assert found.chunk_flops == near(pairs * 4 * 4 * 64 * 4)
    per_key = 2 * 4 * 2 * 64 * 2
    assert found.chunk_bytes == near(19 * per_key + 14 * 2 * 4 * 64 * 2 * 4)
    assert found.decode_bytes == near(303 * per_key)
    assert found.decode_flops == near(303 * 4 * 4 * 64 * 4)
    assert (found.flops_per_ns, found.bytes_per_ns) == (gpu.peak_tflops * 1e3, gpu.hbm_gbps)
    ((attention, layers),) = work.mixing
    assert (attention.pair_flops, layers) == (4 * 4 * 64, 4)
    two = model_work(model, 2)
    assert [(x.inputs, x.outputs) for x in two.linears] == [
        (256, 256), (128, 256), (256, 512), (256, 256),
    ]  # fmt: skip
    assert (two.head.outputs, two.mixer.num_heads, two.mixer.num_kv_heads) == (500, 2, 1)


# -- rates of the roofline -------------------------------------------------------------------------

FITTED = RooflineParameters(
    bandwidth=0.8, bandwidth_sms=0.5, sms=(4.0, 16.0), prefill_sizes=(10.0, 20.0),
    prefill_dense=((1.0, 2.0), (3.0, 4.0)), prefill_attention=((1.0, 1.0), (1.0, 1.0)),
    decode_sizes=(1.0, 2.0), decode_dense=((1.0, 1.0), (1.0, 1.0)),
    decode_attention=((1.0, 1.0), (1.0, 1.0)), mixed=1.0, lengths=(100.0, 300.0),
    decode_sms=(4.0, 12.0), decode_bandwidth=((0.9, 0.5), (0.7, 0.3)), prefill_sms=(4.0, 12.0),
    prefill_slowdown=(1.5, 1.1),
)  # fmt: skip


def test_rates_are_alpha_over_what_sms_compute_and_reach():
    """16 SMs, N_d = 8: half of the SMs reach all that memory gives, 0.8 of 0.5 bytes/ns."""
    gpu = tiny_gpu()
    rates = Rates(
        FITTED.prefill_sizes, (FITTED.prefill_dense, FITTED.prefill_attention), FITTED, gpu
    )
    assert rates.axis == (1 / 16, 1 / 8, 1 / 4, 1.0)
    peak, band = gpu.peak_tflops * 1e3, gpu.hbm_gbps * 0.8
    flop, byte = rates.tables[0][0], rates.tables[1][0]
    assert flop == [near(2.0 / peak), near((1 + 1 / 3) * 2 / peak), near(4 / peak), near(16 / peak)]
    # alpha falls along the SMs here, but no rate may: taking SMs away makes nothing faster.
    assert byte == [near(2.0 / band)] * 2 + [near(2.0 / band), near(8.0 / band)]
    assert rates.tables[2][0][0] == near(1 / peak)
    middle = rates.at(15.0, 16)
    assert middle[0] == near(0.5 * (2.0 + 4.0) / peak)
    assert [line[0] for line in rates.lines(15.0)] == middle
    assert rates.at(15.0, 6)[0] == near(0.5 * (rates.at(10.0, 6)[0] + rates.at(20.0, 6)[0]))


def test_what_a_neighbour_leaves():
    beside = Beside(FITTED)
    assert beside.decode_share(200.0, 8) == near((0.7 + 0.5) / 2)
    assert beside.decode_share(100.0, 4) == 0.9
    assert beside.decode_share(999.0, 12) == 0.3
    assert beside.prefill_slowdown(6) == near(1.4)


def test_a_roofline_is_the_longer_of_the_two():
    assert rooflines([(10.0, 1.0), (1.0, 10.0), (2.0, 1.0)], 1.0, 2.0) == 10.0 + 20.0 + 2.0


# -- pairs -----------------------------------------------------------------------------------------


def test_a_pair_stands_where_its_prefill_and_its_decode_do():
    chunks = BatchShape(0, 0, ((10, 5), (4, 0)))
    pairs = 10 * 10.5 + 10.0
    context = pairs / 14 - 7.5
    assert place_of(chunks, ONES) == place_of(ONES, chunks) == (14, near(context), 4, 100.0)
    assert place_of(ONES, ONES) == (0, 0.0, 4, 100.0)
    assert place_of(chunks, chunks) == (14, near(context), 0, 0.0)


def test_a_slowdown_is_contested_as_far_as_sms_are_shared():
    assert contested(1.2, 2.0, 8, 0) == contested(1.2, 2.0, 8, -3) == 1.2
    assert contested(1.2, 2.0, 8, 2) == near(1.2 * 0.75 + 2.0 * 0.25)
    assert contested(1.2, 2.0, 8, 8) == contested(1.2, 2.0, 8, 9) == 2.0


def test_corners_of_a_pair_are_of_the_prefill_then_of_the_decode():
    made = Slowdowns(((0.0, 200.0), (0.0, 100.0)), ((0.0, 8.0), (0.0, 400.0)), (4.0, 8.0), ())
    prefill, decode = made.around(ONES, PROMPT)
    assert prefill == ((0, 0.25), (1, 0.25), (2, 0.25), (3, 0.25))
    assert decode == ((0, 0.375), (1, 0.125), (2, 0.375), (3, 0.125))


# -- SLOs ------------------------------------------------------------------------------------------


class Wish:
    def __init__(self, norm_ttft_ms=None, ttft_ms=None, tbt_ms=None):
        self.norm_ttft_ms, self.ttft_ms, self.tbt_ms = norm_ttft_ms, ttft_ms, tbt_ms


def test_options_come_before_the_users_wishes_and_those_before_the_papers():
    none, asked = Limits(8, 64, 1024), Limits(8, 64, 1024, 700.0, 70.0)
    assert expected(Wish(), none) == BulletSlo(3.0 * MS, True, 150.0 * MS)
    assert expected(Wish(), asked) == BulletSlo(700.0 * MS, False, 70.0 * MS)
    assert expected(Wish(ttft_ms=5.0, tbt_ms=6.0), asked) == BulletSlo(5.0 * MS, False, 6.0 * MS)
    assert expected(Wish(norm_ttft_ms=2.0), asked) == BulletSlo(2.0 * MS, True, 70.0 * MS)
    request = offer(0, 0, 30, 5)
    assert BulletSlo(5.0, True, 1.0).ttft_of(request) == 150.0
    assert BulletSlo(5.0, False, 1.0).ttft_of(request) == 5.0


def decoding(index, tokens):
    made = offer(index, 0, 10, 60)
    made.num_tokens, made.num_computed_tokens = 10 + tokens, 9 + tokens
    return made


def started(pace, index, at):
    request = decoding(index, 1)
    pace.completed(Batch("prefill", [], [Chunk(request, 10, 0)], PROMPT), at)
    return request


def test_a_pace_is_time_since_the_first_token_over_the_tokens_since():
    pace = Pace()
    request = started(pace, 0, 1000)
    request.num_tokens = 10 + 5
    assert not pace.late([request], 1000 + 5 * 100, 100.0)
    assert pace.late([request], 1001 + 5 * 100, 100.0)
    pace.completed(Batch("prefill", [], [Chunk(decoding(0, 1), 10, 0)], PROMPT), 9999)
    assert pace.late([request], 1501, 100.0)  # a first token comes once
    assert not pace.late([decoding(7, 5)], 10**9, 1.0)  # whose first token nobody saw


def test_one_in_ten_may_be_late():
    pace = Pace()
    crowd = [started(pace, index, 0) for index in range(20)]
    for request in crowd:
        request.num_tokens = 12
    late = crowd[:3]
    for request in crowd[3:]:
        request.num_tokens = 60
    assert pace.late(crowd, 1000, 100.0)
    late[0].num_tokens = 60
    assert not pace.late(crowd, 1000, 100.0)
    assert pace.late(crowd[:19], 1000, 100.0)  # one of 19, not two


def test_a_chunk_that_ends_no_prompt_starts_no_pace():
    pace = Pace()
    early = decoding(0, 0)
    early.num_tokens, early.num_computed_tokens = 10, 5
    again = decoding(1, 5)
    for request in (early, again):
        pace.completed(Batch("prefill", [], [Chunk(request, 5, 0)], PROMPT), 50)
    assert pace._first == {}


def test_those_who_left_are_forgotten_once_they_are_many():
    pace = Pace()
    pace._first = dict.fromkeys(range(MOST_FORGOTTEN + 4), 0)
    pace.forget([decoding(3, 1)])
    assert len(pace._first) == MOST_FORGOTTEN + 4
    pace._first[MOST_FORGOTTEN + 4] = 0
    pace.forget([decoding(3, 1)])
    assert pace._first == {3: 0}


# -- DuetServe -------------------------------------------------------------------------------------


class Belief:
    """A decode step takes 80/SMs ns, a prefill 800/SMs."""

    learns, monotone, options, parameters, name = False, True, None, None, "belief"

    def predict(self, shape, sms, neighbour=None):
        return (800.0 if shape.chunks else 80.0) / sms

    def predict_splits(self, shape, sms, neighbour=None, neighbour_sms=()):
        return [self.predict(shape, own) for own in sms]


def split(prefill):
    return Split(("prefill", "decode"), (prefill, 16 - prefill))


def test_the_best_number_of_decode_steps_beside_a_prefill():
    """8 and 8 SMs: a step of 10 ns, a prefill of 100: ten steps and 100 + 50 tokens in 100 ns."""
    decode, prefill = BatchShape(4, 40, repeat=7), BatchShape(0, 0, ((100, 0), (50, 0)))
    (found,) = duets(Belief(), decode, prefill, [split(8)], 1000.0, range(1, 33))
    assert (found.split, found.steps) == (split(8), 10)
    assert found.rate == near((10 * 4 + 150) / 100)
    (few,) = duets(Belief(), decode, prefill, [split(8)], 1000.0, range(1, 5))
    assert (few.steps, few.rate) == (4, near((16 + 150) / 100))
    (many,) = duets(Belief(), decode, prefill, [split(8)], 1000.0, range(20, 30))
    assert (many.steps, many.rate) == (20, near((80 + 150) / 200))


def test_a_step_over_the_bound_or_a_wait_over_it_is_no_duet():
    decode, prefill = BatchShape(4, 40), BatchShape(0, 0, ((100, 0),))
    splits = [split(8), split(12)]  # steps of 10 and of 20 ns, prefills of 100 and of 66.7
    assert [d.split for d in duets(Belief(), decode, prefill, splits, 20.0, range(1, 33))] == splits
    assert [
        d.split for d in duets(Belief(), decode, prefill, splits, 19.9, range(1, 33))
    ] == splits[:1]
    # Of 100 ns one decode step waits 90: as long as the bound lets it.
    assert duets(Belief(), decode, prefill, splits[:1], 90.0, range(1, 2))
    assert not duets(Belief(), decode, prefill, splits[:1], 89.9, range(1, 2))


# -- a belief that is calibrated -------------------------------------------------------------------


def test_alphas_on_both_sides_follow_by_their_weights():
    """16 SMs: knots at 2, 4, 8, 12 and 16. A launch on 5 SMs that took twice as long."""
    belief = Calibrated(Belief(), 16)
    assert belief.axis == (2.0, 4.0, 8.0, 12.0, 16.0)
    belief.observe(ONES, 5, 16.0, 32.0)
    low, high = 1 + 0.1 * 0.75, 1 + 0.1 * 0.25
    mixed = 0.75 * low + 0.25 * high
    assert belief.alpha["decode"] == [near(mixed), near(low), near(high), near(mixed), near(mixed)]
    assert belief.alpha["prefill"] == [1.0] * 5
    assert belief.predict(ONES, 6) == near(80 / 6 * (low + high) / 2)
    assert belief.predict_splits(ONES, [6]) == [belief.predict(ONES, 6)]
    belief.observe(ONES, 8, 10.0, 20.0)  # on a knot: its neighbours keep what they know
    assert belief.alpha["decode"][1] == near(low)
    assert belief.alpha["decode"][2] == near(high + 0.1 * (2 * high - high))


def test_prompts_alone_are_asked_once(monkeypatch):
    asked = []

    class Counting(Belief):
        def predict(self, shape, sms, neighbour=None):
            asked.append(shape)
            return super().predict(shape, sms)

    belief = Calibrated(Counting(), 16)
    assert belief.predict(PROMPT, 8) == belief.predict(PROMPT, 8) == 100.0
    assert len(asked) == 1
    belief.predict(ONES, 8)
    belief.predict(ONES, 8)
    belief.predict(PROMPT, 8, (ONES, 8))
    belief.predict(PROMPT, 8, (ONES, 8))
    assert len(asked) == 5
    monkeypatch.setattr("nexusbench.serving.following.MOST_KEPT", 1)
    belief.predict(PROMPT, 4)
    assert len(belief._kept) == 1


# -- defaults, and what is fitted ------------------------------------------------------------------


def test_a_curve_and_a_stage_that_nothing_was_fitted_to_change_nothing():
    for share in (0.25, 0.5, 1.0):
        assert (
            gain(SaturationCurve(), share, max, "A")
            == gain(SaturationCurve(), share, max, "B")
            == share
        )
    assert NexusStage().contention == (0.0, 0.0, 0.0, 0.0)
    assert NexusStage().fixed_ns == 0.0


def test_saturation_and_decay():
    bent = SaturationCurve(saturation=0.5, decay=0.4, efficiency=0.9)
    whole = 0.5 + 0.4 * 0.5
    assert gain(bent, 1.0, max, "A") == near(0.9)
    assert gain(bent, 0.25, max, "A") == near(0.9 * 0.25 / whole)
    assert gain(bent, 0.75, max, "A") == near(0.9 * (0.5 + 0.4 * 0.25) / whole)
    assert gain(bent, 1.0, max, "B") == near(0.9)
    grown = 0.5 * math.exp(0.4 * 0.25) / (0.5 * math.exp(0.4 * 0.5))
    assert gain(bent, 0.75, max, "B") == near(0.9 * grown)


def test_each_class_meets_each_class_for_the_time_that_it_runs():
    mine = NexusTimes(100.0, 50.0, 30.0, 0.0, 0.0, 0.0, 0.0)
    theirs = NexusTimes(20.0, 60.0, 20.0, 0.0, 0.0, 0.0, 0.0)
    stage = NexusStage(contention=(0.1, 0.2, 0.4, 0.8))
    extra = 100 * (0.1 * 0.2 + 0.2 * 0.6) + 50 * (0.4 * 0.2 + 0.8 * 0.6)
    assert slowed(mine, theirs, stage, 0.5) == near(0.5 * extra)


def test_what_is_recalibrated_follows_its_phase_within_bounds():
    belief = Recalibrated(Belief())
    belief.observe(ONES, 8, 10.0, 20.0)
    assert belief.ratios == {"prefill": 1.0, "decode": near(1.05)}
    assert belief.predict(ONES, 8) == near(10.0 * 1.05)
    assert belief.predict_splits(ONES, [8, 16]) == [near(10.5), near(5.25)]
    for predicted, actual in ((0.0, 5.0), (5.0, 0.0), (-1.0, 5.0), (5.0, -1.0)):
        belief.observe(ONES, 8, predicted, actual)
    assert belief.ratios["decode"] == near(1.05)
    belief.observe(PROMPT, 8, 1.0, 1e9)
    assert belief.ratios["prefill"] == 5.0
    for _ in range(99):
        belief.observe(PROMPT, 8, 1e9, 1.0)
    assert belief.ratios["prefill"] == 0.2


FULL = RooflineParameters(**{
    **{name: getattr(FITTED, name) for name in FITTED.__struct_fields__}, "overlapping": (3.0, 4.0),
})  # fmt: skip


@pytest.mark.parametrize("shape", [ONES, PROMPT])
def test_a_roofline_is_contested_as_far_as_sms_are_shared(shape):
    """8 of 16 SMs: with 4 of them shared it is halfway between none and all."""
    made = Roofline(RooflineOptions(), gpu=tiny_gpu(), model=tiny_model(), parameters=FULL)
    other = PROMPT if shape is ONES else ONES
    apart, half, whole = [made.predict(shape, 8, (other, sms)) for sms in (8, 12, 16)]
    assert half == near((apart + whole) / 2)
    assert whole == near(made.predict(shape, 8) * (4.0 if shape is ONES else 3.0))
    assert apart < whole
    assert made.predict_splits(shape, [8], other, [12]) == [half]


def test_decodes_attention_beside_chunks_is_told_from_mixed_batches_alone():
    class Known:
        def parts(self, shape, sms):
            return 100.0, 40.0

    mixed = BatchShape(2, 200, ((64, 0),))
    points = [point(PROMPT, ns=1.0), point(mixed, ns=180.0, kind="mixed"), point(ONES, ns=1.0)]
    assert _fit_roofline._fit_mixed(points, Known()) == near(2.0)
    assert _fit_roofline._fit_mixed(points[:1], Known()) == 1.0
    assert all(0 < share <= 1 for share in _fit_roofline.BANDWIDTHS)


def test_slowdowns_over_sms_are_at_least_one_and_fill_what_was_not_measured():
    pairs = [
        point(PROMPT, sms, 100.0 * slow, ONES, alone=100.0)
        for sms, slow in ((4, 1.5), (12, 1.3), (12, 1.3))
    ]  # fmt: skip
    found = _fit_roofline._slowdowns(pairs, [4.0, 8.0, 12.0])
    assert found == pytest.approx((1.5, 1.4, 1.3), abs=0.01)
    faster = [point(PROMPT, sms, 90.0, ONES, alone=100.0) for sms in (4, 12)]
    assert _fit_roofline._slowdowns(faster, [4.0, 12.0]) == (1.0, 1.0)


def test_sizes_of_the_alphas_are_measured_ones_in_about_equal_ratios():
    sizes = np.array([1.0, 2.0, 3.0, 9.0, 10.0, 50.0, 100.0, 100.0])
    assert _fit_roofline._spaced(sizes, 3) == (1.0, 10.0, 100.0)
    assert _fit_roofline._spaced(sizes, 2) == (1.0, 100.0)
