"""Maps over the ranges of contested constants: what is run, verdicts on made-up surveys, what is
kept and shown.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from nexusbench.cli.main import main
from nexusbench.core.errors import InputError
from nexusbench.experiments.neutral import gpu_file, neutral_gpu
from nexusbench.experiments.over_range import OverRange, range_words
from nexusbench.experiments.paying.blocks import BLOCKS
from nexusbench.experiments.paying.measuring import MapRow
from nexusbench.experiments.paying.points import GpuPlaces, MapPoint, Survey, map_points, places_of
from nexusbench.experiments.paying.range_plots import range_lines
from nexusbench.experiments.paying.ranged import over_ranges, still
from nexusbench.experiments.paying.spec import MapSpec, load_map
from nexusbench.experiments.paying.survey_files import read_survey, write_survey
from nexusbench.experiments.paying.verdicts import MapCell, MapVerdict
from nexusbench.experiments.ranges import Place, ends, in_use, latin_hypercube
from nexusbench.physics.gpus import load_gpu
from tests.unit.test_paying import SMALL, save

RANGED = SMALL[: SMALL.index("[grid]")].replace("seeds = 2", "seeds = 3")
ASKED = "[ranges]\ndraws = 4\n"
CELL = MapCell(gpu="sim:l20", traffic="short", load=80.0, slo="llama3.1-8b", seeds=3)
DENSE = "dense_interference"
PLACES = GpuPlaces(
    used={DENSE: 0.5, "turn_taking": 0.2},
    ends=(
        Place("dense = 0", {DENSE: 0.0}),
        Place("turns = 1", {"turn_taking": 1.0}),
    ),
    draws=tuple(Place(f"draw {n}", {DENSE: n / 4, "turn_taking": 0.3}) for n in range(4)),
)


def spec_of(folder: Path, asked: str = ASKED) -> MapSpec:
    return load_map(save(folder, RANGED + asked))


def row(attained: float) -> MapRow:
    return MapRow(
        attained={"llama3.1-8b": attained}, ttft_mean=1.0, ttft_p95=1.0, tbt_p99=1.0,
        longest_s=1.0, digest="", wall_s=0.0,
    )  # fmt: skip


def survey_of(spec: MapSpec, points: dict[str, float], places: GpuPlaces = PLACES) -> Survey:
    """``nexus`` ahead of ``vllm`` (50 %) by so many points in use (''), at each end, and in the
    draws; give or take 1 by draw of the arrivals.
    """
    rows = {}

    def put(system: str, seed: int, constant: str, value: float) -> None:
        point = MapPoint(
            gpu="sim:l20", traffic="short", load=80.0, system=system, slo="", seed=seed,
            constant=constant,
        )  # fmt: skip
        rows[point] = row(value)

    for seed in range(4):
        put("vllm", seed, "", 50.0)
        for name, ahead in points.items():
            put("nexus", seed, name, 50.0 + ahead + seed % 3 - 1)
    for name in points:
        if name.startswith("draw"):
            put("nexus", int(name.split()[1]), name, 50.0 + points[name])
    return Survey(spec=spec, capacity={}, requests={}, rows=rows, places={"sim:l20": places})


def judged(survey: Survey) -> OverRange:
    found = over_ranges(survey, CELL, "policy")
    assert found is not None
    return found


DRAWS = {f"draw {n}": 20.0 + n for n in range(4)}


def test_a_verdict_that_holds(tmp_path: Path) -> None:
    survey = survey_of(spec_of(tmp_path), {"": 20, "dense = 0": 9, "turns = 1": 40, **DRAWS})
    found = judged(survey)
    assert (found.verdict, found.low, found.high) == ("holds", 9.0, 40.0)
    assert (found.draws, found.least, found.most) == (21.5, 20.0, 23.0)


def test_a_verdict_that_hangs_on_a_constant_and_where_it_turns(tmp_path: Path) -> None:
    survey = survey_of(spec_of(tmp_path), {"": 20, "dense = 0": -20, "turns = 1": 40, **DRAWS})
    found = judged(survey)
    assert found.verdict == "hangs"
    (turn,) = found.hangs_on
    assert (turn.constant, turn.used, turn.end, turn.points) == (
        DENSE,
        0.5,
        0.0,
        -20.0,
    )
    assert turn.turns_at == pytest.approx(0.25)


def test_a_verdict_that_hangs_in_the_draws_alone(tmp_path: Path) -> None:
    points = {"": 20, "dense = 0": 9, "turns = 1": 40, **DRAWS, "draw 2": -8.0}
    found = judged(survey_of(spec_of(tmp_path), points))
    assert (found.verdict, found.hangs_on, found.least) == ("hangs", (), -8.0)
    # Better on average and less sure would not lose it; one draw that turns it does.
    far = dict(zip(DRAWS, (60.0, 60.0, 60.0, -4.0), strict=True))
    points = {"": 5, "dense = 0": 9, "turns = 1": 40, **far}
    assert judged(survey_of(spec_of(tmp_path), points)).verdict == "hangs"
    points["draw 3"] = -1.5
    assert judged(survey_of(spec_of(tmp_path), points)).verdict == "holds"
    # A single draw is of one draw of the arrivals: the margin below 0 loses nothing by itself.
    points = {"": 20, "dense = 0": 9, "turns = 1": 40, **dict.fromkeys(DRAWS, 20.0)}
    assert judged(survey_of(spec_of(tmp_path), points)).verdict == "holds"


def test_a_verdict_that_fails_and_one_that_is_open(tmp_path: Path) -> None:
    lost = {"dense = 0": -9, "turns = 1": -4, **dict.fromkeys(DRAWS, -3.0)}
    assert judged(survey_of(spec_of(tmp_path), {"": 20, **lost})).verdict == "fails"
    assert judged(survey_of(spec_of(tmp_path), {"": 2.1, **lost})).verdict == "open"


def test_no_difference_holds_within_the_margin_and_turns_at_it(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    points = {"": 0, "dense = 0": 8, "turns = 1": 0, **dict.fromkeys(DRAWS, 0.0)}
    survey = survey_of(spec, points)
    for point, kept in list(survey.rows.items()):
        if point.system == "nexus":
            flat = 50.0 + points[point.constant]
            survey.rows[point] = msgspec.structs.replace(kept, attained={"llama3.1-8b": flat})
    (turn,) = judged(survey).hangs_on
    assert (turn.constant, turn.turns_at) == (
        DENSE,
        pytest.approx(0.5 - 0.5 * 2 / 8),
    )


def verdict(outcome: str, mean: float) -> MapVerdict:
    return MapVerdict(outcome=outcome, mean=mean, low=0, high=0, mine=0, other=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("base", "other", "kept"),
    [
        (("pays", 10), ("pays", 3), True),
        (("pays", 10), ("costs", -3), False),
        (("pays", 10), ("no difference", 1), False),
        (("pays", 10), ("open", 30), True),  # larger and less sure has not been lost
        (("pays", 10), ("open", 8.5), True),
        (("pays", 10), ("open", 5), False),
        (("pays", 1.5), ("open", -0.1), False),
        (("costs", -10), ("open", -11), True),
        (("costs", -10), ("open", -3), False),
        (("costs", -10), ("pays", 3), False),
        (("no difference", 1), ("open", 1.9), True),
        (("no difference", 1), ("open", -2.5), False),
        (("no difference", 1), ("pays", 5), False),
    ],
)
def test_when_a_verdict_is_still_there(
    base: tuple[str, float], other: tuple[str, float], kept: bool
) -> None:
    assert still(verdict(*base), verdict(*other)) is kept


def test_a_cell_that_lacks_a_run_has_no_verdict_over_the_ranges(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    whole = {"": 20, "dense = 0": 9, "turns = 1": 40, **DRAWS}
    for name in whole:
        survey = survey_of(spec, {key: v for key, v in whole.items() if key != name})
        assert over_ranges(survey, CELL, "policy") is None, name
    survey = survey_of(spec, whole)
    survey.places = {}
    assert over_ranges(survey, CELL, "policy") is None
    plain = survey_of(load_map(save(tmp_path, RANGED)), whole)
    assert over_ranges(plain, CELL, "policy") is None


def test_draws_are_paired_with_the_arrivals_and_what_is_spared_is_not_run(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "[ranges]\ndraws = 5\nseeds = 2\n")
    draws = tuple(Place(f"draw {n}", {DENSE: n / 5}) for n in range(5))
    places = msgspec.structs.replace(PLACES, draws=draws)
    survey = Survey(
        spec=spec, capacity={}, requests={}, rows={}, places={"sim:l20": places}
    )  # fmt: skip
    points = list(map_points(survey))
    assert len(points) == len(set(points))
    sides = {p.constant for p in points if p.constant and "draw" not in p.constant}
    assert sides == {"dense = 0", "turns = 1"}
    for name in sides:
        there = [p for p in points if p.constant == name]
        assert {(p.system, p.seed) for p in there} == {
            (system, seed) for system in ("two", "nexus") for seed in range(2)
        }
    for number in range(5):
        there = [p for p in points if p.constant == f"draw {number}"]
        assert [(p.system, p.seed) for p in there] == [("two", number), ("nexus", number)]
    # The other side of the draws: as many draws of the arrivals, with the constants in use.
    assert {p.seed for p in points if p.system == "vllm"} == set(range(5))
    assert {p.seed for p in points if p.system == "nexus" and not p.constant} == set(range(3))


MORE = """[systems.static]
kind = "split"
scheduler = "nexus"
partitioner = "fixed:prefill=60"

