"""``nexusbench profile``: a sweep that survives kills, what is shown of it, and clear refusals."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from commandline import finish, start

from nexusbench.cli.main import main
from nexusbench.physics import gpus as _gpus
from tests.examples import slow

MODEL = ("--device", "sim:l20", "--model", "qwen2.5-3b")
SWEEP = ("profile", *MODEL, "--quick", "--no-progress")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished quick profile; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("profile") / "l20"
    assert main([*SWEEP, "-o", str(folder), "--json"]) == 0
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def edit(folder: Path, change) -> None:
    """Change profile.json as a document."""
    path = folder / "profile.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_as_never_killed(made, tmp_path):
    folder = tmp_path / "killed"
    process = start(*SWEEP, "-o", folder, cwd=tmp_path)
    points = folder / "points.jsonl"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if points.is_file() and points.read_bytes().count(b"\n") >= 40:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert finish(process).code == -signal.SIGKILL
    survived = points.read_bytes()
    assert 40 <= survived.count(b"\n") < (made / "points.jsonl").read_bytes().count(b"\n")
    assert not (folder / "profile.json").exists()
    assert main([*SWEEP, "-o", str(folder)]) == 0
    resumed = points.read_bytes()
    assert resumed.startswith(survived[: survived.rfind(b"\n") + 1])
    assert resumed == (made / "points.jsonl").read_bytes()


@pytest.mark.slow
def test_interrupted_keeps_what_there_is(tmp_path):
    # Not the quick one, which on a busy machine may be over before it is interrupted.
    process = start("profile", *MODEL, "--no-progress", "-o", "here", cwd=tmp_path)
    points = tmp_path / "here" / "points.jsonl"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (points.is_file() and points.stat().st_size):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    outcome = finish(process)
    assert outcome.code == 130
    assert re.fullmatch(
        r"error: interrupted: \d+ points? are kept in here\. Repeat the command .*\n", outcome.err
    )
    assert points.stat().st_size


def test_tables_and_their_badge(call, made):
    outcome = call("profile", "show", made)
    assert outcome.code == 0
    assert "[SIMULATED: no GPU was used]" in outcome.out
    for title in (
        "36q1s2049 is 36 decodes",
        "Where more SMs stop paying",
        "What every further 10 %",
        "decode takes beside",
        "prefill takes beside",
        "Splits for prefill",
        "What weights and keys and values draw on some of the SMs",
        "Two batches at once",
        "Best use",
        "Fitted cost models",
    ):
        assert title in outcome.out
    assert re.search(r"nexus +all +alone +all +\d+", outcome.out)
    time = r" +[\d.]+ \([\d.]+\)"
    assert re.search(rf"prefill +decode +all +\d+{time}{time} +[\d.]+ \([\d.]+-", outcome.out)
    assert "joules per token: no counter gave energy" in " ".join(outcome.out.split())


def test_what_sharing_costs_stands_in_a_table_of_its_own(call, made):
    """The file and the folder say the same of batches of equal sequences."""
    scores = []
    for path in (made / "partitions.csv", made):
        outcome = call("validate", "partitions", "l20", path, "--json")
        assert outcome.code == 0
        document = json.loads(outcome.out)
        assert document["measured_on"] == "sim:l20, simulated"
        scores.append({score["operator"]: score for score in document["scores"]})
    file, folder = scores
    told = {
        "weights", "decode attention", "prefill step", "decode step", "work rate split",
        "work rate streams", "neighbour streams decode",
    }  # fmt: skip
    assert told <= set(file) <= set(folder)
    for name in ("weights", "decode attention", "work rate streams"):
        assert file[name]["rows"] == folder[name]["rows"]
        assert file[name]["mape"] == pytest.approx(folder[name]["mape"], abs=1e-4)
    # Noise is all that is between them.
    assert max(score["mape"] for score in file.values()) < 3


def test_a_profile_from_before_is_shown_without_what_sharing_costs(call, copy):
    edit(copy, lambda document: document["facts"].pop("sharing"))
    outcome = call("profile", "show", copy)
    assert outcome.code == 0
    assert "Two batches at once" not in outcome.out


@pytest.mark.slow
def test_one_json_document(call, copy):
    outcome = call(*SWEEP, "-o", copy, "--json", "--batch", "4q1s1k", "--batch", "q500_8q1s2k")
    document = json.loads(outcome.out)
    assert (document["command"], document["simulated"]) == ("profile", True)
    assert document["outcome"]["measured"] == 2
    assert [row["batch"] for row in document["batches"]] == ["4q1s1k", "q500_8q1s2k"]
    fits = [fit["cost_model"] for fit in document["profile"]["fits"]]
    assert "nexus" in fits
    assert all(set(row["predicted_ns"]) == set(fits) for row in document["batches"])
    shown = json.loads(call("profile", "show", copy, "--json").out)
    assert shown["profile"]["points_sha256"] == document["profile"]["points_sha256"]
    sha = hashlib.sha256((copy / "points.jsonl").read_bytes()).hexdigest()
    assert shown["profile"]["points_sha256"] == sha


@pytest.mark.slow
def test_user_batches_are_shown_with_the_error_of_each_prediction(call, copy):
    outcome = call(*SWEEP, "-o", copy, "--batch", "2q1k")
    assert "Your batches on all SMs" in outcome.out
    assert re.search(r"2q1k +\d", outcome.out)


@pytest.mark.slow
def test_user_batches_are_kept_once_each(call, copy):
    """Under one spelling, by the profile itself, whatever a later sweep asks for."""
    call(*SWEEP, "-o", copy, "--batch", "8q1s4k", "--batch", "8q1s4k", "--batch", "1Q1K")
    repeated = json.loads(call(*SWEEP, "-o", copy, "--json", "--batch", "q1024").out)
    assert [row["batch"] for row in repeated["batches"]] == ["8q1s4k", "q1k"]
    shown = call("profile", "show", copy)
    assert "Your batches on all SMs" in shown.out
    assert json.loads(call("profile", "show", copy, "--json").out)["batches"] == repeated["batches"]
    fresh = json.loads(call(*SWEEP, "-o", copy, "--fresh", "--json").out)
    assert fresh["batches"] == []


@pytest.mark.parametrize("columns", slow(80, 100))
def test_nothing_is_wider_than_the_terminal(call, made, monkeypatch, columns):
    for arguments in (("show", made), ("check", made), ("paper",)):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = call("profile", *arguments).out.splitlines()
        titles = [line for line in lines if line.startswith("Nexus, section 3")]
        assert all(len(line) <= columns for line in lines if line not in titles)
        assert all(line == line.rstrip() for line in lines)


@pytest.mark.slow
def test_warnings_are_counted_by_kind(call, made):
    shown = call("profile", "show", made).out
    facts = json.loads(call("profile", "show", made, "--json").out)["profile"]["facts"]
    assert sum(facts["warned"].values()) >= facts["num_warned"] > 0
    assert f"wide interval {facts['warned']['wide interval']}" in shown


@pytest.mark.slow
def test_a_counter_that_is_off_is_said_to_be_so_once(call, copy, monkeypatch):
    from nexusbench.counters.base import Support
    from nexusbench.counters.nvml import NvmlCounters

    monkeypatch.setattr(NvmlCounters, "probe", lambda self: Support(False, "no driver"))
    outcome = call(*SWEEP, "-o", copy, "--counters", "nvml")
    assert "counter nvml is off: no driver" in outcome.out


@pytest.mark.slow
def test_default_folder_names_device_and_model(call, made, tmp_path):
    folder = tmp_path / "results" / "profiles" / "sim-l20-qwen2.5-3b"
    shutil.copytree(made, folder)
    assert call(*SWEEP).code == 0
    assert (folder / "profile.json").is_file()


def test_check_holds(call, made):
    outcome = call("profile", "check", made)
    assert outcome.code == 0, outcome.err
    assert "The profile holds" in outcome.out
    assert "SIMULATED" in outcome.out


@pytest.mark.slow
def test_check_finds_an_edited_point(call, copy):
    checked = json.loads(call("profile", "check", copy, "--json").out)
    key = checked["points"][3]["setting"]
    path = copy / "points.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["setting"] == key:
            line["ns"] *= 1.2
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text)
    sha = hashlib.sha256(text.encode()).hexdigest()
    edit(copy, lambda document: document.update(points_sha256=sha))
    outcome = call("profile", "check", copy)
    assert outcome.code == 3
    assert "DRIFTED: 1 of" in outcome.out


L20 = (Path(_gpus.__file__).parents[1] / "data" / "gpus" / "l20.toml").read_text()
SLOWER = L20.replace("dense_efficiency = 0.9", "dense_efficiency = 0.7", 1)


def test_check_measures_the_device_that_is_named(call, copy, tmp_path):
    """Another device of as many SMs, asked for by name: it is measured, and has drifted."""
    (tmp_path / "slower.toml").write_text(SLOWER)
    outcome = call("profile", "check", copy, "--device", "sim:slower.toml")
    assert outcome.code == 3
    told = " ".join(outcome.out.split())
    assert "the profile is of sim:l20; what was measured again is sim:slower.toml" in told


@pytest.mark.slow
def test_a_gpu_file_is_not_the_shipped_gpu_of_its_name(call, made, tmp_path):
    """Its profile is kept apart, says which file it is of, and is checked against that file."""
    (tmp_path / "own").mkdir()
    file = tmp_path / "own" / "l20.toml"
    file.write_text(SLOWER)
    own = ("--device", "sim:own/l20.toml", "--model", "qwen2.5-3b", "--quick", "--no-progress")
    shown = call("profile", *own).out
    assert "sim:l20.toml: NVIDIA L20, 92 SMs (--device sim:own/l20.toml)" in shown
    (checked,) = re.findall(r"nexusbench (profile check .*)", shown)
    assert checked.endswith("sim-l20.toml-qwen2.5-3b")
    outcome = call(*checked.split())
    assert outcome.code == 0, outcome.err
    file.write_text(L20)
    outcome = call(*checked.split())
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "sim:l20.toml has other constants or tables now" in outcome.err
    assert "--device sim:own/l20.toml" in outcome.err
    file.unlink()
    outcome = call(*checked.split())
    assert outcome.code == 2
    assert "cannot be opened from here" in outcome.err
    assert "Say where it is now with --device" in outcome.err


@pytest.mark.slow
def test_the_device_of_a_profile_is_profiled_and_checked(call, made, tmp_path):
    shutil.copytree(made, tmp_path / "folder")
    again = ("--device", "sim:folder", "--model", "qwen2.5-3b", "--quick", "--no-progress")
    assert call("profile", *again, "-o", "again").code == 0
    outcome = call("profile", "check", "again")
    assert outcome.code == 0, outcome.err
    assert "sim:profile(sim:l20)" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--device", "sim:h200"), "not of sim:h200"),
        (("--model", "llama-3.1-8b"), "not of llama-3.1-8b"),
    ],
)
def test_check_refuses_another_device_or_model(call, made, arguments, says):
    outcome = call("profile", "check", made, *arguments)
    assert outcome.code == 2
    assert says in outcome.err
    assert outcome.err.count("\n") == 1


def test_points_that_are_not_the_profiles_are_refused(call, copy):
    with (copy / "points.jsonl").open("a") as file:
        file.write("\n")
    outcome = call("profile", "check", copy)
    assert outcome.code == 2
    assert "not the points that the profile was fitted to" in outcome.err


def test_unreadable_profiles_are_refused(call, copy):
    path = copy / "profile.json"
    text = path.read_text()
    for damaged, says in (
        (text[: len(text) // 2], "not valid JSON"),
        (text.replace('"schema": 1', '"schema": 2', 1), "Upgrade nexusbench"),
        (text.replace('"effort"', '"efort"', 1), "efort"),
        (text.replace('"num_warned"', '"num_warnd"', 1), "field 'facts'"),
    ):
        assert damaged != text
        path.write_text(damaged)
        outcome = call("profile", "show", path)
        assert outcome.code == 2, damaged[:80]
        assert says in outcome.err
        assert "profile.json" in outcome.err
        assert outcome.err.count("\n") == 1
    path.unlink()
    outcome = call("profile", "show", copy)
    assert "sweep was not finished" in outcome.err
    assert "there is no such profile" in call("profile", "show", copy / "nowhere").err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--quick", "--full"), "--quick and --full contradict each other"),
        (("--batch", "32z"), "--batch '32z': segment '32z' is not in the grammar"),
        (("--batch", "q9k"), "does not fit this device: 9,216 new tokens exceed --max-num-batched"),
        (("--batch", "1q1s64k"), "a length of 65,536 exceeds --max-model-len 32,768"),
        (("--max-model-len", "10"), "--max-model-len 10 is too short to profile"),
        (("-o",), "See nexusbench profile --help"),
        (("--device", "l20"), "write sim:l20"),
        (("--device", "sim:l02"), "no GPU called 'l02'"),
        (("--model", "qwen"), "qwen"),
        (("--seed", "-1"), "--seed"),
        (("-o", ""), "it is empty"),
        (("-o", "/proc/nowhere"), "cannot write to /proc/nowhere"),
        (("--tensor-parallel-size", "3"), "--tensor-parallel-size 3"),
        (("--max-model-len", "99999999"), "--max-model-len 99999999"),
        (("--gpu-memory-utilization", "2"), "--gpu-memory-utilization"),
        (("--kernel-table", "nowhere"), "nowhere"),
        (("--frobnicate",), "--frobnicate"),
    ],
)  # fmt: skip
def test_bad_flags_give_one_line(call, arguments, says):
    outcome = call(*SWEEP, *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert says in outcome.err
    assert outcome.out == ""


def test_notes_say_what_a_run_says_of_types_and_gpus(call, tmp_path):
    """An A100 has no products in fp8, and 16 GPUs are more than one server has."""
    asked = ("--device", "sim:a100", "--model", "qwen2.5-3b", "--quantization", "fp8", "-tp", 16)
    outcome = call("profile", *asked, "--quick", "--no-progress", "-o", tmp_path / "p", "--json")
    assert outcome.code == 0, outcome.err
    notes = json.loads(outcome.out)["profile"]["notes"]
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 9, "output_length": 2}\n')
    run = call("serve-trace", trace, *asked, "--no-save", "--json")
    said = json.loads(run.out)["runs"][0]["resolved"]["caveats"]
    assert notes[: len(said)] == said
    for words in ("quantised while they are loaded", "computed in 16 bit", "16 GPUs"):
        assert any(words in note for note in said), words


def test_a_folder_of_something_else_is_refused(call, copy):
    for arguments, says in (
        (("--device", "sim:l40s"), "its device is sim:l20, not sim:l40s"),
        (("--seed", "5"), "its seed is 0, not 5"),
        (("--max-num-batched-tokens", "1024"), "max_num_batched_tokens is 2048, not 1024"),
    ):
        outcome = call(*SWEEP, "-o", copy, *arguments)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert says in outcome.err
    outcome = call("profile", *MODEL, "--no-progress", "-o", copy)
    assert "its effort is quick, not default" in outcome.err


@pytest.mark.slow
def test_fresh_starts_over(call, copy):
    before = (copy / "points.jsonl").read_bytes()
    outcome = call(*SWEEP, "-o", copy, "--fresh", "--seed", "5", "--json")
    assert json.loads(outcome.out)["outcome"]["kept"] == 0
    assert (copy / "points.jsonl").read_bytes() != before


@pytest.mark.slow
def test_plots_are_drawn_and_marked(call, made, tmp_path):
    pytest.importorskip("matplotlib")
    outcome = call("profile", "show", made, "--plots", tmp_path / "plots")
    assert outcome.code == 0, outcome.err
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    plots = ("latency", "contention", "splits")
    assert names == {f"{plot}.{kind}" for plot in plots for kind in ("png", "svg")}
    # Texts of an SVG are outlines; the comment above each says what it spells.
    for plot in plots:
        assert "SIMULATED" in (tmp_path / "plots" / f"{plot}.svg").read_text()


@pytest.mark.slow
def test_plots_vary_one_thing_and_hide_nothing(made):
    pytest.importorskip("matplotlib")
    from nexusbench.profiles.profile import load_profile
    from nexusbench.profiling import plots
    from nexusbench.profiling.facts import representative, stored_facts

    profile = load_profile(made)
    facts = stored_facts(profile.facts)
    middle = representative(facts.splits)[0]
    figure = plots._splits(profile, facts)
    left, right = figure.axes
    assert (middle.prefill in left.get_title(), middle.decode in right.get_title()) == (True, True)
    labels = [axis.get_legend_handles_labels()[1] for axis in figure.axes]
    assert middle.decode in labels[0]
    assert middle.prefill in labels[1]
    assert "another split beats it on both" in [*labels[0], *labels[1]]
    figure.canvas.draw()
    for axis in figure.axes:
        assert not axis.get_legend().get_window_extent().overlaps(axis.get_window_extent())


def test_plots_without_matplotlib_are_refused_before_measuring(call, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "nexusbench.profiling.plots.find_spec",
        lambda name: None if name == "matplotlib" else importlib.util.find_spec(name),
    )
    outcome = call(*SWEEP, "-o", tmp_path / "x", "--plots", tmp_path / "plots")
    assert outcome.code == 2
    assert 'pip install "nexusbench[plots]"' in outcome.err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_paper_table_marks_what_was_put_in(call):
    outcome = call("profile", "paper", "--json")
    rows = {row["statement"]: row for row in json.loads(outcome.out)["rows"]}
    slower = rows["decode slower, prefill 2,000 -> 10,000"]
    # Measured attention beside attention hardly disturbs: what the paper shows is not found.
    assert slower["agrees"] == "no"
    assert abs(slower["ours"]) < 5
    saved = rows["prefill: 30 to 40 % of SMs saves"]
    assert (saved["verdict"], saved["agrees"]) == ("found", "yes")
    assert 20 < saved["ours"] < 27
    # What was put in may contradict the paper: that is another column.
    flat = rows["16 decodes: best 10 % beyond 50"]
    assert (flat["verdict"], flat["agrees"]) == ("follows", "no")
    assert rows["mixed iterations: mean"]["agrees"] == ""
    assert rows["mixed iterations: mean"]["verdict"] == "no trace (--trace)"
    shown = call("profile", "paper")
    assert "[SIMULATED: no GPU was used]" in shown.out
    assert re.search(
        r"4 decodes: 30 to 40 % saves.* yes +follows from\n +bandwidth_curve", shown.out
    )
    missing = call("profile", "paper", "--trace", "nowhere.jsonl")
    assert (missing.code, missing.err.count("\n")) == (2, 1)
