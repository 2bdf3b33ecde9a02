"""Reproductions: specs and their mistakes, claims on made-up cells, searches, resuming."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InputError, UsageError
from nexusbench.experiments.cells import SweepCell
from nexusbench.experiments.motivation import Statement
from nexusbench.experiments.neutral import NEUTRAL, gpu_file, neutral_gpu
from nexusbench.experiments.reproduction import verdicts
from nexusbench.experiments.reproduction.lab import PRINTED, Lab, Unmeasurable
from nexusbench.experiments.reproduction.measures import (
    ClaimOutcome,
    outcome,
    steady_points,
    throughput,
    value_of,
)
from nexusbench.experiments.reproduction.outcome_files import (
    Done,
    finished,
    markdown,
    order,
    read_done,
    write_done,
)
from nexusbench.experiments.reproduction.run import SystemAtPoint, reproduce
from nexusbench.experiments.reproduction.spec import (
    PaperClaim,
    Variant,
    find_experiments,
    load_experiment,
)
from nexusbench.experiments.sweep_spec import load_sweep
from nexusbench.schedulers.base import schedulers
from tests.docs import reproduction as document
from tests.unit.summaries import distribution, scalar, summary_of

WORKLOADS = document.ROOT / "workloads"
HEAD = '[experiment]\ntitle = "T"\nfigures = ["fig9"]\n'
BASE = '[base]\ntrace = "t.jsonl"\ndevice = "sim:l20"\nmodel = "tiny"\nburstiness = 1.0\n'
BASE += "kv_blocks = 500\n"
GRID = "[grid]\nrate = [1, 2, 4]\nseed = [0, 1]\n"
SYSTEMS = '[systems.vllm]\nscheduler = "vllm"\n[systems.nexus]\nscheduler = "nexus"\n'
CRITERION = '[throughput]\nsystem = "vllm"\nsteady = "nexus"\ntimes = 5\n'
CLAIM = '[[claim]]\nsays = "S"\npaper = "2x"\nof = "nexus"\nover = "vllm"\nlow = 2\nhigh = 2\n'
GOOD = HEAD + BASE + GRID + SYSTEMS + CRITERION + CLAIM


@pytest.fixture
def spec(tmp_path: Path):
    lines = [
        f'{{"timestamp": {100 * i}, "input_length": {40 + 7 * i}, "output_length": 3}}\n'
        for i in range(8)
    ]
    (tmp_path / "t.jsonl").write_text("".join(lines))

    def write(text: str) -> Path:
        (tmp_path / "fig9-x.toml").write_text(text)
        return tmp_path / "fig9-x.toml"

    return write


def test_a_spec_is_decoded_and_quick_replaces_and_drops(spec) -> None:
    text = GOOD + '[quick]\nlimit = 3\nrate = [2]\nseed = "0..0"\ndrop = ["more"]\n'
    text += '[systems.more]\nscheduler = "sglang"\n[systems.best]\nbest_of = ["more", "vllm"]\n'
    whole = load_experiment(spec(text))
    assert [point["request_rate"] for point in whole.points] == [1, 2, 4]
    assert (whole.seeds, whole.base.get("limit"), whole.cut) == ((0, 1), None, ())
    assert whole.systems["best"].best_of == ("more", "vllm")
    quick = load_experiment(spec(text), quick=True)
    assert [point["request_rate"] for point in quick.points] == [2]
    assert (quick.seeds, quick.base["limit"]) == ((0,), 3)
    assert "more" not in quick.systems
    assert quick.systems["best"].best_of == ("vllm",)
    assert any("without more" in cut for cut in quick.cut)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("[throughput]", "[throughputs]"), ("unknown table", "throughput")),
        (("[experiment]", "[experiments]"), ("unknown table", "experiment")),
        (('scheduler = "nexus"', 'scheduler = "nexsu"'), ("no scheduler called 'nexsu'", "nexus")),
        (('of = "nexus"', 'of = "nexsu"'), ("no system called 'nexsu'", "claim.of", "nexus")),
        (('steady = "nexus"', 'steady = "x"'), ("no system called 'x'", "throughput.steady")),
        (('paper = "2x"\n', ""), ("missing required field `paper`", "claim")),
        (("low = 2\nhigh = 2\n", ""), ("neither low nor high", "claim")),
        (("low = 2", "low = 3"), ("low exceeds high", "claim.low")),
        (("low = 2", 'low = "2"'), ("Expected `float", "claim.low")),
        (("low = 2", "lwo = 2"), ("unknown key", "claim.lwo", "low")),
        (("low = 2", 'measure = "ttft"\nlow = 2'), ("no statistic", "ttft.mean")),
        (("low = 2", 'measure = "tttf.mean"\nlow = 2'), ("no metric 'tttf'", "ttft")),
        (("low = 2", 'neutral = ["turn_takin"]\nlow = 2'), ("'turn_takin'", "turn_taking")),
        (("times = 5", "times = 1"), ("is impossible", "throughput")),
        ((CRITERION, ""), ("is missing", "throughput")),
        (("seed = [0, 1]", "seeed = [0, 1]"), ("unknown key", "seed")),
        (('scheduler = "vllm"', ""), ("needs fields or best_of", "systems.vllm")),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_place(spec, change, told) -> None:
    assert change[0] in GOOD
    with pytest.raises(InputError) as error:
        load_experiment(spec(GOOD.replace(*change)))
    assert "fig9-x.toml" in str(error.value)
    for words in told:
        assert words in str(error.value)


def test_the_line_of_a_mistake_in_a_claim(spec) -> None:
    text = GOOD + CLAIM.replace("low = 2", "lwo = 2")
    with pytest.raises(InputError, match=rf"fig9-x.toml:{len(text.splitlines()) - 1}: "):
        load_experiment(spec(text))


def test_a_variant_that_changes_nothing_is_refused(spec) -> None:
    with pytest.raises(InputError, match="changes nothing"):
        load_experiment(spec(GOOD + '[variants.none]\nsystems = ["nexus"]\n'))


@pytest.mark.slow
def test_the_shipped_experiments_are_sound(tmp_path: Path) -> None:
    """Systems whose scheduler is not there (yet) are left out; nothing else may be wrong."""
    shutil.copytree(WORKLOADS, tmp_path / "w")
    for path in (tmp_path / "w" / "nexus").glob("*.toml"):
        text = path.read_text()
        for name, table in tomllib.loads(text).get("systems", {}).items():
            scheduler = table.get("scheduler", "vllm").partition(":")[0]
            if scheduler not in schedulers.names():
                text = text.replace(f'[systems.{name}]\nscheduler = "{scheduler}"\n', "")
                text = text.replace(f'"{name}", ', "")
        path.write_text(text)
    found = find_experiments(tmp_path / "w" / "nexus")
    figures = {figure for experiment in found for figure in experiment.about.figures}
    assert figures == {"fig4", "fig5", "fig6", "fig9", "fig10", "fig11", "fig12", "fig13", "oracle"}
    assert sum(len(experiment.claims) for experiment in found) > 90
    assert load_experiment(tmp_path / "w" / "nexus" / "fig9-ldc.toml", quick=True).cut


# Claims on made-up cells.


class MadeUp:
    """A lab whose cells come from a function of (system, rate, seed, variant)."""

    run_of = 400.0  # requests: what a run takes without a queue

    def __init__(self, experiment, number) -> None:
        self.experiment, self._number, self.asked = experiment, number, []

    def cell(self, system, point, seed, variant=PRINTED) -> SweepCell:
        self.asked.append((system.name, point.get("request_rate"), seed))
        made = self._number(system.name, point.get("request_rate"), seed, variant)
        if isinstance(made, str):
            raise Unmeasurable(made)
        summary = summary_of(
            normalised_latency=distribution(mean=made), ttft=distribution(mean=10 * made),
            e2e=distribution(mean=9.0), ttft_queueing=distribution(mean=4.0),
            makespan=scalar(self.run_of / (point["request_rate"] or 1)),
        )  # fmt: skip
        return SweepCell(config=RunConfig(trace="t"), status="ok", summary=summary)


def knee(most: dict[str, float]):
    """Normalised latency 10 up to a rate, then 1,000."""
    return lambda name, rate, seed, variant: 10.0 if rate <= most[name] else 1000.0


def test_throughput_is_the_knee_to_its_precision(spec) -> None:
    lab: Any = MadeUp(load_experiment(spec(GOOD)), knee({"vllm": 1.5, "nexus": 3.1}))
    systems = lab.experiment.systems
    assert throughput(lab, systems["nexus"], 0, PRINTED) == pytest.approx(3.1, rel=0.03)
    found = throughput(lab, systems["vllm"], 0, PRINTED)
    assert found <= 1.5
    assert found * 1.03 >= 1.5
    (claim,) = lab.experiment.claims
    made = outcome(lab, claim, PRINTED, (0, 1))
    assert made.value == pytest.approx(3.1 / 1.5, rel=0.04)
    assert len(made.draws) == 2


def test_throughput_beyond_the_grid_below_it_and_nowhere(spec) -> None:
    lab: Any = MadeUp(load_experiment(spec(GOOD)), knee({"vllm": 0.3, "nexus": 9.1}))
    systems = lab.experiment.systems
    assert throughput(lab, systems["nexus"], 0, PRINTED) == pytest.approx(9.1, rel=0.03)
    assert throughput(lab, systems["vllm"], 0, PRINTED) == pytest.approx(0.3, rel=0.03)
    never: Any = MadeUp(lab.experiment, knee({"vllm": 0.021, "nexus": 0.021}))
    with pytest.raises(Unmeasurable, match=r"vllm breaks the criterion even at 0\.0625"):
        throughput(never, systems["vllm"], 0, PRINTED)
    text = GOOD + '[systems.best]\nbest_of = ["vllm", "nexus"]\n'
    either: Any = MadeUp(load_experiment(spec(text)), knee({"vllm": 0.021, "nexus": 3.0}))
    best = either.experiment.systems["best"]
    assert throughput(either, best, 0, PRINTED) == pytest.approx(3, rel=0.03)
    always: Any = MadeUp(lab.experiment, knee({"vllm": 99, "nexus": 99}))
    with pytest.raises(Unmeasurable, match="vllm keeps the criterion even at 64"):
        throughput(always, systems["vllm"], 0, PRINTED)


def test_a_queue_that_grows_is_not_kept_however_few_wait(spec) -> None:
    """Latency stays low up to 3.1 req/s, but no more than 1.4 are served."""

    class Slow(MadeUp):
        def cell(self, system, point, seed, variant=PRINTED) -> SweepCell:
            cell = super().cell(system, point, seed, variant)
            took = self.run_of / min(point["request_rate"], 1.4)
            summary = summary_of(**cell.summary.metrics | {"makespan": scalar(took)})
            return msgspec.structs.replace(cell, summary=summary)

    text = GOOD + '[variants.alone]\nthroughput = { system = "vllm", steady = "nexus", '
    text += "backlog = 1.0 }\n"
    lab: Any = Slow(load_experiment(spec(text)), knee({"vllm": 3.1, "nexus": 3.1}))
    nexus, (alone,) = lab.experiment.systems["nexus"], lab.experiment.variants
    assert throughput(lab, nexus, 0, PRINTED) == pytest.approx(1.4 / 0.9, rel=0.03)
    assert throughput(lab, nexus, 0, alone) == pytest.approx(3.1, rel=0.03)
    assert [p["request_rate"] for p in steady_points(lab, 0)] == [1]


def test_a_rate_at_which_requests_are_turned_away_is_not_kept(spec) -> None:
    """Latency stays low up to 3.1 req/s, since from 1.4 on some are rejected."""

    class Picky(MadeUp):
        def cell(self, system, point, seed, variant=PRINTED) -> SweepCell:
            cell = super().cell(system, point, seed, variant)
            picky = system.name == "nexus" and point["request_rate"] > 1.4
            metrics = {
                **cell.summary.metrics, "offered": scalar(400),
                "finished": scalar(390 if picky else 400),
            }  # fmt: skip
            return msgspec.structs.replace(cell, summary=summary_of(**metrics))

    lab: Any = Picky(load_experiment(spec(GOOD)), knee({"vllm": 3.1, "nexus": 3.1}))
    assert throughput(lab, lab.experiment.systems["nexus"], 0, PRINTED) == pytest.approx(
        1.4, rel=0.03
    )
    assert throughput(lab, lab.experiment.systems["vllm"], 0, PRINTED) == pytest.approx(
        3.1, rel=0.03
    )
    text = GOOD.replace("low = 2", 'measure = "ttft.mean"\nlow = 2').replace(CRITERION, "")
    lab = Picky(load_experiment(spec(text)), knee({"vllm": 3.1, "nexus": 3.1}))
    with pytest.raises(Unmeasurable, match=r"nexus finished 97.5 % of its requests and vllm 100"):
        outcome(lab, lab.experiment.claims[0], PRINTED, (0,))


def test_another_criterion_and_the_best_of_several(spec) -> None:
    text = GOOD + '[systems.best]\nbest_of = ["vllm", "nexus"]\n'
    text += '[variants.loose]\nthroughput = { system = "vllm", steady = "nexus", at_most = 2000 }\n'
    lab: Any = MadeUp(load_experiment(spec(text)), knee({"vllm": 2.5, "nexus": 1.2}))
    systems = lab.experiment.systems
    assert throughput(lab, systems["best"], 0, PRINTED) == pytest.approx(2.5, rel=0.03)
    with pytest.raises(Unmeasurable, match="keeps the criterion"):  # 2,000 is never reached
        throughput(lab, systems["best"], 0, lab.experiment.variants[0])
    point = {"request_rate": 2}
    assert value_of(lab, systems["best"], "ttft.mean", point, 0) == 100
    assert value_of(lab, systems["nexus"], "ttft.mean", point, 0) == 10_000
    assert value_of(lab, systems["vllm"], "execution", point, 0) == 5


def test_latencies_are_compared_where_the_steady_system_is_steady(spec) -> None:
    text = GOOD.replace("low = 2", 'measure = "ttft.mean"\nlow = 2')
    text += '[variants."at all rates"]\nall_rates = true\n'
    lab: Any = MadeUp(load_experiment(spec(text)), knee({"vllm": 1.0, "nexus": 2.5}))
    assert [p["request_rate"] for p in steady_points(lab, 0)] == [1, 2]
    made = outcome(lab, lab.experiment.claims[0], PRINTED, (0,))
    assert (made.low, made.high, made.points) == (1, 100, ("1 req/s", "2 req/s"))
    everywhere = outcome(lab, lab.experiment.claims[0], lab.experiment.variants[0], (0,))
    assert everywhere.points == ("1 req/s", "2 req/s", "4 req/s")
    assert made.value == pytest.approx(10)  # the geometric mean of 1 and 100


def claim_of(**more) -> PaperClaim:
    return PaperClaim(**{"says": "S", "paper": "P", "of": "a", "over": "b", **more})


def found(value: float, *draws: float) -> ClaimOutcome:
    draws = draws or (value,)
    return ClaimOutcome(value, draws, min(draws), max(draws), 1.0, 2.0, ("all",))


@pytest.mark.parametrize(
    ("claim", "values", "verdict", "reason"),
    [
        (claim_of(low=1.5, high=1.8), (1.6,), "holds", ""),
        (claim_of(low=1.5, high=1.8), (1.42,), "holds", ""),
        (claim_of(low=1.5, high=1.8), (1.2,), "in part", "smaller"),
        (claim_of(low=1.5, high=1.8), (3.0,), "in part", "larger"),
        (claim_of(low=1.5, high=1.8), (1.6, 0.98, 2.2), "in part", "not in every draw"),
        (claim_of(low=1.5, high=1.8), (0.9,), "does not hold", "the other way"),
        (claim_of(low=1.5, high=1.8), (1.0,), "does not hold", "no difference"),
        (claim_of(low=0.9, high=1.1), (1.05,), "holds", ""),
        (claim_of(low=0.9, high=1.1), (1.18,), "in part", "larger"),
        (claim_of(low=0.9, high=1.1), (0.5,), "does not hold", "smaller"),
        (claim_of(high=1.0), (0.7,), "holds", ""),
        (claim_of(high=1.0), (1.3,), "does not hold", "the other way"),
        (claim_of(low=1.0), (1.02,), "does not hold", "no difference (below 3 %)"),
        (claim_of(low=1.0, measure="ttft.mean"), (1.02,), "holds", ""),
        (claim_of(low=1.0, measure="ttft.mean"), (0.995,), "does not hold", "below 1 %"),
        (claim_of(compare="change", low=-14, high=-14), (-13.0,), "holds", ""),
        (claim_of(compare="change", low=-14, high=-14), (-40.0,), "in part", "larger"),
        (claim_of(compare="change", low=30, high=30), (-5.0,), "does not hold", "the other way"),
        (claim_of(compare="value", low=2, high=3), (3.5,), "holds", ""),
        (claim_of(compare="value", low=2, high=3), (4.2,), "in part", "40 % off"),
        (claim_of(compare="value", low=2, high=3), (9.0,), "does not hold", "200 % off"),
    ],
)
def test_verdicts_by_the_numbers(claim, values, verdict, reason) -> None:
    mean = sum(values) / len(values)
    got, why = verdicts.judge(claim, found(mean, *values))
    assert (got, reason in why) == (verdict, True)


def test_a_claim_follows_from_a_constant_that_takes_most_of_it() -> None:
    claim = claim_of(low=1.5, high=1.8)
    ours = found(1.6)
    stays = verdicts.row_of(claim, ("f",), ours, ours, {"turn_taking": found(1.5)}, {})
    assert stays.verdict == "holds"
    assert "stays without turn_taking (1.50x)" in stays.why
    goes = verdicts.row_of(
        claim, ("f",), ours, ours, {"turn_taking": found(1.5), "link_gbps": found(1.1)}, {}
    )
    assert goes.verdict == "follows from simulator constant link_gbps"
    assert "by its numbers: holds; 1.10x without the constant" in goes.why
    never = verdicts.row_of(
        claim, ("f",), found(0.9), found(0.9), {"turn_taking": found(0.5)}, {}
    )  # fmt: skip
    assert never.verdict == "does not hold"
    assert "does not hold without each of turn_taking (0.50x)" in never.why
    equal = claim_of(low=0.9, high=1.1)
    turned = verdicts.row_of(equal, (), found(1.5), found(1.5), {"link_gbps": found(1.0)}, {})
    assert turned.verdict.endswith("link_gbps")
    same = verdicts.row_of(equal, (), found(1.0), found(1.0), {"link_gbps": found(1.09)}, {})
    assert same.verdict == "holds"


def test_other_readings_are_told_with_their_figures() -> None:
    claim = claim_of(low=1.5, high=1.8)
    others = {"beta = 2": found(0.8), "whole seconds": found(1.7), "x": "cannot be told (broken)"}
    row = verdicts.row_of(claim, ("fig9",), found(1.6), found(1.6), {}, others)
    assert row.verdict == "holds"
    assert "but beta = 2: does not hold (0.80x), x: cannot be told (broken)" in row.why
    assert "same under whole seconds (1.70x)" in row.why


def test_statements_of_section_3_get_the_same_verdicts() -> None:
    def row(*fields):
        return verdicts.row_of_statement(Statement(*fields), ("fig5",))

    assert row("s", "10", "%", 11.0, "found").verdict == "holds"
    assert row("s", "10", "%", 14.0, "found").verdict == "in part"
    assert row("s", "10", "%", 30.0, "found").verdict == "does not hold"
    assert row("s", "10", "%", None, "not told apart").verdict == "cannot be tested here"
    follows = row("s", "10", "%", 10.0, "follows", "bandwidth_curve flat", 0.1)
    assert follows.verdict == "follows from simulator constant bandwidth_curve"
    assert "by its numbers: holds; 0.1 % without bandwidth_curve flat" in follows.why


def test_a_claim_of_a_failed_cell_cannot_be_tested(spec) -> None:
    lab: Any = MadeUp(load_experiment(spec(GOOD)), lambda *_: "nexus: no room")
    lab.num_wanted, lab.cells = 0, []
    report = reproduce(lab)
    assert [row.verdict for row in report.rows] == ["cannot be tested here"]
    assert "no room" in report.rows[0].why
    assert all("no room" in line.error for line in report.lines)


# Real cells, tiny ones.

TINY = HEAD + BASE + "[grid]\nrate = [50]\nseed = [0]\n" + SYSTEMS
TINY += CLAIM.replace("high = 2\n", 'measure = "tbt.mean"\nhigh = 2\nneutral = ["turn_taking"]\n')
TINY += '[variants."whole seconds"]\nquantize_arrivals = 1.0\n'
TINY += CLAIM.replace("low = 2", 'measure = "ttft.mean"\nlow = 2')
TINY += '[[claim]]\nsays = "C"\npaper = "-"\ncannot = "no"\n'


@pytest.mark.slow
def test_a_reproduction_resumes_and_writes_what_can_be_read(spec, tmp_path: Path) -> None:
    experiment = load_experiment(spec(TINY))
    first = Lab(experiment, tmp_path / "cells")
    run, allowed = first._run, 3

    def killed(*arguments):
        for number, cell in enumerate(run(*arguments)):
            if number == allowed:
                raise KeyboardInterrupt
            yield cell

    first._run = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        reproduce(first)
    kept = first.ran
    assert kept >= allowed
    again = Lab(experiment, tmp_path / "cells")
    report = reproduce(again)
    assert again.ran == report.num_cells - kept
    assert [row.verdict for row in report.rows][-1] == "cannot be tested here"
    assert "whole seconds" in report.rows[0].why
    third = Lab(experiment, tmp_path / "cells")
    assert reproduce(third) == report
    assert third.ran == 0
    done = finished(experiment, report, quick=False)
    write_done(tmp_path / "out", done)
    assert read_done(tmp_path / "out") == [done]
    assert done.manifest["resolved"]["cells"] == report.num_cells
    text = markdown([done])
    assert "simulated" in text
    assert "| nexus | 50 req/s |" in text
    block = "a\n<!-- made of: out -->\nold\n<!-- end of what is made -->\nz\n"
    made = document.rendered(block, tmp_path)
    assert text in made
    assert document.rendered(made, tmp_path) == made


def test_an_experiment_can_ask_for_more_requests_than_the_shipped_trace_has(tmp_path: Path) -> None:
    shutil.copy(WORKLOADS / "sharegpt.toml", tmp_path)
    text = HEAD.replace('"fig9"]\n', '"fig9"]\nrequests = 700\n') + BASE.replace(
        "t.jsonl", "sharegpt.toml"
    )
    text = text.replace("burstiness = 1.0\n", "limit = 2\n")
    (tmp_path / "fig9-x.toml").write_text(text + SYSTEMS)
    lab = Lab(load_experiment(tmp_path / "fig9-x.toml"), tmp_path / "cells")
    reproduce(lab)
    (cell, _) = lab.cells
    assert cell.config.trace.endswith("sharegpt-700.jsonl")
    assert len(Path(cell.config.trace).read_text().splitlines()) == 700


def test_a_neutral_gpu_is_a_file_that_can_be_read(tmp_path: Path) -> None:
    from nexusbench.physics.gpus import load_gpu

    gpu = load_gpu("l20")
    for constant in NEUTRAL:
        changed = neutral_gpu(gpu, constant)
        assert changed != gpu
        (tmp_path / "g.toml").write_text(gpu_file(changed))
        read = load_gpu(tmp_path / "g.toml")
        assert msgspec.structs.replace(read, sources=gpu.sources) == changed


def test_experiments_come_in_the_order_of_the_figures() -> None:
    names = ["oracle", "fig13", "fig4-6", "fig9-mixed", "fig9-ldc", "fig10"]
    assert sorted(names, key=lambda name: order(Path(name))) == [
        "fig4-6", "fig9-ldc", "fig9-mixed", "fig10", "fig13", "oracle",
    ]  # fmt: skip


def test_quantize_arrivals_is_a_field_of_sweeps(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"timestamp": 0, "input_length": 9, "output_length": 2}\n')
    (tmp_path / "s.toml").write_text('[base]\ntrace = "t.jsonl"\n[grid]\nquantize_arrivals = [1]\n')
    assert load_sweep(tmp_path / "s.toml").configs[0].quantize_arrivals == 1


def test_only_names_figures_or_experiments() -> None:
    from nexusbench.cli._reproducing import chosen

    def made(name: str, *figures: str) -> Any:
        return SimpleNamespace(name=name, about=SimpleNamespace(figures=figures))

    all_ = [made("fig10", "fig10"), made("fig9-ldc", "fig9"), made("fig4-6", "fig4", "fig5")]
    assert [e.name for e in chosen(all_, ())] == ["fig4-6", "fig9-ldc", "fig10"]
    assert [e.name for e in chosen(all_, ("fig9,fig4",))] == ["fig4-6", "fig9-ldc"]
    assert [e.name for e in chosen(all_, ("fig9-ldc",))] == ["fig9-ldc"]
    with pytest.raises(UsageError, match=r"no figure 'fig19'\. Did you mean"):
        chosen(all_, ("fig19",))
    with pytest.raises(UsageError, match="names nothing"):
        chosen(all_, (" ",))


@pytest.mark.slow
def test_pictures_say_simulated_and_are_the_same_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from nexusbench.experiments.reproduction.plots import draw

    lines = tuple(
        SystemAtPoint(
            system=name, point={"limit": size}, name="", values={"makespan.value": size * 2.0}
        )
        for name in ("a", "b")
        for size in (512, 1024)
    )
    done = Done(
        experiment="fig11", title="Offline", figures=("fig11",), quick=False, cut=(), seeds=(0,),
        base={}, device="sim:l20", note="", criterion="", rows=(), lines=lines, throughputs={},
        manifest={}, simulated=True, schema=1,
    )  # fmt: skip
    path = draw(done, tmp_path)
    assert path is not None
    first = path.read_bytes()
    assert b"SIMULATED" in first
    draw(done, tmp_path)
    assert path.read_bytes() == first
    assert draw(msgspec.structs.replace(done, lines=lines[:1]), tmp_path) is None


def test_a_variant_without_systems_is_for_all() -> None:
    assert Variant(name="v").systems == ()
