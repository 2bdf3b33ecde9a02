"""``nexusbench reproduce``: a paper of two tiny experiments, and names that there are not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Outcome

Call = Callable[..., Outcome]

SPEC = """
[experiment]
title = "Tiny"
figures = ["{figure}"]

[base]
trace = "../small.jsonl"
device = "sim:l20"
model = "tiny"
burstiness = 1.0
kv_blocks = 500
limit = 8

[grid]
rate = [100]
seed = [0]

[quick]
rate = [200]

[systems.vllm]
scheduler = "vllm"

[systems.nexus]
scheduler = "nexus"

[[claim]]
says = "TTFT against vLLM"
paper = "2x lower"
of = "nexus"
over = "vllm"
measure = "ttft.mean"
low = 2
high = 2
"""


@pytest.fixture
def specs(trace: Path, tmp_path: Path) -> Path:
    (tmp_path / "specs" / "demo").mkdir(parents=True)
    trace.rename(tmp_path / "specs" / "small.jsonl")
    for figure in ("fig9", "fig13"):
        text = SPEC.format(figure=figure)
        (tmp_path / "specs" / "demo" / f"{figure}-a.toml").write_text(text)
    return tmp_path / "specs"


def test_two_experiments_end_to_end_and_again(call: Call, specs: Path, tmp_path: Path) -> None:
    done = call("reproduce", "demo", "--specs", specs, "-j", 1)
    assert done.code == 0, done.err
    assert "SIMULATED" in done.out
    assert "TTFT against vLLM: 2x lower, ours" in done.out
    folder = tmp_path / "results" / "demo-paper"
    assert {path.stem for path in folder.glob("*.json")} == {"fig9-a", "fig13-a"}
    written = (folder / "fig9-a.json").read_bytes()
    again = call("reproduce", "demo", "--specs", specs, "-j", 1, "--only", "fig9", "--json")
    assert again.code == 0
    assert "0 of them run now" in again.err
    assert (folder / "fig9-a.json").read_bytes() == written
    document = json.loads(again.out)
    assert document["simulated"] is True
    (one,) = document["experiments"]
    assert one["figures"] == ["fig9"]
    assert one["rows"][0]["paper"] == "2x lower"
    assert one["manifest"]["resolved"]["cells"] == 2


def test_quick_is_another_folder_and_says_what_was_cut(call: Call, specs: Path) -> None:
    done = call("reproduce", "demo", "--specs", specs, "-j", 1, "--quick", "--only", "fig13")
    assert done.code == 0, done.err
    assert "cut for --quick: request_rate 200" in done.out
    assert (specs.parent / "results" / "demo-paper-quick" / "fig13-a.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("demo", "--only", "fig19"), ("no figure 'fig19'", "fig9")),
        (("dmo",), ("no experiments of a paper called 'dmo'", "demo")),
        (("demo", "--only", ","), ("--only names nothing",)),
    ],
)
def test_names_that_there_are_not(call: Call, specs: Path, arguments, told) -> None:
    done = call("reproduce", *arguments, "--specs", specs)
    assert done.code == 2
    assert done.err.count("\n") == 1
    for words in told:
        assert words in done.err


def test_no_specs_and_a_scheduler_that_there_is_not(call: Call, specs: Path) -> None:
    done = call("reproduce", "demo", "--specs", specs / "nowhere")
    assert (done.code, "give --specs" in done.err) == (2, True)
    path = specs / "demo" / "fig9-a.toml"
    path.write_text(path.read_text().replace('scheduler = "vllm"', 'scheduler = "vlm"'))
    done = call("reproduce", "demo", "--specs", specs)
    assert done.code == 2
    assert "no scheduler called 'vlm'" in done.err
    assert "systems.vllm.scheduler" in done.err


def test_a_folder_that_cannot_be_made_is_told_before_anything_runs(
    call: Call, specs: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("")
    done = call("reproduce", "demo", "--specs", specs, "-j", 1, "-o", tmp_path / "taken")
    assert done.code == 2
    assert "cannot be made" in done.err
    assert "round" not in done.err


def test_a_folder_of_other_specs_is_no_paper(call: Call, specs: Path) -> None:
    (specs / "maps").mkdir()
    (specs / "maps" / "map.toml").write_text('[map]\ntitle = "x"\n')
    done = call("reproduce", "maps", "--specs", specs)
    assert done.code == 2
    assert "no experiments of a paper called 'maps'. Known: demo" in done.err


def test_help_names_every_paper_there_is(call: Call) -> None:
    shipped = Path(__file__).parents[2] / "workloads"
    papers = {p.parent.name for p in shipped.glob("*/*.toml") if "[experiment]" in p.read_text()}
    assert len(papers) > 1
    told = call("reproduce", "--help").out
    assert all(re.search(rf"\b{paper}\b", told) for paper in papers)
