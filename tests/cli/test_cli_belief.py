"""``serve-trace`` with beliefs and profiles: what the header tells of them, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from commandline import Outcome

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InputError
from nexusbench.core.state import Limits
from nexusbench.profiles.profile import write_profile
from nexusbench.serving.opening import check_run
from tests.examples import sample, slow
from tests.sim.profiles import make_profile

Call = Callable[..., Outcome]
MODEL = ("--device", "sim:l20", "--model", "qwen2.5-3b", "--no-save", "--no-progress")


def told(done: Outcome) -> str:
    """Stdout on one line."""
    assert done.code == 0, done.err
    return " ".join(done.out.split())


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """With the limits that a sweep records."""
    made = make_profile(tmp_path / "p", fits=("nexus", "roofline"))
    limits = Limits(256, 2048, 32_768)
    write_profile(tmp_path / "p", msgspec.structs.replace(made, limits=limits))
    return tmp_path / "p"


@pytest.mark.slow
def test_options_are_shown_as_typed(call: Call, trace: Path, profile: Path) -> None:
    done = call(
        "serve-trace", trace, *MODEL, "--profile", profile, "--partitioner", "nexus:beta=2",
        "--cost-model", "nexus:memory=printed",
    )  # fmt: skip
    assert "partitioner nexus:beta=2 asking nexus:memory=printed fitted to" in told(done)


@pytest.mark.slow
def test_a_run_beyond_what_was_profiled(call: Call, trace: Path, profile: Path) -> None:
    run = ("serve-trace", trace, *MODEL, "--profile", profile)
    assert "extrapolates" not in told(call(*run))
    larger = told(call(*run, "--max-num-batched-tokens", 4096))
    assert "this run allows max_num_batched_tokens 4,096 (profiled: 2,048)" in larger
    # A profile of before that was recorded says nothing of it.
    file = profile / "profile.json"
    document = json.loads(file.read_text())
    del document["limits"]
    file.write_text(json.dumps(document))
    assert "extrapolates" not in told(call(*run, "--max-num-batched-tokens", 4096))


@pytest.mark.slow
def test_flags_that_nobody_asks_for(call: Call, trace: Path, profile: Path) -> None:
    flags = ("--profile", profile, "--recalibrate")
    idle = told(call("serve-trace", trace, *MODEL, "--scheduler", "vllm", *flags))
    assert "--profile and --recalibrate have no effect: no partitioner here asks" in idle
    assert "no effect" not in told(call("serve-trace", trace, *MODEL, *flags))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--cost-model", "roofline:bandwidth_sms=0.5"), "finds bandwidth_sms itself"),
        (("--cost-model", "linear,table"), "nexusbench regret compares several"),
        (("--profile", "p/points.jsonl"), "is not the profile itself. Give its folder: p"),
    ],
)
@pytest.mark.slow
def test_refusals(
    call: Call, trace: Path, profile: Path, flags: tuple[str, ...], sentence: str
) -> None:
    done = call("serve-trace", trace, *MODEL, "--profile", profile, *flags)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert sentence in done.err


WRONG = {
    "another model": (("--model", "llama-3.1-8b"), "it is of the model qwen2.5-3b"),
    "another GPU": (
        ("--device", "sim:h100"),
        "does not fit the run: it is of sim:l20",
    ),
    "broken": ((), "p/profile.json: not a profile: not valid JSON"),
}


@pytest.mark.parametrize("fault", sample(WRONG, 3))
@pytest.mark.parametrize(
    "command",
    [
        ("serve-trace", "--no-save", "--scheduler", "vllm,nexus"),
        ("capacity", "--scheduler", "vllm,nexus", "--goodput", "ttft:p90<400", "--jobs", 1),
        *slow(("advise", "--scheduler", "vllm,nexus", "--goodput", "ttft:400", "--seeds", 1)),
        ("advise", "--goodput", "ttft:400", "--seeds", 1),
    ],
    ids=lambda command: " ".join(map(str, command[:3])),
)
@pytest.mark.slow
def test_a_profile_that_a_later_run_cannot_use_is_refused_before_the_first(
    call: Call, trace: Path, profile: Path, command: tuple[Any, ...], fault: str
) -> None:
    name, *flags = command
    if fault == "broken":
        (profile / "profile.json").write_text('{"schema": 1, "nexus')
    done = call(name, trace, *MODEL[:4], "--profile", profile, *WRONG[fault][0], *flags)
    assert (done.code, done.out) == (2, "")
    assert WRONG[fault][1] in done.err
    assert done.err.count("\n") == 1, done.err  # no progress: nothing was begun
    assert not Path("results").exists()


def test_options_that_the_device_cannot_have_are_refused_before_the_first_run(
    call: Call, trace: Path
) -> None:
    done = call(
        "serve-trace", trace, *MODEL, "--scheduler", "vllm,nexus", "--partitioner",
        "whole,fixed:prefill=100",
    )  # fmt: skip
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)


def test_a_real_device_stays_closed_while_profiles_are_checked(profile: Path) -> None:
    """Opening it would take as long as a run; model and file can be told without."""
    config = RunConfig(trace="", device="cpu", model="llama-3.1-8b", profile=str(profile))
    with pytest.raises(InputError, match="is of the model qwen"):
        check_run(config)
    (profile / "profile.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        check_run(config)


@pytest.mark.slow
def test_a_sweep_refuses_a_profile_of_something_else_before_its_first_cell(
    call: Call, trace: Path, profile: Path
) -> None:
    Path("s.toml").write_text(
        f"""
        [base]
        trace = "{trace}"
        model = "qwen2.5-3b"
        profile = "{profile}"
        [grid]
        device = ["sim:l20", "sim:h100"]
        scheduler = ["vllm", "nexus"]
        """
    )
    done = call("sweep", "s.toml", "--jobs", 1)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "cell 3 (device=sim:h100 scheduler=nexus) cannot run" in done.err
    assert "this run uses sim:h100" in done.err
    assert "[[exclude]]" in done.err
    assert not Path("results").exists()
    with Path("s.toml").open("a") as file:
        file.write('[[exclude]]\ndevice = "sim:h100"\nscheduler = "nexus"\n')
    assert call("sweep", "s.toml", "--jobs", 1).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["capacity", *slow("advise")])
def test_what_the_refusal_proposes_can_be_done(
    call: Call, trace: Path, profile: Path, command: str
) -> None:
    asked = (command, trace, "--device", "sim:h100", *MODEL[2:4], "--scheduler", "nexus", "--jobs")
    asked += (1, "--seeds", 1, "--goodput", "ttft:400", "--profile", profile, "--no-progress")
    assert "use it all the same with --force-profile" in call(*asked).err
    done = call(*asked, "--force-profile")
    assert done.code == 0, done.err
    assert command != "advise" or "--force-profile" in done.out


def test_force_profile_needs_one(call: Call, trace: Path) -> None:
    done = call("serve-trace", trace, *MODEL, "--force-profile")
    assert (done.code, done.out) == (2, "")
    assert "--force-profile goes with --profile" in done.err


@pytest.mark.slow
def test_number_of_gpus_and_file_in_the_header(call: Call, trace: Path, profile: Path) -> None:
    two = ("--tensor-parallel-size", 2)
    assert "2 GPUs of 92 SMs each" in told(call("serve-trace", trace, *MODEL, *two))
    done = call("serve-trace", trace, "--device", f"sim:{profile}/", *MODEL[2:])
    assert f"(--device sim:{profile}/)" in told(done)


@pytest.mark.slow
def test_rerun_says_that_a_belief_was_fitted_to_other_points(
    call: Call, trace: Path, profile: Path
) -> None:
    run = ("serve-trace", trace, *MODEL[:4], "--no-progress", "--profile", profile)
    call(*run)
    (kept,) = (path for path in Path("results").iterdir() if path.is_dir())
    file, points = profile / "profile.json", profile / "points.jsonl"
    document = json.loads(file.read_text())
    before = document["points_sha256"]
    # Points of another order are other points, though the fits stay.
    lines = points.read_bytes().splitlines(keepends=True)
    points.write_bytes(b"".join([*lines[1:], lines[0]]))
    document["points_sha256"] = "0" * 64
    file.write_text(json.dumps(document))
    done = call("rerun", kept, "--no-progress")
    assert f"changed  belief: fitted to other points ({before[:12]} -> {'0' * 12})" in done.out
