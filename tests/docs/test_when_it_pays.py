"""docs/when-it-pays.md shows the committed survey, and its sentences are true of it."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from msgspec.structs import replace

from nexusbench.core.errors import InputError
from nexusbench.experiments.paying.blocks import BLOCKS
from nexusbench.experiments.paying.points import Survey
from nexusbench.experiments.paying.ranged import in_use_over_seeds, over_ranges
from nexusbench.experiments.paying.spec import load_map
from nexusbench.experiments.paying.survey_files import read_manifest
from nexusbench.experiments.paying.tables import cells_of
from nexusbench.experiments.paying.verdicts import (
    MapCell,
    MapVerdict,
    best,
    judge,
    side,
    sides,
    verdict,
)
from nexusbench.metrics.slo import preset
from nexusbench.physics.gpus import load_gpu
from tests.docs import when_it_pays as page

TEXT = page.DOCUMENT.read_text()


@pytest.fixture(scope="module")
def survey() -> Survey:
    return page.committed()


def cells(survey: Survey, traffic: str, slo: str = "") -> list[MapCell]:
    (found,) = [t for t in survey.spec.traffic if t.name == traffic]
    return [cell for cell in cells_of(survey, found) if cell.slo == (slo or cell.slo)]


def answer(survey: Survey, cell: MapCell, question: str) -> MapVerdict:
    found = verdict(survey, cell, question)
    assert found is not None, f"no rows for {cell}"
    return found


@pytest.mark.slow
def test_tables_are_those_of_the_survey(survey: Survey) -> None:
    assert page.rendered(TEXT, survey) == TEXT, (
        "docs/when-it-pays.md is old; refresh it with: python -m tests.docs.when_it_pays"
    )


def test_everything_is_called_simulated() -> None:
    assert "**Everything on it is simulated**" in TEXT
    assert read_manifest(page.RESULTS).simulated is True
    for name in ("loads", "grid"):
        assert "SIMULATED" in (page.RESULTS / f"{name}.svg").read_text()


GPUS = ("sim:l20", "sim:a100", "sim:h100", "sim:h200")


def test_long_prompts_gain_on_every_gpu(survey: Survey) -> None:
    """Bullet 1. Below the loads where anything is late there is nothing to gain, and none lost."""
    for question in ("ordered", "split"):
        found = [(c, answer(survey, c, question)) for c in cells(survey, "mooncake-chat")]
        assert not any(v.outcome == "costs" for _, v in found)
        for gpu in GPUS:
            assert any(v.outcome == "pays" for c, v in found if c.gpu == gpu), (gpu, question)
            busy = [v.mean for c, v in found if c.gpu == gpu and c.load >= 80]
            assert min(busy) > 2


def test_chat_under_a_mean_gap_has_nothing_to_gain(survey: Survey) -> None:
    """Bullet 2."""
    for cell in cells(survey, "azure-chat", "llama3.1-8b"):
        if cell.load <= 80 and cell.gpu != "sim:l20":
            for question in ("policy", "ordered", "split"):
                assert abs(answer(survey, cell, question).mean) < 2, (cell, question)
            kept = [side(survey, cell, system) for system in survey.spec.systems]
            shares = [one.attained(cell.slo) for one in kept if one is not None]
            assert len(shares) == len(kept)
            assert min(shares) > 90
            assert statistics.median(shares) > 99.5


def test_chat_under_a_bound_on_gaps(survey: Survey) -> None:
    """Bullet 3."""
    by_place = {(c.gpu, c.load): c for c in cells(survey, "azure-chat", "guidellm-chat")}
    for gpu in ("sim:a100", "sim:h100", "sim:h200"):
        picked = best(survey, by_place[gpu, 80], "split")
        assert picked is not None
        assert picked.name == "flowprefill"
    found = answer(survey, by_place["sim:a100", 80], "split")
    assert found.outcome == "pays"
    assert 1.8 < found.mine / found.other < 2
    assert (round(found.mine), round(found.other)) == (71, 37)
    for gpu in ("sim:h100", "sim:h200"):
        chunked = best(survey, by_place[gpu, 80], "whole")
        assert chunked is not None
        assert chunked.name == "vllm-1024-spf"
        assert abs(answer(survey, by_place[gpu, 80], "split").mean) < 2
        assert answer(survey, by_place[gpu, 110], "split").outcome == "costs"
        behind = answer(survey, by_place[gpu, 80], "split").other
        behind -= answer(survey, by_place[gpu, 80], "policy").mine
        assert 20 < behind < 35
        behind = answer(survey, by_place[gpu, 110], "split").other
        behind -= answer(survey, by_place[gpu, 110], "policy").mine
        assert 55 < behind < 71
    found = answer(survey, by_place["sim:l20", 80], "split")
    assert max(found.mine, found.other) < 20


def test_the_price_is_the_first_token(survey: Survey) -> None:
    """Bullet 4."""
    for cell in cells(survey, "azure-chat", "llama3.1-8b"):
        if cell.load == 80:
            found = sides(survey, cell, "ordered")
            assert found is not None
            gaps, first = judge(*found, "tbt_p99"), judge(*found, "ttft_mean")
            assert -90 <= gaps.mean <= -75
            assert first.outcome == "costs"
            assert first.mean > 30
            assert cell.gpu != "sim:h200" or 80 < first.mean < 130


def test_the_ranges_that_were_run_are_those_of_today(survey: Survey) -> None:
    """Of so many draws the highest lies in the last part of a range."""
    wider = []
    for name, places in survey.places.items():
        for key, (low, high) in load_gpu(name.removeprefix("sim:")).ranges.items():
            drawn = max(place.values.get(key, low) for place in places.draws)
            if drawn < high - 1.01 * (high - low) / len(places.draws):
                wider.append((name, key))
    assert wider == []


def test_two_streams_are_no_substitute_where_gaps_are_bounded(survey: Survey) -> None:
    """Bullets 1 and 4."""
    for cell in cells(survey, "azure-chat", "guidellm-chat"):
        if cell.load == 80 and cell.gpu != "sim:l20":
            found = answer(survey, cell, "confined")
            assert found.outcome == "pays"
            assert 35.5 < found.mean < 46.5
            over = over_ranges(survey, cell, "confined")
            assert over is not None
            assert over.verdict in ("holds", "hangs")
            assert over.low is not None
            assert over.low > 23.5
            assert over.least is not None
            assert over.least > 9.5
            turns = {turn.constant for turn in over.hangs_on}
            assert turns <= {"wave_yield", "attention_sm_gbps"}
    for cell in cells(survey, "mooncake-chat"):
        mean = answer(survey, cell, "confined").mean
        if cell.gpu in ("sim:h100", "sim:h200"):
            assert abs(mean) < 2.5
        else:
            assert 1.5 < mean < 6.5


def test_the_systems_over_the_ranges_hold_the_best_of_each_kind(survey: Survey) -> None:
    """What is said of them under "Over the ranges"."""
    asked = survey.spec.ranges
    assert asked is not None
    assert len(asked.systems) < 0.6 * len(survey.spec.systems)
    for traffic in ("azure-chat", "mooncake-chat"):
        for cell in cells(survey, traffic):
            for kind in ("whole", "streams", "split"):
                chosen = best(survey, replace(cell, systems=asked.systems), kind)
                leader = best(survey, cell, kind)
                assert chosen is not None
                assert leader is not None
                if cell.load in asked.loads:
                    assert leader.attained(cell.slo) - chosen.attained(cell.slo) < 0.05


def ends_of(survey: Survey, gpu: str, question: str, constant: str) -> float:
    """Points at the low end of a constant, chat with a bound on gaps at 80 %."""
    (cell,) = [
        c for c in cells(survey, "azure-chat", "guidellm-chat") if (c.gpu, c.load) == (gpu, 80)
    ]
    (low, *_) = [p for p in survey.places[gpu].ends if constant in p.values]
    there = replace(in_use_over_seeds(survey, cell), constant=low.name)
    return answer(survey, there, question).mean


def test_what_overturns_the_most(survey: Survey) -> None:
    """The bullets under the tables over the ranges."""
    lead = {gpu: ends_of(survey, gpu, "confined", "wave_yield") for gpu in GPUS[1:]}
    assert [round(points) for points in lead.values()] == [25, 39, 27]
    behind = [ends_of(survey, gpu, "split", "attention_sm_gbps") for gpu in GPUS[2:]]
    assert [round(points) for points in behind] == [-23, -11]


def test_more_bandwidth_per_flop_more_gain(survey: Survey) -> None:
    """Bullet 6."""
    means = {
        gpu: statistics.fmean(
            answer(survey, cell, "split").mean
            for cell in cells(survey, "mooncake-chat")
            if cell.gpu == gpu and cell.load >= 80
        )
        for gpu in GPUS
    }
    assert min(means["sim:l20"], means["sim:a100"]) > max(means["sim:h100"], means["sim:h200"])


def standings(survey: Survey) -> dict[str, dict[str, float]]:
    """System -> column of the table of every system -> percent of requests that keep the SLO."""
    header, _, *rows = (
        [word.strip(" `*") for word in line.strip("|").split("|")]
        for line in BLOCKS["every-system"](survey).splitlines()
    )
    return {row[0]: dict(zip(header[2:], map(float, row[2:]), strict=True)) for row in rows}


RIVALS = ("sarathi", "debt", "openinfer", "semi-pd", "pdmux", "muxwise", "bullet", "duetserve")


def test_the_leaders_on_long_prompts(survey: Survey) -> None:
    """Every system, first bullet."""
    found = standings(survey)
    for gpu in ("l20", "a100", "h100", "h200"):
        column = f"mooncake-chat, {gpu}"
        leaders = [found[name][column] for name in ("nexus", "two-streams", "static-75")]
        assert min(leaders) > max(found[name][column] for name in RIVALS) + 20
        same_order = (found[name][column] for name in ("vllm-spf", "slack-spf"))
        assert found["nexus"][column] > max(same_order)


def test_the_leaders_on_chat(survey: Survey) -> None:
    """Every system, second bullet."""
    found = standings(survey)
    for gpu in ("l20", "a100", "h100", "h200"):
        column = f"azure-chat, {gpu}"
        splits = [s.name for s in survey.spec.systems if s.kind == "split"]
        assert max(splits, key=lambda name: found[name][column]) == "flowprefill"
        assert 3 < found["flowprefill"][column] - found["static-75"][column] < 15.5
        if gpu in ("h100", "h200"):
            assert found["vllm-1024-spf"][column] > found["flowprefill"][column]


def test_long_answers_take_the_gain_away(survey: Survey) -> None:
    """Under the grids: prompts of 8,000 tokens, `nexus` against `vllm-spf`."""

    def gain(gpu: str, output: int, slo: str) -> float:
        (traffic,) = [
            t for t in survey.spec.traffic if (t.prompt, t.output, t.trace) == (8000, output, "")
        ]
        (cell,) = [c for c in cells_of(survey, traffic) if (c.gpu, c.slo) == (gpu, slo)]
        return answer(survey, cell, "ordered").mean

    for gpu in GPUS:
        assert gain(gpu, 400, "llama3.1-8b") < gain(gpu, 50, "llama3.1-8b") - 5
    for gpu in ("sim:a100", "sim:h100", "sim:h200"):
        assert -4.5 < gain(gpu, 400, "llama3.1-8b") <= -1.5
    assert -4.5 < gain("sim:a100", 400, "llama3.1-405b") < -1.5


def test_every_run_came_to_its_end(survey: Survey) -> None:
    assert {row.error for row in survey.rows.values()} == {""}


def test_presets_are_described_as_they_are() -> None:
    assert preset("guidellm-chat").slo == "ttft:p99<200,tbt:p99<50"
    assert preset("llama3.1-8b").slo == "ttft:p99<2000,tpot:p99<100"
    assert preset("llama3.1-405b").slo == "ttft:p99<6000,tpot:p99<175"


def test_a_survey_of_another_spec_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes((page.RESULTS / "manifest.json").read_bytes())
    spec = load_map(page.SPEC)
    other = type(spec)(
        **{name: getattr(spec, name) for name in spec.__struct_fields__ if name != "sha256"},
        sha256="other",
    )
    with pytest.raises(InputError, match="another version"):
        page.read_survey(tmp_path, other)
