"""A sweep and its folder: resume, torn lines, foreign folders, Ctrl-C."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from profiling_fakes import POOL, FakeDevice

from nexusbench.core.errors import InputError, Interrupted, UsageError
from nexusbench.core.state import Limits
from nexusbench.profiles.profile import PARTITIONS_FILE, POINTS_FILE, Fingerprint, read_points
from nexusbench.profiling.desk import BatchDesk
from nexusbench.profiling.effort import QUICK
from nexusbench.profiling.measure import Measurer
from nexusbench.profiling.plan import alone, make_plan
from nexusbench.profiling.store import SWEEP_FILE, Header, PointStore
from nexusbench.profiling.sweep import ProfileSweep, seed_of
from tests.examples import slow

IDENTITY = Fingerprint("fake", True, 16, 1, "a" * 64, "m", "b" * 64)
HEADER = Header(1, IDENTITY, Limits(64, 512, 4096), 16, 4000, "quick", 0)


def duration(batch, sms):
    shape = batch.shape
    size = shape.num_tokens * 50 + shape.decode_context + sum(n * c for n, c in shape.chunks) / 9
    return 5000 + size * 16 / sms


def sweep(folder, *, late=None, progress=None, header=HEADER, fresh=False):
    device = FakeDevice(duration, late)
    store = PointStore(folder, header, fresh=fresh)
    plan = make_plan(device.spec, POOL, QUICK)
    ticks = itertools.count(0, 1_000_000)
    made = ProfileSweep(plan, Measurer(BatchDesk(device, POOL), QUICK.sampling), store, 0,
                 stopwatch=lambda: next(ticks), progress=progress)  # fmt: skip
    return made.run(), device


class StopAfter:
    def __init__(self, points):
        self.left = points

    def __call__(self, progress):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    outcome, _ = sweep(folder)
    return folder, outcome


def points_of(folder):
    return (folder / POINTS_FILE).read_bytes()


def test_every_planned_point_is_there_once(whole):
    folder, outcome = whole
    points = read_points(folder / POINTS_FILE)
    keys = [point.setting.key for point in points]
    assert len(keys) == len(set(keys)) == outcome.measured > 100
    assert outcome.kept == 0
    plan = make_plan(FakeDevice(duration).spec, POOL, QUICK)
    assert {setting.key for setting in plan.settings} <= set(keys)
    times = {point.setting.key: point.ns for point in points}
    for point in points:
        if point.setting.neighbour is not None:
            assert point.alone_ns == times[alone(point.setting).key]


@pytest.mark.parametrize("stop", [37, *slow(1, 150)])
def test_interrupted_and_resumed_is_the_same_as_whole(whole, tmp_path, stop):
    with pytest.raises(Interrupted, match=rf"{stop} points are kept in .*Repeat the command"):
        sweep(tmp_path, progress=StopAfter(stop))
    assert points_of(tmp_path).count(b"\n") == stop
    outcome, _ = sweep(tmp_path)
    assert (outcome.kept, outcome.measured) == (stop, whole[1].measured - stop)
    assert points_of(tmp_path) == points_of(whole[0])


@pytest.mark.slow
def test_a_torn_line_is_cut_off_and_measured_again(whole, tmp_path):
    with pytest.raises(Interrupted):
        sweep(tmp_path, progress=StopAfter(20))
    path = tmp_path / POINTS_FILE
    path.write_bytes(path.read_bytes()[:-25])
    outcome, _ = sweep(tmp_path)
    assert outcome.kept == 19
    assert points_of(tmp_path) == points_of(whole[0])


def test_a_finished_sweep_measures_nothing(whole, tmp_path):
    (tmp_path / POINTS_FILE).write_bytes(points_of(whole[0]))
    (tmp_path / SWEEP_FILE).write_bytes((whole[0] / SWEEP_FILE).read_bytes())
    outcome, device = sweep(tmp_path)
    assert (outcome.measured, device.launched) == (0, [])


def test_damage_in_the_middle_is_named(whole, tmp_path):
    lines = points_of(whole[0]).split(b"\n")
    lines[4] = lines[4][:50]
    (tmp_path / POINTS_FILE).write_bytes(b"\n".join(lines))
    (tmp_path / SWEEP_FILE).write_bytes((whole[0] / SWEEP_FILE).read_bytes())
    with pytest.raises(InputError, match=r"points\.jsonl:5: .*Delete the line"):
        sweep(tmp_path)


def replace(**fields):
    return msgspec.structs.replace(HEADER, **fields)


def other(**fields):
    return replace(fingerprint=msgspec.structs.replace(IDENTITY, **fields))


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (other(device="sim:l20"), "its device is fake, not sim:l20"),
        (other(device_sha256="c" * 64), "fake has other constants or tables now"),
        (other(model="x", model_sha256="c" * 64), "its model is m, not x"),
        (other(tensor_parallel=2), "its tensor-parallel size is 1, not 2"),
        (replace(seed=1), "its seed is 0, not 1"),
        (replace(effort="full"), "its effort is quick, not full"),
        (replace(limits=Limits(64, 256, 4096)), "its max_num_batched_tokens is 512, not 256"),
        (replace(kv_blocks=5), "its number of KV blocks is 4000, not 5"),
    ],
)
def test_a_foreign_folder_is_refused(tmp_path, header, says):
    PointStore(tmp_path, HEADER).close()
    with pytest.raises(UsageError, match="holds another sweep") as error:
        PointStore(tmp_path, header)
    assert says in str(error.value)
    assert "--fresh" in str(error.value)


def test_another_environment_is_the_same_device(tmp_path):
    PointStore(tmp_path, HEADER).close()
    PointStore(tmp_path, other(environment={"driver": "600"})).close()


def test_points_without_a_header_are_refused_and_fresh_forgets_them(whole, tmp_path):
    (tmp_path / POINTS_FILE).write_bytes(points_of(whole[0]))
    with pytest.raises(InputError, match=r"no sweep\.json"):
        PointStore(tmp_path, HEADER)
    (tmp_path / PARTITIONS_FILE).write_text("of before\n")
    store = PointStore(tmp_path, HEADER, fresh=True)
    assert store.points == {}
    assert not (tmp_path / PARTITIONS_FILE).exists()
    store.close()


def test_a_damaged_header_is_named(tmp_path):
    (tmp_path / SWEEP_FILE).write_text('{"schema": "one"}')
    with pytest.raises(InputError, match=r"sweep\.json: field 'schema': not the header of a sweep"):
        PointStore(tmp_path, HEADER)


def test_two_sweeps_cannot_write_to_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    first = PointStore(tmp_path, HEADER)
    with pytest.raises(UsageError, match="another sweep is writing"):
        PointStore(tmp_path, HEADER)
    first.close()
    PointStore(tmp_path, HEADER).close()


@pytest.mark.slow
def test_pairs_that_cannot_be_measured_are_noted_and_tried_again(whole, tmp_path):
    outcome, _ = sweep(tmp_path, late={"prefill": 10**7, "decode": 10**7})
    missing = [note for note in outcome.notes if "neighbour was not busy throughout" in note]
    assert len(missing) == whole[1].measured - outcome.measured > 0
    again, _ = sweep(tmp_path)
    assert (again.measured, again.kept) == (len(missing), outcome.measured)


@pytest.mark.slow
def test_progress_comes_to_its_end(tmp_path):
    seen = []
    outcome, _ = sweep(tmp_path, progress=seen.append)
    assert [p.done for p in seen] == list(range(1, outcome.measured + 1))
    assert seen[-1].done == seen[-1].most
    assert seen[-1].left_s == 0
    assert all(p.left_s >= 0 for p in seen)


def test_noise_does_not_depend_on_the_order():
    plan = make_plan(FakeDevice(duration).spec, POOL, QUICK)
    seeds = {seed_of(0, setting) for setting in plan.settings}
    assert len(seeds) == len(plan.settings)
    assert seeds.isdisjoint({seed_of(1, setting) for setting in plan.settings})
