"""Maps of where splitting pays: specs, verdicts, and a small survey from end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

from nexusbench.cli.main import main
from nexusbench.core.errors import InputError, UsageError
from nexusbench.experiments.paying.blocks import BLOCKS
from nexusbench.experiments.paying.measuring import MapRow, MapTask, measure
from nexusbench.experiments.paying.points import MapPoint, Survey
from nexusbench.experiments.paying.spec import MapSpec, load_map
from nexusbench.experiments.paying.survey import Surveyor
from nexusbench.experiments.paying.survey_files import read_survey, write_survey
from nexusbench.experiments.paying.tables import hangs_on
from nexusbench.experiments.paying.verdicts import (
    QUESTIONS,
    DrawsOfSystem,
    MapCell,
    best,
    judge,
    verdict,
)

SHIPPED = Path(__file__).parents[2] / "workloads" / "when-it-pays" / "map.toml"
SMALL = """
[map]
title = "small"
gpus = ["sim:l20"]
model = "qwen2.5-3b"
loads = [80]
seeds = 2
reference = "vllm"
ordered = "spf"
policy = "nexus"
span_s = 1
requests = [20, 30]

[systems.vllm]
kind = "whole"
scheduler = "vllm"
[systems.spf]
kind = "whole"
scheduler = "vllm:order=spf"
[systems.two]
kind = "streams"
scheduler = "nexus"
partitioner = "whole"
[systems.nexus]
kind = "split"
scheduler = "nexus"

[[traffic]]
name = "short"
trace = "short.toml"
slos = ["llama3.1-8b"]

[grid]
prompts = [300]
outputs = [20]
loads = [80]
seeds = 2
slos = ["ttft:500,tbt:50"]

