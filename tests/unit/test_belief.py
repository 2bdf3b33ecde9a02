"""Beliefs fitted to a profile: what is used, what is refused, what is learnt while serving."""

from __future__ import annotations

import json

import msgspec
import pytest

import nexusbench
from nexusbench.core.batch import BatchShape
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InputError, UsageError
from nexusbench.models.config import load_model
from nexusbench.profiles.profile import POINTS_FILE, load_profile
from nexusbench.serving.belief import make_belief
from nexusbench.serving.following import LEAST, Recalibrated
from tests.sim.profiles import make_profile, open_sim

PREFILL, DECODE = BatchShape(0, 0, ((1000, 500),)), BatchShape(30, 30_000)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    make_profile(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy to damage."""
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def ask(folder, *, gpu="l20", model="qwen2.5-3b", device=None, **fields):
    config = RunConfig(
        trace="", device=f"sim:{gpu}", model=model,
        profile=None if folder is None else str(folder), **fields,
    )  # fmt: skip
    return make_belief(config, device or open_sim(gpu, model), load_model(model))


def edit(folder, change):
    file = folder / "profile.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def test_a_profile_of_this_device_is_used(made):
    belief, facts = ask(made)
    assert belief.name == "nexus"
    assert facts.profile.points_sha256 == load_profile(made).points_sha256
    physics = open_sim().physics
    for shape in (PREFILL, DECODE):
        for sms in (20, 46, 92):
            truth = physics.load(shape, sms).solo
            assert belief.predict(shape, sms) == pytest.approx(truth, rel=0.25)


def test_the_file_or_its_folder(made):
    assert ask(made / "profile.json")[0].parameters == ask(made)[0].parameters


def test_without_a_profile_the_analytic_belief_and_nothing_fitted():
    assert ask(None)[0].name == "roofline"
    with pytest.raises(UsageError, match=r"'nexus' must be fitted .* --profile DIR"):
        ask(None, cost_model="nexus")


def test_another_reading_is_fitted_from_the_points_beside_it(made, folder):
    printed, _ = ask(made, cost_model="nexus:memory=printed,contention=rates")
    assert printed.predict(DECODE, 10) < ask(made)[0].predict(DECODE, 10)
    (folder / POINTS_FILE).unlink()
    assert ask(folder)[0].name == "nexus"  # its own fits need no points
    with pytest.raises(InputError, match="points are not there"):
        ask(folder, cost_model="nexus:memory=printed")


def test_points_that_are_not_the_profiles_own(folder):
    points = folder / POINTS_FILE
    points.write_bytes(points.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match="not the points that the profile was fitted to"):
        ask(folder, cost_model="nexus:memory=printed")


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"gpu": "h200"}, "it is of sim:l20 .92 SMs., this run uses sim:h200"),
        ({"model": "llama-3.1-8b"}, "of the model qwen2.5-3b, this run serves llama-3.1-8b"),
    ],
)
def test_of_another_device_or_model_only_if_forced(made, other, sentence):
    with pytest.raises(UsageError, match=f"{sentence}.* --force-profile"):
        ask(made, **other)
    belief, facts = ask(made, **other, force_profile=True)
    assert facts.profile.forced
    assert belief.predict(PREFILL, 46) > 0


def test_of_the_same_gpu_with_other_constants(made):
    device = open_sim()
    sim = msgspec.structs.replace(device.gpu.sim, turn_taking=0.123)
    device.gpu = msgspec.structs.replace(device.gpu, sim=sim)
    with pytest.raises(UsageError, match="other constants"):
        ask(made, device=device)


def test_sources_may_be_reworded(made):
    device = open_sim()
    device.gpu = msgspec.structs.replace(device.gpu, sources={"clock": "elsewhere"})
    ask(made, device=device)


def test_a_truth_made_of_the_same_profile_is_refused_for_good(made):
    device = open_sim()
    device.made_of_profile = load_profile(made).points_sha256
    for force in (False, True):
        with pytest.raises(UsageError, match="scored against itself"):
            ask(made, device=device, force_profile=force)


def test_damaged_profiles(folder, tmp_path):
    whole = (folder / "profile.json").read_bytes()
    for text, sentence in (
        (whole[: len(whole) // 2], "not valid JSON"),
        (b"[1, 2]", "not a profile: Expected `object`"),
        (b'{"schema": 99}', "schema 99; this version .* reads 1. Upgrade nexusbench"),
        (b'{"schema": 0}', "it has no schema number"),
        (b'{"schema": true}', "field 'schema': not a profile: Expected `int`"),
        (b'{"schema": 1}', "is missing"),
    ):
        (folder / "profile.json").write_bytes(text)
        with pytest.raises(InputError, match=sentence) as caught:
            ask(folder)
        assert "profile.json" in str(caught.value)
        assert caught.value.exit_code == 2
    (folder / "profile.json").unlink()
    with pytest.raises(InputError, match="sweep was not finished"):
        ask(folder)
    with pytest.raises(InputError, match=r"no such profile.* nexusbench profile"):
        ask(tmp_path / "nowhere")


def test_damaged_fields_are_named(folder):
    edit(folder, lambda d: d["fits"][0]["parameters"]["decode"].update(fixed_ns="much"))
    with pytest.raises(InputError, match=r"Expected `float`.*nexus.parameters|parameters.*float"):
        ask(folder)
    edit(folder, lambda d: d["fingerprint"].update(num_sms="many"))
    with pytest.raises(InputError, match=r"fingerprint\.num_sms"):
        ask(folder)


def test_recalibration_follows_each_phase():
    belief = Recalibrated(ask(None)[0])
    before = belief.predict(DECODE, 46), belief.predict(PREFILL, 46)
    for _ in range(300):
        predicted = belief.predict(DECODE, 46)
        belief.observe(DECODE, 46, predicted, 1.7 * before[0])
    assert belief.predict(DECODE, 46) == pytest.approx(1.7 * before[0], rel=0.01)
    assert belief.predict(PREFILL, 46) == before[1]
    assert belief.predict_splits(DECODE, [46]) == [belief.predict(DECODE, 46)]
    for _ in range(300):
        belief.observe(PREFILL, 46, 1e9, 1.0)
    assert belief.ratios["prefill"] == LEAST
    belief.observe(PREFILL, 46, 0.0, 5.0)  # nothing was predicted: nothing is learnt


@pytest.mark.slow
def test_a_run_with_a_profile_and_recalibration(made, tmp_path):
    trace = tmp_path / "t.jsonl"
    rows = [{"timestamp": 150 * i, "input_length": 900, "output_length": 60} for i in range(60)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def serve(**fields):
        config = RunConfig(trace=str(trace), device="sim:l20", model="qwen2.5-3b", **fields)
        return nexusbench.run(config)

    analytic, fitted = serve(), serve(profile=str(made))
    follows = serve(recalibrate=True)
    error = {
        name: run.summary.metrics["belief_error"].mean
        for name, run in (("analytic", analytic), ("fitted", fitted), ("follows", follows))
    }
    assert error["fitted"] < error["analytic"]
    assert error["follows"] < error["analytic"]
    assert fitted.resolved.belief.profile.of == "sim:l20, qwen2.5-3b"
    assert follows.resolved.belief.recalibrate is True
    assert serve(profile=str(made)).event_digest == fitted.event_digest
    assert serve(recalibrate=True).event_digest == follows.event_digest
