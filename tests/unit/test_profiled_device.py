"""A simulated device made of a profile: close to what was profiled, and never mistaken for it."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest

import nexusbench
from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import InputError, UsageError
from nexusbench.devices.base import DeviceOptions
from nexusbench.devices.sim import Sim
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import legal_splits, load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.profiles.profile import (
    POINTS_FILE,
    SCHEMA,
    Profile,
    load_profile,
    model_fingerprint,
    write_profile,
)
from nexusbench.profiling.fingerprint import fingerprint_of
from nexusbench.testing import check_device
from tests.examples import slow
from tests.unit.profiled import grid, held_out

L20, QWEN = load_gpu("l20"), load_model("qwen2.5-3b")
OPTIONS = DeviceOptions(256, 2048)


def changed(gpu, **constants):
    return msgspec.structs.replace(gpu, sim=msgspec.structs.replace(gpu.sim, **constants))


# A device that is slower in every way than its description says: only its points can tell.
SLOWER = changed(
    L20, dense_efficiency=0.6, attention_efficiency=0.5, bandwidth_efficiency=0.7,
    dense_interference=0.3, attention_interference=3.0, dense_launch_us=9.0,
    step_overhead_us=2000.0,
)  # fmt: skip
# A description that says next to nothing, as that of a machine without a GPU.
VAGUE = changed(
    msgspec.structs.replace(load_gpu("h200"), num_sms=92, peak_tflops=5.0, hbm_gbps=100.0,
                            sm_minimum=4, sm_multiple=2),
    dense_launch_us=0.0, bandwidth_curve=((0.0, 0.0), (1.0, 1.0)),
)  # fmt: skip


def profile_of(folder, truth=L20, described=L20):
    """A profile of a device with the physics of ``truth``, described as ``described``."""
    physics = Physics(truth, QWEN)
    points = grid(physics, truth, QWEN) + held_out(physics, truth, QWEN)
    data = b"".join(msgspec.json.encode(point) + b"\n" for point in points)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / POINTS_FILE).write_bytes(data)
    device = Sim(described, QWEN, OPTIONS, name="measured")
    write_profile(
        folder,
        Profile(
            SCHEMA, "test", "2026-01-01T00:00:00+00:00", fingerprint_of(device, QWEN), described,
            QWEN, tuple(split.sms for split in legal_splits(truth)), "test", 0,
            hashlib.sha256(data).hexdigest(), len(points),
        ),
    )  # fmt: skip
    return folder / "profile.json"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return profile_of(tmp_path_factory.mktemp("l20"))


def test_words_about_constants_change_no_device():
    """Reworded sources and wider ranges leave a profile and a baseline what they are."""
    reworded = msgspec.structs.replace(L20, sources={"num_sms": "elsewhere"}, ranges={})
    was, now, other = (
        fingerprint_of(Sim(gpu, QWEN, OPTIONS), QWEN).device_sha256
        for gpu in (L20, reworded, changed(L20, turn_taking=0.5))
    )
    assert was == now != other


def opened(file, model=QWEN, options=OPTIONS):
    return Sim.open(str(file), model, options)


def errors(device, truth):
    """Mean relative error by phase, alone and beside a neighbour, at settings not profiled."""
    found = {}
    physics = device.physics
    for point in held_out(Physics(truth, QWEN), truth, QWEN, seed=11):
        setting = point.setting
        load = physics.load(setting.shape, setting.sms)
        time = load.solo
        if setting.neighbour is not None:
            beside = physics.load(setting.neighbour, setting.neighbour_sms)
            time *= physics.slowdown(load, beside)
        key = (setting.phase, setting.neighbour is not None)
        found.setdefault(key, []).append(abs(time / point.ns - 1))
    return {key: sum(values) / len(values) for key, values in found.items()}


@pytest.mark.slow
def test_it_has_the_times_of_the_device_that_was_profiled(file):
    assert max(errors(opened(file), L20).values()) < 1e-9


@pytest.mark.slow
def test_points_tell_what_the_description_does_not(tmp_path):
    device = opened(profile_of(tmp_path, SLOWER))
    found = errors(device, SLOWER)
    assert found["prefill", False] < 0.02
    assert found["decode", False] < 0.02
    assert max(found.values()) < 0.06
    physics = Physics(L20, QWEN)
    shape = BatchShape(64, 64 * 700)
    assert device.physics.load(shape, 40).solo > 1.2 * physics.load(shape, 40).solo


@pytest.mark.slow
def test_points_carry_all_the_weight_where_a_description_is_no_gpus(tmp_path):
    found = errors(opened(profile_of(tmp_path, L20, VAGUE)), L20)
    for phase in ("prefill", "decode"):
        assert found[phase, False] < 0.1
        assert found[phase, True] < 0.15


def test_what_it_says_of_itself(file):
    device = opened(file)
    assert device.spec.name == "sim:profile(sim:measured)"
    assert device.spec.simulated
    assert device.spec.kind == "sim"
    assert device.made_of_profile == load_profile(file).points_sha256
    assert L20.ranges  # of physics, and this is measured
    assert device.gpu == Sim.describe(str(file)) == msgspec.structs.replace(L20, ranges={})
    assert device.spec.splits == legal_splits(L20)
    assert opened(file).made_of_profile == device.made_of_profile
    assert Sim.open("l20", QWEN, OPTIONS).made_of_profile is None


@pytest.mark.slow
def test_it_is_a_device(tmp_path):
    from nexusbench.testing import tiny_gpu, tiny_model

    gpu, model = tiny_gpu(), tiny_model()
    physics = Physics(gpu, model)
    points = grid(physics, gpu, model)
    data = b"".join(msgspec.json.encode(point) + b"\n" for point in points)
    (tmp_path / POINTS_FILE).write_bytes(data)
    device = Sim(gpu, model, DeviceOptions(8, 64), name="tiny")
    write_profile(
        tmp_path,
        Profile(
            SCHEMA, "test", "", fingerprint_of(device, model), gpu, model, (), "test", 0,
            hashlib.sha256(data).hexdigest(), len(points),
        ),
    )  # fmt: skip
    check_device(lambda: Sim.open(str(tmp_path / "profile.json"), model, DeviceOptions(8, 64)))


def serve(device, **fields):
    config = nexusbench.RunConfig(
        trace="workloads/sharegpt.jsonl", limit=40, request_rate=8.0, device=device,
        model="qwen2.5-3b", **fields,
    )  # fmt: skip
    return nexusbench.run(config)


@pytest.mark.slow
def test_a_run_on_it_is_deterministic(file):
    once, again = serve(f"sim:{file}"), serve(f"sim:{file}")
    assert once.event_digest == again.event_digest
    assert once.event_digest != serve(f"sim:{file}", seed=1).event_digest


@pytest.mark.slow
def test_a_run_on_it_is_much_like_one_on_what_was_profiled(file):
    profiled, original = serve(f"sim:{file}"), serve("sim:l20")
    assert profiled.resolved.device == "sim:profile(sim:measured)"
    assert profiled.event_digest == original.event_digest


def test_a_belief_made_of_the_same_profile_is_refused(file):
    with pytest.raises(UsageError, match="scored against itself"):
        serve(f"sim:{file}", profile=str(file.parent), cost_model="table")


@pytest.mark.parametrize("name", ["table", *slow("linear", "roofline")])
def test_a_belief_fitted_to_the_profile_serves_what_was_profiled(file, name):
    """The other way round is what a profile is for."""
    found = serve("sim:l20", profile=str(file.parent), cost_model=name, force_profile=True)
    assert found.resolved.belief.cost_model == name
    assert found.summary.metrics["belief_error"].mean < 10


def test_refusals(file, tmp_path):
    with pytest.raises(UsageError, match="--kernel-table"):
        opened(file, options=msgspec.structs.replace(OPTIONS, kernel_table="tables"))
    with pytest.raises(UsageError, match=r"of the model qwen2\.5-3b"):
        opened(file, load_model("llama-3.1-8b"))
    with pytest.raises(UsageError, match="--tensor-parallel-size 1"):
        opened(file, options=msgspec.structs.replace(OPTIONS, tensor_parallel=2))
    with pytest.raises(InputError, match="no such profile"):
        opened(tmp_path / "profile.json")
    (tmp_path / "profile.json").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="not there"):
        opened(tmp_path / "profile.json")
    (tmp_path / POINTS_FILE).write_text("{}\n")
    with pytest.raises(InputError, match="not the points"):
        opened(tmp_path / "profile.json")


def test_a_profile_without_a_phase_is_refused(file, tmp_path):
    lines = (file.parent / POINTS_FILE).read_bytes().splitlines(keepends=True)
    data = b"".join(line for line in lines if b'"kind":"decode"' not in line)
    (tmp_path / POINTS_FILE).write_bytes(data)
    document = json.loads(file.read_text())
    document["points_sha256"] = hashlib.sha256(data).hexdigest()
    (tmp_path / "profile.json").write_text(json.dumps(document))
    assert model_fingerprint(QWEN) == document["fingerprint"]["model_sha256"]
    with pytest.raises(UsageError, match="none of decode"):
        opened(tmp_path / "profile.json")
