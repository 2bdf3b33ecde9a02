"""What a profile says about sharing a device, and its table read again beside a simulated GPU."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import InputError
from nexusbench.costs.base import Target
from nexusbench.experiments.fidelity.partitions.formats import read_partitions
from nexusbench.experiments.fidelity.partitions.shared import TableOfSteps, points_of
from nexusbench.experiments.fidelity.partitions.simulated import SimulatedGpu
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.physics.profiled import ProfiledPhysics
from nexusbench.profiles.points import Point, PointSetting
from nexusbench.profiles.profile import Fingerprint, Profile
from nexusbench.profiles.sharing import (
    COLUMNS,
    EqualBatch,
    SharingRow,
    equal_batch,
    sharing_rows,
    write_partitions,
)
from nexusbench.profiling.facts import derive_facts
from nexusbench.profiling.fitting import split_points
from nexusbench.profiling.sharing import derive_sharing

TARGET = Target(load_gpu("l20"), load_model("qwen2.5-3b"))
MOST = TARGET.gpu.num_sms
PREFILL, OTHER = BatchShape(0, 0, ((1024, 512),)), BatchShape(0, 0, ((256, 0),))
SHORT, LONG, ONE = BatchShape(16, 16 * 128), BatchShape(16, 16 * 4096), BatchShape(1, 128)


def step(shape: BatchShape, sms: int, ns: float, interval: float = 0.0) -> Point:
    kind = "prefill" if shape.chunks else "decode"
    return Point(PointSetting(kind, shape, sms), ns, interval, (ns,))


def beside(
    own: BatchShape, sms: int, ns: float, alone: float, other: BatchShape, other_sms: int
) -> Point:
    kind = "streams" if sms + other_sms > MOST else "pair"
    return Point(PointSetting(kind, own, sms, other, other_sms), ns, 0.0, (ns,), alone_ns=alone)


def rows_of(*points: Point):
    return sharing_rows(points, MOST)


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        (LONG, EqualBatch(16, 4096)),
        (BatchShape(0, 0, ((64, 7), (64, 7))), EqualBatch(2, 7, 64)),
        (BatchShape(3, 100), None),
        (BatchShape(0, 0, ((64, 7), (64, 8))), None),
        (BatchShape(2, 20, ((64, 7),)), None),
        (BatchShape(2, 20, (), (0, 3)), None),
        (BatchShape(2, 20, (), None, 4), None),
    ],
)
def test_only_equal_sequences_are_told_by_their_numbers(shape, found):
    assert equal_batch(shape) == found
    assert found is None or found.shape == shape
    assert equal_batch(shape, (1, 2)) is None


def test_the_least_decode_tells_of_weights():
    rows = rows_of(step(ONE, 8, 5e6), step(SHORT, 8, 6e6), step(PREFILL, 8, 9e6))
    assert [row.operator for row in rows[:3]] == ["weights", "decode step", "prefill step"]
    assert rows[0].ms == 5.0


def test_attention_is_the_difference_of_two_contexts():
    rows = rows_of(step(SHORT, 8, 6e6), step(LONG, 8, 10e6), step(LONG, 16, 8e6))
    (row,) = [row for row in rows if row.operator == "decode attention"]
    assert (row.ms, row.beside_ms, row.sms, row.beside_sms) == (4.0, 6.0, 8, 8)
    assert (row.own, row.beside) == (EqualBatch(16, 4096), EqualBatch(16, 128))


@pytest.mark.parametrize(("interval", "told"), [(0.02, True), (0.03, False)])
def test_a_difference_within_its_noise_is_not_told(interval, told):
    rows = rows_of(step(SHORT, 8, 6e6, interval), step(LONG, 8, 10e6, interval))
    assert any(row.operator == "decode attention" for row in rows) is told


def test_a_pair_is_one_row_with_its_work_rate():
    rows = rows_of(
        step(PREFILL, MOST, 50e6), step(LONG, MOST, 8e6),
        beside(LONG, 40, 16e6, 12e6, PREFILL, 52), beside(PREFILL, 52, 100e6, 90e6, LONG, 40),
    )  # fmt: skip
    (row,) = [row for row in rows if row.operator == "work rate split"]
    assert (row.own.tokens, row.sms, row.beside_sms) == (1024, 52, 40)
    assert row.slowdown == pytest.approx(100 / 90)
    assert row.beside_slowdown == pytest.approx(16 / 12)
    assert row.work_rate == pytest.approx(50 / 100 + 8 / 16)


def test_two_batches_of_one_phase_are_one_row():
    rows = rows_of(
        step(PREFILL, MOST, 50e6), step(OTHER, MOST, 10e6),
        beside(PREFILL, MOST, 90e6, 50e6, OTHER, MOST),
        beside(OTHER, MOST, 25e6, 10e6, PREFILL, MOST),
    )  # fmt: skip
    (row,) = [row for row in rows if row.operator == "work rate streams"]
    assert row.work_rate == pytest.approx(50 / 90 + 10 / 25)


def test_half_a_pair_has_no_work_rate():
    (row,) = [r for r in rows_of(beside(LONG, 40, 16e6, 12e6, PREFILL, 52)) if r.beside]
    assert (row.own, row.slowdown) == (EqualBatch(16, 4096), pytest.approx(4 / 3))
    assert (row.beside_ms, row.beside_slowdown, row.work_rate) == (None, None, None)


def simulated_points() -> list[Point]:
    """Steps and pairs straight from the physics."""
    physics = Physics(TARGET.gpu, TARGET.model)
    points = [
        step(shape, sms, physics.load(shape, sms).solo)
        for shape in (ONE, SHORT, LONG, PREFILL, OTHER)
        for sms in (24, 46, 68, MOST)
    ]
    for own, other, sms in ((PREFILL, LONG, (46, 46)), (PREFILL, OTHER, (MOST, MOST))):
        for a, b, i in ((own, other, 0), (other, own, 1)):
            load, its = physics.load(a, sms[i]), physics.load(b, sms[1 - i])
            slowed = load.solo * physics.slowdown(load, its)
            points.append(beside(a, sms[i], slowed, load.solo, b, sms[1 - i]))
    return points


def table(folder: Path, *, device: str = "sim:l20", gpus: int = 1, simulated: bool = True) -> Path:
    identity = Fingerprint(device, simulated, MOST, gpus, "x", "qwen2.5-3b", "y")
    return write_partitions(folder, identity, sharing_rows(simulated_points(), MOST))


def test_the_table_beside_the_same_physics_has_no_error(tmp_path):
    path = table(tmp_path)
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    assert tuple(lines[0]) == COLUMNS
    found = read_partitions(path, TARGET.gpu)
    assert found.measured_on == "sim:l20, simulated"
    assert any("nothing here was measured" in note for note in found.notes)
    errors = {p.operator: abs(p.simulated / p.measured - 1) for p in found.points}
    assert set(errors) >= {
        "weights", "decode step", "decode attention", "prefill step", "work rate split",
        "work rate streams", "neighbour split decode", "neighbour streams prefill",
    }  # fmt: skip
    assert max(errors.values()) < 1e-5
    assert {len(line) for line in lines} == {len(COLUMNS)}


@pytest.mark.parametrize("context", range(100, 108))
def test_of_the_one_curve_of_weights_every_second_sm_count_is_held_out(context):
    own, counts = EqualBatch(1, context), (24, 46, 68, 80, 92)
    rows = tuple((i, SharingRow("weights", own, sms, 1e3 / sms)) for i, sms in enumerate(counts))
    found = points_of(TableOfSteps(rows, TARGET.model, 1), SimulatedGpu(TARGET.gpu))
    held_out = {point.sms[0] for point in found.points if not point.fitted}
    assert held_out == {46, 80}


PAIR = "sim:l20,true,qwen2.5-3b,work rate split,1,0,1024,46,90,decode step,16,4096,,48,9,1,1,1"


@pytest.mark.parametrize(
    ("row", "field", "says"),
    [
        (PAIR, "beside_sms", "both sides have 94 SMs; NVIDIA L20 has 92"),
        (PAIR.replace("step,16", "step,x"), "beside_batch", "not a finite number"),
        (PAIR.replace("decode step", "prefill step"), "beside_operator", "is not 'decode step'"),
        (PAIR.replace("true", "yes"), "simulated", "Write true or false"),
        (PAIR.replace("sim:l20", "cpu"), "device", "a CPU, which has no SMs"),
        (PAIR.replace("work rate split", "weights"), "tokens", "a decode has none"),
        (PAIR.replace("1,0,1024", "2000,0,1024"), "batch", "prompts of 1,024 tokens are too many"),
        (PAIR.replace("qwen2.5-3b", "none"), "model", "none"),
        (
            PAIR.replace("work rate split,1,0,1024", "decode attention,16,4096,"),
            "beside_context", "not a shorter context of the same batch",
        ),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_is_named(tmp_path, row, field, says):
    path = tmp_path / "partitions.csv"
    path.write_text(",".join(COLUMNS) + f"\n{row}\n")
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        read_partitions(path, TARGET.gpu)
    assert (caught.value.field, caught.value.line) == (field, 2)


def test_rows_of_two_devices_are_refused(tmp_path):
    path, row = tmp_path / "partitions.csv", PAIR.replace("48,9", "46,9")
    path.write_text("\n".join([",".join(COLUMNS), row, row.replace("sim:l20", "sim:l40s"), ""]))
    with pytest.raises(InputError, match="two devices") as caught:
        read_partitions(path, TARGET.gpu)
    assert caught.value.line == 3


def test_contexts_that_take_as_long_are_not_scored(monkeypatch):
    load = Physics(TARGET.gpu, TARGET.model).load(ONE, MOST)
    monkeypatch.setattr(SimulatedGpu, "step", lambda *_: load)
    less, own = EqualBatch(1, 129), EqualBatch(1, 130)
    rows = [(2, SharingRow("decode attention", own, 46, 1.0, less, 46, 5.0))]
    steps = [(3, SharingRow("weights", less, sms, 5.0)) for sms in (46, MOST)]
    gpu = SimulatedGpu(TARGET.gpu)
    found = points_of(TableOfSteps((*rows, *steps), TARGET.model, 1), gpu)
    assert {point.operator for point in found.points} == {"weights", "weights, absolute"}
    assert any("takes no longer" in note for note in found.notes)


def test_a_replayed_device_slows_two_streams_as_they_were_measured():
    """A prefill beside decodes; two batches of one phase say nothing of that."""
    points = simulated_points()
    decode = physics_of(points).load(LONG, MOST)
    prefill = physics_of(points).load(PREFILL, MOST)
    slower = beside(LONG, MOST, 33.0, 10.0, PREFILL, MOST)
    unlike = beside(LONG, MOST, 90.0, 10.0, ONE, MOST)
    made = physics_of([*points, slower])
    assert made.slowdown(decode, prefill) == pytest.approx(3.3, rel=0.01)
    without, made = physics_of(points), physics_of([*points, unlike])
    assert made.slowdown(decode, prefill) == without.slowdown(decode, prefill)


def physics_of(points: list[Point]) -> ProfiledPhysics:
    profile = Profile(
        1, "test", "2026", Fingerprint("sim:l20", True, MOST, 1, "x", "qwen2.5-3b", "y"),
        TARGET.gpu, TARGET.model, ((46, 46), (MOST, MOST)), "test", 0, "", len(points),
    )  # fmt: skip
    return ProfiledPhysics(profile, points)


def test_a_measured_table_of_two_gpus_says_so(tmp_path):
    path = table(tmp_path, device="NVIDIA L20-x2", gpus=2, simulated=False)
    assert path.read_text().splitlines()[0].endswith("work_rate,gpus")
    found = read_partitions(path, TARGET.gpu)
    assert found.measured_on == "NVIDIA L20-x2"
    assert not any("nothing here was measured" in note for note in found.notes)
    # The times are of one GPU; each of two reads half of the weights.
    absolute = [p for p in found.points if p.operator == "weights, absolute"]
    assert [0.5 < p.simulated / p.measured < 0.8 for p in absolute] == [True] * 4


def test_facts_tell_bandwidth_on_some_of_the_sms_and_work_rates():
    found = derive_sharing(simulated_points(), TARGET)
    rows = [(row.operator, row.percent, row.sms) for row in found.bandwidth]
    assert rows == [
        (name, percent, sms)
        for name in ("weights", "decode attention")
        for percent, sms in ((25, 24), (50, 46), (75, 68), (100, MOST))
    ]
    weights = [row.of_all for row in found.bandwidth if row.operator == "weights"]
    assert weights == sorted(weights)
    assert weights[-1] == 1.0
    assert 500 < found.bandwidth[3].gb_per_s < TARGET.gpu.hbm_gbps
    assert {(row.kind, row.phase, row.beside_phase) for row in found.rates} == {
        ("split", "prefill", "decode"), ("streams", "prefill", "prefill"),
    }  # fmt: skip


def test_beliefs_and_splits_do_not_see_launches_that_share_all_sms():
    points = simulated_points()
    streams = {p.setting.key for p in points if p.setting.kind == "streams"}
    assert len(streams) == 2
    fitted, judged = split_points(points)
    assert not streams & {p.setting.key for p in (*fitted, *judged)}
    found = derive_facts(points, TARGET, [(46, 46)])
    assert {(row.sms, row.neighbour_sms) for row in found.contention} == {(46, 46)}
    assert {(row.prefill_sms, row.decode_sms) for row in found.splits} == {(46, 46)}