[[traffic]]"""
CHOSEN = 'systems = ["vllm", "spf", "two", "nexus"]'


def with_static(folder: Path, asked: str) -> MapSpec:
    return load_map(save(folder, RANGED.replace("[[traffic]]", MORE) + asked))


def test_over_the_ranges_the_chosen_systems_run_and_are_compared(tmp_path: Path) -> None:
    spec = with_static(tmp_path, f"{ASKED}{CHOSEN}\n")
    survey = Survey(spec=spec, capacity={}, requests={}, rows={}, places={"sim:l20": PLACES})
    points = list(map_points(survey))
    assert {p.system for p in points if p.constant} == {"two", "nexus"}
    assert "static" in {p.system for p in points if not p.constant}
    # A system that is not run again leads in use: the verdict over the ranges is of those that are.
    survey = survey_of(spec, {"": 20, "dense = 0": 9, "turns = 1": 40, **DRAWS})
    for point in list(survey.rows):
        if point.system == "nexus" and not point.constant:
            survey.rows[msgspec.structs.replace(point, system="static")] = row(95.0)
    found = over_ranges(survey, CELL, "split")
    assert found is not None
    assert found.high == 40.0


def test_the_grid_runs_the_chosen_systems(tmp_path: Path) -> None:
    grid = SMALL[SMALL.index("[grid]") : SMALL.index("[sensitivity]")]
    spec = with_static(tmp_path, f"{grid}{CHOSEN}\n")
    points = list(map_points(Survey(spec=spec, capacity={}, requests={}, rows={})))
    of = {t.name: {p.system for p in points if p.traffic == t.name} for t in spec.traffic}
    assert of == {
        "short": {"vllm", "spf", "two", "nexus", "static"},
        "p300-o20": {"vllm", "spf", "two", "nexus"},
    }


def test_where_a_constant_touches_everything_everything_is_run(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    places = GpuPlaces(
        used={"kernel_us": 2.0}, ends=(Place("kernel_us = 9", {"kernel_us": 9.0}),),
        draws=(Place("draw 0", {"kernel_us": 3.0}), Place("draw 1", {"kernel_us": 4.0})),
    )  # fmt: skip
    survey = Survey(
        spec=spec, capacity={}, requests={}, rows={}, places={"sim:l20": places}
    )  # fmt: skip
    points = list(map_points(survey))
    for name in ("kernel_us = 9", "draw 1"):
        assert {p.system for p in points if p.constant == name} == {"vllm", "spf", "two", "nexus"}
    assert {p.seed for p in points if p.system == "vllm" and not p.constant} == set(range(3))
    # Both sides of a cell are then those of the place.
    survey = survey_of(spec, {"": 20, "kernel_us = 9": 9, "draw 0": 9, "draw 1": 9}, places)
    assert over_ranges(survey, CELL, "policy") is None
    for point in [p for p in survey.rows if p.system == "nexus" and p.constant]:
        survey.rows[msgspec.structs.replace(point, system="vllm")] = row(10.0)
    assert judged(survey).high == 49.0


def test_ranges_are_kept_and_shown(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    survey = survey_of(spec, {"": 20, "dense = 0": -20, "turns = 1": 40, **DRAWS})
    write_survey(survey, tmp_path / "out", tmp_path / "small.toml", quick=False)
    read = read_survey(tmp_path / "out", spec)
    assert read.places == survey.places
    assert judged(read) == judged(survey)
    table = BLOCKS["ranges policy"](read)
    assert "| **pays** +20 | −20 to +40 | +22 (+20 to +23) |" in table
    assert f"| hangs on {DENSE} (turns at 0.25) |" in table
    assert f"| 0 | 1 | 0 | 0 | {DENSE} (1) |" in BLOCKS["ranges counts"](read)
    moved = f"`{DENSE}` 0.5 (0 to 0.75); `turn_taking` 0.2 (0.2 to 1)"
    assert moved in BLOCKS["ranges contested"](read)
    assert "sensitivity.svg" in BLOCKS["ranges figure"](read)
    assert range_lines(read, "policy", DENSE) == {("sim:l20", "short"): [(0.0, -20.0), (0.5, 20.0)]}
    # One of before there were ranges.
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    del manifest["places"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    old = read_survey(tmp_path / "out", spec)
    assert old.places == {}
    assert all("no runs over the ranges" in BLOCKS[b](old) for b in BLOCKS if b[:6] == "ranges")


@pytest.mark.parametrize(
    ("asked", "field", "words"),
    [
        ('draws = 3\nsystems = ["vlm"]', "ranges.systems", "Did you mean 'vllm'"),
        ('draws = 3\nsystems = ["spf", "nexus", "two"]', "ranges.systems", "the map's reference"),
        ('draws = 3\nsystems = ["vllm", "spf", "nexus"]', "ranges.systems", "the kind 'streams'"),
        ("draws = 1", "ranges.draws", "no interval"),
        ("draws = 101", "ranges.draws", "<= 100"),
        ("draws = -1", "ranges.draws", ">= 0"),
        ("drawn = 3", "ranges.drawn", "Did you mean 'draws'"),
        ("ends = false", "ranges", "asks for nothing"),
        ("ends = 1", "ranges.ends", "bool"),
        ("seeds = 4", "ranges.seeds", "4 are more than the map's 3"),
        ("seeds = 1", "ranges.seeds", "no interval"),
        ("loads = [81]", "ranges.loads", "loads that the map lacks"),
        ("seed = -1", "ranges.seed", ">= 0"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, asked: str, field: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        spec_of(tmp_path, f"[ranges]\n{asked}\n")
    assert caught.value.field == field


def test_a_map_of_gpus_without_ranges_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bare.toml").write_text(gpu_file(neutral_gpu(load_gpu("l20"), "turn_taking")))
    text = (RANGED + ASKED).replace('"sim:l20"', f'"sim:{tmp_path}/bare.toml"')
    with pytest.raises(InputError, match="none of the map's GPUs has ranges"):
        load_map(save(tmp_path, text))
    both = (RANGED + ASKED).replace('"sim:l20"', f'"sim:l20", "sim:{tmp_path}/bare.toml"')
    ((name, places),) = places_of(load_map(save(tmp_path, both))).items()
    gpu = load_gpu("l20")
    assert (name, places.used, places.ends) == ("sim:l20", in_use(gpu), ends(gpu))
    assert places.draws == latin_hypercube(gpu, 4, 0)
    only = RANGED + "[ranges]\nends = false\ndraws = 3\nseed = 5\n"
    (places,) = places_of(load_map(save(tmp_path, only))).values()
    assert (places.ends, places.draws) == ((), latin_hypercube(gpu, 3, 5))


@pytest.mark.slow
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, RANGED + ASKED)
    spec = load_map(path)
    arguments = ["pays", str(path), "--cache", str(tmp_path / "cells"), "-j", "1"]
    survey = Survey(spec=spec, capacity={}, requests={}, rows={}, places=places_of(spec))
    count = len(list(map_points(survey)))
    assert main([*arguments, "--dry-run"]) == 0
    assert f"{count} runs to make, 0 kept" in capsys.readouterr().out
    arguments += ["-o", str(tmp_path / "out"), "--no-progress"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "over the ranges: of 1 cell" in " ".join(shown.split())
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    for cell in document["cells"]:
        assert cell["over_ranges"]["verdict"] in ("holds", "hangs", "fails", "open")
    assert len(document["places"]["sim:l20"]["draws"]) == 4
    read = read_survey(tmp_path / "out", spec)
    assert len(read.rows) == count
    assert not any(row.error for row in read.rows.values())
    # Constants elsewhere make other runs, for two streams at least.
    runs = {(p.system, p.seed, p.constant): row.digest for p, row in read.rows.items()}
    turns = [one.name for one in read.places["sim:l20"].ends if "turn_taking" in one.values]
    assert all(runs["two", 0, name] != runs["two", 0, ""] for name in turns)
    found = over_ranges(read, CELL, "policy")
    assert found is not None
    assert range_words(found, str)
