"""The other systems' claims: the shipped specs, and what they need beyond those of Nexus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InputError
from nexusbench.core.registry import split_spec
from nexusbench.experiments.cells import SweepCell
from nexusbench.experiments.reproduction.lab import PRINTED
from nexusbench.experiments.reproduction.measures import ClaimOutcome, outcome, throughput
from nexusbench.experiments.reproduction.outcome_files import criterion_text
from nexusbench.experiments.reproduction.spec import PaperClaim, find_experiments, load_experiment
from nexusbench.experiments.reproduction.verdicts import row_of
from nexusbench.schedulers.base import schedulers
from tests.docs.reproduction import DOCUMENTS, ROOT
from tests.examples import sample
from tests.unit.summaries import distribution, scalar, summary_of
from tests.unit.test_reproduction import BASE, CLAIM, CRITERION, GOOD, GRID, HEAD, SYSTEMS

RIVALS = {
    "semi-pd": "semi-pd", "sarathi": "sarathi", "duetserve": "duetserve", "muxwise": "muxwise",
    "adrenaline": "adrenaline", "bullet": "bullet", "openinfer": "openinfer",
}  # fmt: skip


@pytest.mark.parametrize("paper", sample(RIVALS, 3))
@pytest.mark.slow
def test_shipped_specs_are_sound_and_judge_the_paper_s_own_system(paper: str) -> None:
    found = find_experiments(ROOT / "workloads" / paper)
    judged = set()
    for experiment in found:
        for system in experiment.systems.values():
            name, _ = split_spec(system.fields.get("scheduler", "vllm"))
            assert name in schedulers.names()
        assert experiment.claims
        judged |= {split_spec(experiment.systems[c.of].fields.get("scheduler", "vllm"))[0]
                   for c in experiment.claims}  # fmt: skip
        assert max(len(experiment.seeds), 1) <= 2  # within minutes on two cores
        assert experiment.about.requests <= 1000
    assert RIVALS[paper] in judged
    quick = find_experiments(ROOT / "workloads" / paper, quick=True)
    assert any(experiment.cut for experiment in quick)


def test_the_document_has_a_block_and_a_command_for_every_paper() -> None:
    text = DOCUMENTS[1].read_text()
    for paper in RIVALS:
        assert f"<!-- made of: results/rivals/{paper} -->" in text
        assert f"nexusbench reproduce {paper} -o results/rivals/{paper}" in text


@pytest.fixture
def spec(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text('{"timestamp": 0, "input_length": 9, "output_length": 3}\n')

    def write(text: str) -> Any:
        path = tmp_path / "fig9-x.toml"
        path.write_text(text)
        return load_experiment(path)

    return write


class MadeUp:
    """A lab whose metrics come from a function of (system, rate)."""

    def __init__(self, experiment, metrics) -> None:
        self.experiment, self._metrics = experiment, metrics

    def cell(self, system, point, seed, variant=PRINTED) -> SweepCell:
        rate = point["request_rate"]
        found = {
            tag: scalar(values["value"]) if "value" in values else distribution(**values)
            for tag, values in self._metrics(system.name, rate).items()
        }
        summary = summary_of(**{"makespan": scalar(100.0 / rate), **found})
        return SweepCell(config=RunConfig(trace="t"), status="ok", summary=summary)


def test_a_rate_can_be_kept_by_attainment(spec) -> None:
    criterion = '[throughput]\nsystem = "vllm"\nsteady = "nexus"\nbacklog = 1.0\n'
    criterion += 'measure = "attainment.value"\nat_least = 90\n'
    experiment = spec(GOOD.replace(CRITERION, criterion))
    most = {"vllm": 1.5, "nexus": 3.1}
    lab: Any = MadeUp(
        experiment, lambda name, rate: {"attainment": {"value": 90.0 if rate <= most[name] else 89}}
    )
    for name, rate in most.items():
        found = throughput(lab, experiment.systems[name], 0, PRINTED)
        assert found <= rate < found * 1.03
    assert "attainment.value is at least 90" in criterion_text(experiment.throughput)


def test_attainment_beside_a_bound_counts_too(spec) -> None:
    criterion = '[throughput]\nsystem = "vllm"\nsteady = "nexus"\nbacklog = 1.0\n'
    criterion += 'measure = "tbt.p99"\nat_most = 50\nattainment = 90\n'
    experiment = spec(GOOD.replace(CRITERION, criterion))

    def metrics(name: str, rate: float) -> dict[str, Any]:
        late = rate > (2.5 if name == "vllm" else 9.0)
        slow = rate > 3.5
        return {"tbt": {"p99": 51 if slow else 50}, "attainment": {"value": 80 if late else 95}}

    lab: Any = MadeUp(experiment, metrics)
    assert throughput(lab, experiment.systems["vllm"], 0, PRINTED) == pytest.approx(2.5, rel=0.03)
    assert throughput(lab, experiment.systems["nexus"], 0, PRINTED) == pytest.approx(3.5, rel=0.03)
    assert "90 % of the requests keep their SLO" in criterion_text(experiment.throughput)


@pytest.mark.parametrize(
    "lines", ['measure = "attainment.value"\n', 'measure = "attainment.value"\nat_most = 90\n',
              "at_least = 90\n"],
)  # fmt: skip
def test_the_bound_must_be_on_the_measure_s_side(spec, lines: str) -> None:
    with pytest.raises(InputError, match=r"throughput.*at_least"):
        spec(GOOD.replace(CRITERION, CRITERION + lines))


PEAK = CLAIM.replace("low = 2\nhigh = 2\n", 'low = 1\nmeasure = "ttft.mean"\n')
PEAK += 'exceeds = [["left", "vllm"], ["right", "vllm"]]\n'
SIDES = '[systems.left]\nscheduler = "sglang"\n[systems.right]\nscheduler = "sglang:order=spf"\n'


def peak_of(experiment, mine: float) -> ClaimOutcome:
    """A lab where the gains of left, nexus and right over vllm are 1.1, ``mine`` and 1.25."""
    times = {"vllm": 1.0, "left": 1.1, "right": 1.25, "nexus": mine}
    lab: Any = MadeUp(experiment, lambda name, rate: {"ttft": {"mean": 10.0 / times[name]}})
    (claim,) = experiment.claims
    found = outcome(lab, claim, PRINTED, (0, 1))
    assert found is not None
    return found


def test_a_gain_has_its_peak_where_it_exceeds_all_others(spec) -> None:
    experiment = spec(HEAD + BASE + GRID + SYSTEMS + SIDES + PEAK)
    (claim,) = experiment.claims
    for mine, verdict in ((1.5, "holds"), (1.2, "does not hold")):
        found = peak_of(experiment, mine)
        assert found.value == pytest.approx(mine / 1.25)
        row = row_of(claim, ("f",), found, found, {}, {})
        assert row.verdict == verdict
        assert f"gain {mine:.2f}x, the best of the others 1.25x" in row.why


def test_a_peak_names_known_systems_and_loses_those_that_quick_drops(spec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no system called 'lfet'"):
        spec(HEAD + BASE + GRID + SYSTEMS + SIDES + PEAK.replace("left", "lfet"))
    spec(HEAD + BASE + GRID + SYSTEMS + SIDES + PEAK + '[quick]\ndrop = ["left"]\n')
    (claim,) = load_experiment(tmp_path / "fig9-x.toml", quick=True).claims
    assert claim.exceeds == (("right", "vllm"),)


def test_an_effect_that_grows_without_a_constant_does_not_follow_from_it() -> None:
    claim = PaperClaim(says="S", paper="1.2x", of="a", over="b", low=1.2, high=1.2)
    ours = ClaimOutcome(value=1.2, draws=(1.2,), low=1.2, high=1.2, of=1.2, over=1.0, points=("",))
    for without, verdict in ((1.5, "holds"), (1.05, "follows from simulator constant turn_taking")):
        other = msgspec.structs.replace(ours, value=without, draws=(without,))
        assert row_of(claim, ("f",), ours, ours, {"turn_taking": other}, {}).verdict == verdict


def test_what_the_simulator_has_built_in_is_no_evidence() -> None:
    claim = PaperClaim(says="S", paper="2x", of="a", over="b", low=2, high=2, built_in="TILES")
    twice = ClaimOutcome(value=2.0, draws=(2.0,), low=2.0, high=2.0, of=2.0, over=1.0, points=("",))
    row = row_of(claim, ("f",), twice, twice, {}, {})
    assert row.verdict == "follows from simulator constant TILES"
    assert row.why.startswith("by its numbers: holds")
    none = msgspec.structs.replace(twice, value=1.0, draws=(1.0,))
    assert row_of(claim, ("f",), none, none, {}, {}).verdict == "does not hold"