[sensitivity]
constants = ["turn_taking"]
loads = [80]
seeds = 2
"""
SHORT = """
[workload]
name = "short"
num_requests = 10
[arrivals]
process = "poisson"
rate = 1
[[classes]]
name = "all"
input = { law = "lognormal", mean = 400, cv = 0.5, most = 2000 }
output = { law = "fixed", value = 20 }
"""


def save(folder: Path, text: str = SMALL) -> Path:
    (folder / "short.toml").write_text(SHORT)
    path = folder / "small.toml"
    path.write_text(text)
    return path


def row(attained: float, ttft: float = 100.0, tbt: float = 20.0) -> MapRow:
    return MapRow(
        attained={"slo": attained}, ttft_mean=ttft, ttft_p95=ttft, tbt_p99=tbt, longest_s=1.0,
        digest="", wall_s=0.0,
    )  # fmt: skip


def one(*attained: float, ttft: float = 100.0) -> DrawsOfSystem:
    return DrawsOfSystem("x", tuple(row(value, ttft) for value in attained))


CELL = MapCell(gpu="sim:l20", traffic="short", load=80.0, slo="slo", seeds=3)


@pytest.mark.parametrize(
    ("mine", "other", "outcome"),
    [
        ((80, 82, 81), (60, 61, 62), "pays"),
        ((60, 61, 62), (80, 82, 81), "costs"),
        ((80, 81, 80), (80, 80.5, 80.4), "no difference"),
        ((80, 60, 95), (70, 75, 72), "open"),  # better on average, but not in every draw
        ((81, 82, 83), (80, 81, 82), "no difference"),  # sure, and of no consequence
    ],
)
def test_an_interval_decides(
    mine: tuple[float, ...], other: tuple[float, ...], outcome: str
) -> None:
    assert judge(one(*mine), one(*other), "attained", "slo").outcome == outcome


def test_smaller_latencies_pay() -> None:
    fast, slow = one(1, 1, 1, ttft=50.0), one(1, 1, 1, ttft=100.0)
    found = judge(fast, slow, "ttft_mean")
    assert (found.outcome, found.mean) == ("pays", -50.0)
    assert judge(slow, fast, "ttft_mean").outcome == "costs"
    assert judge(fast, one(1, 1, 1, ttft=math.inf), "ttft_mean").outcome != "costs"
    assert judge(one(1, 1, 1, ttft=math.inf), slow, "ttft_mean").outcome == "open"


def made_up(spec: MapSpec, values: dict[str, tuple[float, ...]]) -> Survey:
    rows = {
        MapPoint(gpu="sim:l20", traffic="short", load=80.0, system=name, slo="", seed=seed): row(v)
        for name, attained in values.items()
        for seed, v in enumerate(attained)
    }
    return Survey(spec=spec, capacity={}, requests={}, rows=rows)


def test_the_best_of_a_kind_is_one_system_for_all_draws(tmp_path: Path) -> None:
    spec = load_map(save(tmp_path))
    survey = made_up(spec, {"vllm": (99, 10, 10), "spf": (20, 50, 60)})
    found = best(survey, CELL, "whole")
    assert found is not None
    assert (found.name, [r.attained["slo"] for r in found.rows]) == ("spf", [20, 50, 60])
    assert best(survey, CELL, "split") is None


def test_of_equals_the_faster_is_the_best(tmp_path: Path) -> None:
    spec = load_map(save(tmp_path))
    survey = made_up(spec, {"vllm": (100, 100, 100), "spf": (100, 100, 100)})
    for point in [p for p in survey.rows if p.system == "spf"]:
        survey.rows[point] = row(100.0, ttft=50.0)
    found = best(survey, CELL, "whole")
    assert found is not None
    assert found.name == "spf"


def test_every_system_stands_in_one_table(tmp_path: Path) -> None:
    spec = load_map(save(tmp_path))
    survey = made_up(spec, {"vllm": (40, 60), "spf": (70, 90), "nexus": (30,)})
    for point, kept in survey.rows.items():
        attained = {"llama3.1-8b": kept.attained["slo"]}
        survey.rows[point] = msgspec.structs.replace(kept, attained=attained)
    lines = BLOCKS["every-system"](survey).splitlines()
    assert lines[0] == "| system | kind | short, l20 |"
    assert "| `vllm` | whole | 50.0 |" in lines
    assert "| `spf` | whole | **80.0** |" in lines
    # One of its two draws is missing, the other system has not run at all.
    assert "| `nexus` | split | - |" in lines
    assert "| `two` | streams | - |" in lines


def test_what_was_not_run_again_is_taken_from_the_map(tmp_path: Path) -> None:
    spec = load_map(save(tmp_path))
    survey = made_up(spec, {"vllm": (10, 11, 12), "nexus": (50, 51, 52)})
    for seed in range(3):
        point = MapPoint(
            gpu="sim:l20", traffic="short", load=80.0, system="nexus", slo="", seed=seed,
            constant="turn_taking",
        )  # fmt: skip
        survey.rows[point] = row(10.0 + seed)
    as_it_is = verdict(survey, CELL, "policy")
    changed = MapCell(
        gpu="sim:l20", traffic="short", load=80.0, slo="slo", seeds=3, constant="turn_taking"
    )
    without = verdict(survey, changed, "policy")
    assert as_it_is is not None
    assert without is not None
    assert (as_it_is.outcome, without.outcome) == ("pays", "no difference")
    assert hangs_on(as_it_is, {"turn_taking": without}) == ["turn_taking: = +0"]
    assert hangs_on(as_it_is, {"turn_taking": as_it_is}) == []
    larger = msgspec.structs.replace(as_it_is, outcome="open", mean=as_it_is.mean + 30)
    assert hangs_on(as_it_is, {"turn_taking": larger}) == []


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Survey, Path]:
    folder = tmp_path_factory.mktemp("map")
    path = save(folder)
    surveyor = Surveyor(load_map(path), folder / "cells")
    assert surveyor.prepare() == 2 * 4 * 2 + 2 * 2  # two traffics; two streams without a constant
    return path, surveyor.run(), folder


@pytest.mark.slow
def test_loads_are_shares_of_what_the_reference_finishes(
    surveyed: tuple[Path, Survey, Path],
) -> None:
    _, survey, _ = surveyed
    capacity = survey.capacity["sim:l20", "short"]
    assert 10 < capacity < 200
    assert survey.requests["sim:l20", "short"] == 30
    assert not any(row.error for row in survey.rows.values())


@pytest.mark.slow
def test_a_survey_is_kept_and_read_again(surveyed: tuple[Path, Survey, Path]) -> None:
    path, survey, folder = surveyed
    again = Surveyor(load_map(path), folder / "cells")
    assert again.prepare() == 0
    assert again.survey.rows == survey.rows
    write_survey(survey, folder / "out", path, quick=False)
    read = read_survey(folder / "out", load_map(path))
    assert {p: r.digest for p, r in read.rows.items()} == {
        p: r.digest for p, r in survey.rows.items()
    }
    for name, block in BLOCKS.items():
        assert block(read) == block(survey), name
    path.write_text(SMALL.replace("small", "other"))
    with pytest.raises(InputError, match="another version"):
        read_survey(folder / "out", load_map(path))
    path.write_text(SMALL)


@pytest.mark.slow
def test_without_turn_taking_two_streams_run_otherwise(
    surveyed: tuple[Path, Survey, Path],
) -> None:
    _, survey, _ = surveyed
    point = MapPoint(gpu="sim:l20", traffic="short", load=80.0, system="two", slo="", seed=0)
    changed = MapPoint(
        gpu="sim:l20", traffic="short", load=80.0, system="two", slo="", seed=0,
        constant="turn_taking",
    )  # fmt: skip
    assert survey.rows[point].digest != survey.rows[changed].digest


def test_a_ready_trace_must_be_long_enough(tmp_path: Path) -> None:
    text = SMALL[: SMALL.index("[grid]")].replace("short.toml", "ready.jsonl")
    for requests, message in ((39, "39 requests are too few"), (40, "")):
        lines = [
            f'{{"timestamp": {50 * i}, "input_length": 300, "output_length": 9}}'
            for i in range(requests)
        ]
        (tmp_path / "ready.jsonl").write_text("\n".join(lines))
        surveyor = Surveyor(load_map(save(tmp_path, text)), tmp_path / "cells")
        if message:
            with pytest.raises(UsageError, match=message):
                surveyor.prepare()
        else:
            assert surveyor.prepare() == 8
            assert surveyor.survey.requests["sim:l20", "short"] == 20


def test_a_failed_run_is_left_out_and_told(tmp_path: Path) -> None:
    spec = load_map(save(tmp_path))
    config = Surveyor(spec, tmp_path)._config("sim:l20", spec.traffic[0], spec.systems[0], 5)
    broken = measure(MapTask(type(config)(trace=config.trace, scheduler="nexus:beta=1"), {}))
    assert "beta" in broken.error
    survey = made_up(spec, {"vllm": (1, 2, 3), "nexus": (1, 2, 3)})
    survey.rows[next(p for p in survey.rows if p.system == "nexus")] = broken
    assert verdict(survey, CELL, "policy") is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('scheduler = "vllm:order=spf"', 'scheduler = "sarathy"', "systems.spf.*sarathy"),
        ('kind = "streams"', 'kind = "both"', "systems.two.kind"),
        ('policy = "nexus"', 'policy = "nexsus"', "map.policy.*Did you mean"),
        ('gpus = ["sim:l20"]', 'gpus = ["sim:l21"]', "map.gpus.*l21"),
        ('gpus = ["sim:l20"]', 'gpus = ["cpu"]', "not simulated"),
        ('slos = ["llama3.1-8b"]', 'slos = ["llama9"]', "traffic.slos.*llama9"),
        ('constants = ["turn_taking"]', 'constants = ["turn"]', "no constant 'turn'"),
        ("[sensitivity]", "[sensitive]", "unknown table"),
        ("[grid]", "[quick.grid]\nprompt = 1\n[grid]", "grid.*prompt"),
        ("seeds = 2\nreference", "seeds = 1\nreference", "map.seeds"),
        ('trace = "short.toml"', 'trace = "long.toml"', "no such file"),
    ],
)
def test_mistakes_are_one_clear_error(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SMALL
    with pytest.raises(InputError, match=message):
        load_map(save(tmp_path, SMALL.replace(old, new, 1)), quick=True)


def test_the_shipped_map_is_read() -> None:
    full, quick = load_map(SHIPPED), load_map(SHIPPED, quick=True)
    assert quick.cut
    assert len(quick.traffic) < len(full.traffic)
    assert {system.kind for system in full.systems} == {"whole", "streams", "split"}


@pytest.mark.slow
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SMALL[: SMALL.index("[grid]")]
    arguments = ["pays", str(save(tmp_path, text)), "--cache", str(tmp_path / "cells"), "-j", "1"]
    assert main([*arguments, "--dry-run"]) == 0
    assert "8 runs to make" in capsys.readouterr().out
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "SIMULATED" in shown
    assert "nexus as published against vllm" in shown
    assert (tmp_path / "out" / "manifest.json").exists()
    assert main([*arguments, "-o", str(tmp_path / "out"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["simulated"] is True
    assert {cell["question"] for cell in document["cells"]} == set(QUESTIONS)
    assert document["capacity"][0]["requests_per_s"] > 0


@pytest.mark.slow
def test_command_says_where_requests_arrive_faster_than_they_leave(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SMALL[: SMALL.index("[grid]")].replace("loads = [80]", "loads = [20, 900]")
    arguments = ["pays", str(save(tmp_path, text)), "--cache", str(tmp_path / "cells"), "-j", "1"]
    arguments += ["-o", str(tmp_path / "out"), "--no-progress"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    assert "WARNING: requests arrive faster than they leave on a side of 1 of 2 places" in words
    assert "sim:l20 short at 900 %" in words
    assert shown.index("WARNING") < shown.index("nexus as published")
    rows = [line.split() for line in shown.splitlines() if line.startswith(" sim:l20")]
    assert {row[-1] for row in rows if row[3] == "20"} == {"no"}
    assert "other" in {row[-1] for row in rows if row[3] == "900"}
    assert main([*arguments, "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    found = {(cell["load"], cell["question"]): cell["overloaded"] for cell in cells}
    assert "other" in found[900.0, "policy"]  # vllm
    assert found[20.0, "policy"] == []
    kept = read_survey(tmp_path / "out", load_map(tmp_path / "small.toml"))
    loads = {p.load: row.load for p, row in kept.rows.items() if p.system == "vllm"}
    assert [load.overloaded for _, load in sorted(loads.items()) if load] == [False, True]
    # What was kept before loads were looked at is run again.
    for file in (tmp_path / "cells").rglob("*.paying-*"):
        old = msgspec.msgpack.decode(file.read_bytes(), type=MapRow)
        file.write_bytes(msgspec.msgpack.encode(msgspec.structs.replace(old, load=None)))
    assert main([*arguments, "--dry-run"]) == 0
    assert "16 runs to make, 0 kept" in capsys.readouterr().out


def test_a_table_of_before_loads_were_looked_at_is_read(tmp_path: Path) -> None:
    spec = load_map(save(tmp_path))
    survey = made_up(spec, {"vllm": (1, 2, 3), "nexus": (1, 2, 3)})
    write_survey(survey, tmp_path / "out", tmp_path / "small.toml", quick=False)
    file = tmp_path / "out" / "cells.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["rates"]), file)
    read = read_survey(tmp_path / "out", spec)
    assert read.rows.keys() == survey.rows.keys()
    assert all(row.load is None for row in read.rows.values())
