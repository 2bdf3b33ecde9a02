"""Claims over the ranges of contested constants: on made-up cells, and on tiny real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nexusbench.experiments.neutral import gpu_file
from nexusbench.experiments.over_range import OverRange, Turn
from nexusbench.experiments.reproduction.lab import PRINTED, Lab
from nexusbench.experiments.reproduction.outcome_files import Done, finished, markdown
from nexusbench.experiments.reproduction.ranged import is_ranged
from nexusbench.experiments.reproduction.run import reproduce
from nexusbench.experiments.reproduction.spec import Criterion, Experiment, load_experiment
from nexusbench.physics.gpus import load_gpu
from tests.unit.test_reproduction import BASE, CLAIM, HEAD, SYSTEMS, MadeUp, claim_of

MEAN = CLAIM.replace("low = 2", 'measure = "normalised_latency.mean"\nranges = true\nlow = 2')
SPEC = HEAD + BASE + "[grid]\nrate = [50]\nseed = [0, 1]\n" + SYSTEMS + MEAN


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., Experiment]:
    """On a GPU whose ``turn_taking`` is 0.5 of [0, 1]."""
    gpu = load_gpu("l20")
    gpu = msgspec.structs.replace(
        gpu, sim=msgspec.structs.replace(gpu.sim, turn_taking=0.5),
        ranges={"turn_taking": (0.0, 1.0)},
    )  # fmt: skip
    (tmp_path / "mine.toml").write_text(gpu_file(gpu))
    (tmp_path / "bare.toml").write_text(gpu_file(msgspec.structs.replace(gpu, ranges={})))
    lines = [
        f'{{"timestamp": {100 * i}, "input_length": {40 + 7 * i}, "output_length": 3}}\n'
        for i in range(8)
    ]
    (tmp_path / "t.jsonl").write_text("".join(lines))

    def make(old: str = "", new: str = "", *, gpu: str = "mine") -> Experiment:
        text = SPEC.replace("sim:l20", f"sim:{gpu}.toml").replace(old, new, 1)
        assert not old or old in SPEC
        (tmp_path / "fig9-x.toml").write_text(text)
        return load_experiment(tmp_path / "fig9-x.toml")

    return make


class Elsewhere(MadeUp):
    """``vllm`` takes 10; ``nexus`` what ``number`` says of turn_taking and the draw."""

    def __init__(self, experiment: Experiment, number: Callable[[float, int], Any]) -> None:
        def made(name: str, rate: float, seed: int, variant: Any) -> Any:
            if name == "vllm":
                return 10.0
            where = 0.5 if variant.place is None else variant.place.values["turn_taking"]
            self.places.add((None if variant.place is None else variant.place.name, seed))
            return number(where, seed)

        super().__init__(experiment, made)
        self.places: set[tuple[str | None, int]] = set()
        self.num_wanted, self.cells = 0, []


def judged(experiment: Experiment, number: Callable[[float, int], Any]) -> tuple[Any, Any]:
    lab: Any = Elsewhere(experiment, number)
    (row,) = reproduce(lab).rows
    return row, lab


def test_a_claim_that_holds_over_the_range_and_how_it_is_drawn(experiment) -> None:
    row, lab = judged(experiment(), lambda where, seed: 5.0)
    assert (row.verdict, row.over) == ("holds", "holds over the range")
    # Ends over the draws that variants get; draws with the arrivals in turn.
    assert lab.places == {
        (None, 0), (None, 1), ("turn_taking = 0", 0), ("turn_taking = 1", 0), ("draw 0", 0),
        ("draw 1", 1), ("draw 2", 0), ("draw 3", 1),
    }  # fmt: skip


def test_a_claim_that_hangs_on_a_constant(experiment) -> None:
    row, _ = judged(experiment(), lambda where, seed: 5.0 if where < 0.7 else 20.0)
    (turn,) = row.over_range.hangs_on
    assert row.verdict == "holds"
    # Two times better in use, half as good at the end: 1 lies at two thirds of the way.
    assert (turn.end, turn.points, turn.turns_at) == (1.0, 0.5, pytest.approx(0.5 + 0.5 * 2 / 3))
    assert row.over == "hangs on turn_taking (turns at 0.833)"


def test_a_claim_that_would_hold_elsewhere_hangs_and_one_that_does_nowhere_fails(
    experiment,
) -> None:
    row, _ = judged(experiment(), lambda where, seed: 5.0 if where > 0.7 else 20.0)
    assert row.verdict == "does not hold"
    assert row.over == "hangs on turn_taking (turns at 0.667)"
    row, _ = judged(experiment(), lambda where, seed: 20.0)
    assert (row.verdict, row.over) == ("does not hold", "fails over the range")


def test_a_size_that_is_another_turns_nowhere(experiment) -> None:
    row, _ = judged(experiment(), lambda where, seed: 5.0 if where < 0.7 else 8.0)
    assert row.over == "hangs on turn_taking (1.25x at 1)"


def test_a_cell_that_fails_at_an_end_is_told(experiment) -> None:
    row, _ = judged(experiment(), lambda where, seed: "no room" if where == 1.0 else 5.0)
    assert row.over_range is None
    assert row.over == "cannot be told: no room (at turn_taking = 1)"


def test_which_claims_are_judged_so(experiment) -> None:
    assert is_ranged(claim_of(neutral=("turn_taking",)))
    assert not is_ranged(claim_of())
    assert not is_ranged(claim_of(neutral=("turn_taking",), ranges=False))
    row, lab = judged(experiment("ranges = true", ""), lambda where, seed: 5.0)
    assert (row.over, lab.places) == ("", {(None, 0), (None, 1)})
    # Asked for where there is nothing: it says so.
    row, _ = judged(experiment(gpu="bare"), lambda where, seed: 5.0)
    assert row.over == f"cannot be told: {experiment(gpu='bare').base['device']} has no ranges"
    row, _ = judged(
        experiment("ranges = true", 'neutral = ["turn_taking"]', gpu="bare"),
        lambda where, seed: 5.0,
    )
    assert row.over == ""


def test_a_rate_is_compared_with_what_is_unloaded_at_the_same_place(experiment) -> None:
    """What one request takes alone may change with a constant, too."""
    made = experiment()
    criterion = Criterion(system="vllm", steady="nexus")
    (claim,) = made.claims
    claim = msgspec.structs.replace(claim, measure="throughput")
    made = msgspec.structs.replace(made, throughput=criterion, claims=(claim,))
    alone = set()

    class Recording(MadeUp):
        num_wanted, cells = 0, ()

        def cell(self, system, point, seed, variant=PRINTED):
            if point["request_rate"] == criterion.rate:
                alone.add(None if variant.place is None else variant.place.name)
            return super().cell(system, point, seed, variant)

    lab: Any = Recording(made, lambda name, rate, seed, variant: 10.0 if rate < 50 else 1e3)
    reproduce(lab)
    assert alone == {None, "turn_taking = 0", "turn_taking = 1", *(f"draw {n}" for n in range(4))}


def test_no_draws_but_ends(experiment) -> None:
    made = experiment('"fig9"]\n', '"fig9"]\nrange_draws = 0\n')
    row, lab = judged(made, lambda where, seed: 5.0)
    assert row.over == "holds over the range"
    assert row.over_range.draws is None
    assert {name for name, _ in lab.places} == {None, "turn_taking = 0", "turn_taking = 1"}


def test_the_table_has_a_column_only_where_it_is_asked(tmp_path: Path, experiment) -> None:
    over = OverRange(
        verdict="hangs", hangs_on=(Turn("turn_taking", 0.5, 1.0, 0.5, 0.8),), low=0.5, high=2.0
    )
    done = finished(experiment(), reproduce(Elsewhere(experiment(), lambda *_: 5.0)), quick=False)  # type: ignore[arg-type]
    rows = [msgspec.structs.replace(done.rows[0], over="hangs on turn_taking", over_range=over)]
    text = markdown([msgspec.structs.replace(done, rows=tuple(rows))])
    assert "| verdict | over the ranges | why |" in text
    assert "of 1 claims 0 hold, 1 hang on one (turn_taking 1), 0 fail." in text
    plain = msgspec.structs.replace(done.rows[0], over="", over_range=None)
    text = markdown([msgspec.structs.replace(done, rows=(plain,))])
    assert "| verdict | why |" in text
    assert "Over the ranges" not in text
    # What was kept before there were ranges is read.
    fields = msgspec.to_builtins(done)
    for row in fields["rows"]:
        del row["over"], row["over_range"]
    assert msgspec.convert(fields, Done).rows == (plain,)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("ranges = true", "ranges = 3", "claim.ranges"),
        ('"fig9"]\n', '"fig9"]\nrange_draws = 101\n', "range_draws"),
        ('"fig9"]\n', '"fig9"]\nrange_draws = -1\n', "range_draws"),
    ],
)
def test_mistakes_are_named(experiment, old: str, new: str, told: str) -> None:
    with pytest.raises(Exception, match=told):
        experiment(old, new)


def test_a_cell_elsewhere_is_of_another_gpu(tmp_path: Path, experiment) -> None:
    """But one that runs one batch at a time is the kept one."""
    from nexusbench.experiments.ranges import ends, ranged_gpu
    from nexusbench.experiments.reproduction.spec import Variant

    made = experiment()
    lab = Lab(made, tmp_path / "cells")
    (place, _) = ends(ranged_gpu(str(made.base["device"])))
    variant = Variant(name="", place=place)
    devices = {
        (name, how.place is None): lab._config(made.systems[name], made.points[0], 0, how).device
        for name in ("vllm", "nexus")
        for how in (PRINTED, variant)
    }
    assert devices["vllm", True] == devices["vllm", False] == devices["nexus", True]
    moved = devices["nexus", False]
    assert load_gpu(moved.removeprefix("sim:")).sim.turn_taking == 0.0


@pytest.mark.slow
def test_tiny_cells_end_to_end(tmp_path: Path, experiment) -> None:
    made = experiment("normalised_latency.mean", "ttft.mean")
    report = reproduce(Lab(made, tmp_path / "cells"))
    assert report.rows[0].over_range is not None
    assert report.num_cells == 2 * 2 + 2 + 4  # both systems in use; nexus elsewhere
