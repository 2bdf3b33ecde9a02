"""The sweep plan: pure, legal, within the device, held-out shapes off the grid."""

from __future__ import annotations

import msgspec
import pytest
from profiling_fakes import POOL, SPEC, SPLITS

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.core.state import Limits
from nexusbench.profiling.desk import MOST_REPEATS, Pool, ShapedBatch
from nexusbench.profiling.effort import DEFAULT, EFFORTS, FULL, QUICK
from nexusbench.profiling.plan import alone, make_plan, skewed_contexts
from nexusbench.profiling.positions import BatchOverSms, legal_sms, refine, spread
from tests.examples import sample, slow

SIZES = {
    "small": POOL,
    "tiny": Pool(60, 16, Limits(4, 64, 512)),
    "large": Pool(50_000, 16, Limits(1024, 8192, 131_072)),
}


def everything(plan):
    lines = [line.setting(sms) for line in plan.lines for sms in line.legal]
    return [*lines, *plan.settings]


def test_same_arguments_same_plan():
    assert make_plan(SPEC, POOL, QUICK) == make_plan(SPEC, POOL, QUICK)


@pytest.mark.parametrize("effort", EFFORTS.values(), ids=lambda effort: effort.name)
@pytest.mark.parametrize("size", ["small", "tiny", *slow("large")])
def test_everything_fits_and_is_legal(effort, size):
    pool = SIZES[size]
    plan = make_plan(SPEC, pool, effort)
    pairs = {split.sms for split in SPEC.splits if not split.overlapping}
    assert plan.lines
    for setting in everything(plan):
        assert pool.misfit(ShapedBatch(setting.shape, setting.contexts)) is None
        if setting.kind != "mixed":
            assert setting.sms in legal_sms(SPEC, setting.phase)
        if setting.neighbour is None:
            continue
        sides = (setting.sms, setting.neighbour_sms)
        if setting.kind == "streams":
            assert sides == (SPEC.num_sms, SPEC.num_sms)
        else:
            assert (sides if setting.phase == "prefill" else sides[::-1]) in pairs
        together = sum(
            pool.blocks_of(ShapedBatch(s), MOST_REPEATS) for s in (setting.shape, setting.neighbour)
        )
        assert together <= pool.num_blocks


@pytest.mark.parametrize("effort", sample(EFFORTS.values(), 9), ids=lambda effort: effort.name)
def test_held_out_shapes_are_fitted_nowhere(effort):
    plan = make_plan(SPEC, SIZES["large"], effort)
    kept = {(s.shape, s.contexts) for s in everything(plan) if not s.held_out}
    judged = {(s.shape, s.contexts) for s in everything(plan) if s.held_out}
    assert judged
    assert kept.isdisjoint(judged)
    phases = {(s.phase, s.neighbour is None) for s in plan.settings if s.held_out}
    assert phases >= {("prefill", True), ("prefill", False), ("decode", True), ("decode", False),
                      ("mixed", True)}  # fmt: skip
    assert any(len(s.shape.chunks) > 2 for s in plan.settings if s.held_out)


def test_a_pair_comes_after_both_of_its_sides_alone():
    settings = make_plan(SPEC, POOL, QUICK).settings
    places = {setting.key: place for place, setting in enumerate(settings)}
    pairs = [setting for setting in settings if setting.neighbour is not None]
    assert pairs
    for setting in pairs:
        assert places[alone(setting).key] < places[setting.key]


def test_every_two_phases_share_all_sms_in_both_directions():
    streams = [s for s in make_plan(SPEC, POOL, QUICK).settings if s.kind == "streams"]
    beside = {(s.shape, s.neighbour) for s in streams}
    assert beside == {(other, own) for own, other in beside}
    phases = {(bool(own.chunks), bool(other.chunks)) for own, other in beside}
    assert phases == {(True, False), (False, True), (True, True), (False, False)}


def test_a_device_without_such_a_split_says_that_two_streams_are_missing():
    spec = msgspec.structs.replace(SPEC, splits=SPLITS)
    plan = make_plan(spec, POOL, QUICK)
    assert not [s for s in plan.settings if s.kind == "streams"]
    assert any("no split in which both may use all" in note for note in plan.notes)


def test_what_tells_the_cost_of_sharing_is_measured_on_more_sms():
    """Weights: one decode of the shortest context. Keys and values: two contexts of one batch."""
    plan = make_plan(SPEC, POOL, QUICK)
    usual = min(len(line.start) for line in plan.lines)
    lines = {line.work.shape: len(line.start) for line in plan.lines if not line.work.shape.chunks}
    wide = {shape for shape, count in lines.items() if count > usual}
    assert min(lines, key=lambda shape: (shape.num_decodes, shape.decode_context)) in wide
    batches = [shape.num_decodes for shape in wide if shape.num_decodes > 1]
    assert any(batches.count(batch) > 1 for batch in batches)


def test_settings_are_planned_once():
    keys = [setting.key for setting in make_plan(SPEC, POOL, FULL).settings]
    assert len(keys) == len(set(keys))


@pytest.mark.slow
def test_more_effort_measures_more():
    counts = [make_plan(SPEC, SIZES["large"], e).most_points for e in (QUICK, DEFAULT, FULL)]
    assert counts == sorted(counts)
    assert counts[0] < 700


def test_the_grid_is_a_tensor():
    plan = make_plan(SPEC, SIZES["small"], QUICK)
    chunks = {line.work.shape.chunks[0] for line in plan.lines if line.work.shape.chunks}
    sizes, contexts = {n for n, _ in chunks}, {c for _, c in chunks}
    assert len(chunks) == len(sizes) * len(contexts)
    assert max(sizes) == POOL.limits.max_num_batched_tokens


def test_what_does_not_fit_is_said():
    plan = make_plan(SPEC, Pool(600, 16, Limits(64, 512, 4096)), QUICK)
    assert "exceed the KV pool" in plan.notes[0]


def test_user_batches_are_held_out_and_checked():
    work = ShapedBatch(BatchShape(3, 333, ((100, 5),)))
    plan = make_plan(SPEC, POOL, QUICK, [("mine", work)])
    assert plan.settings[-1].held_out
    assert plan.settings[-1].sms == SPEC.num_sms
    with pytest.raises(UsageError, match="--batch 'huge' does not fit this device: 65 requests"):
        make_plan(SPEC, POOL, QUICK, [("huge", ShapedBatch(BatchShape(65, 65)))])
    grid = make_plan(SPEC, POOL, QUICK).lines[0].work
    known = make_plan(SPEC, POOL, QUICK, [("known", grid)]).settings
    asked = [s for s in known if s.shape == grid.shape and s.sms == SPEC.num_sms]
    assert asked
    assert not any(s.held_out for s in asked)


def test_skewed_contexts_have_the_mean():
    contexts = skewed_contexts(64, 1000)
    assert (len(contexts), sum(contexts) / 64, max(contexts)) == (64, 1000, 4500)


LEGAL = tuple(range(2, 101, 2))


def swept(law, budget=20, bend=0.02):
    line = BatchOverSms(ShapedBatch(BatchShape(1, 10)), LEGAL, spread(LEGAL, 4), budget, bend)
    measured = {}
    while (sms := refine(line, measured)) is not None:
        assert sms in LEGAL
        assert sms not in measured
        measured[sms] = law(sms)
    return measured


def test_a_straight_line_is_not_refined():
    assert len(swept(lambda sms: 100 + 5000 / sms)) == 4


def test_a_bend_is_found():
    knee = 40
    found = swept(lambda sms: max(100.0, 100.0 * knee / sms))
    assert any(abs(sms - knee) <= 4 for sms in found)
    near = [sms for sms in found if knee / 2 <= sms <= 2 * knee]
    assert len(near) > len(found) / 3


def test_a_jump_at_the_end_is_found():
    found = swept(lambda sms: 200.0 if sms < 80 else 100.0)
    assert any(76 <= sms < 80 for sms in found)


def test_the_budget_is_kept():
    assert len(swept(lambda sms: 1000 / sms + (sms % 7) * 100, budget=9)) == 9


def test_spread_covers_both_ends():
    assert spread(LEGAL, 4)[0] == 2
    assert spread(LEGAL, 4)[-1] == 100
    assert spread((5, 6), 4) == (5, 6)
    assert spread(LEGAL, 1) == (100,)
