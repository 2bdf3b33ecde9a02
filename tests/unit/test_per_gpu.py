"""Runs on one GPU and on two side by side: what each does per GPU is said, and only then."""

from __future__ import annotations

from msgspec.structs import replace

from nexusbench.comparison.heading import note_lines
from nexusbench.comparison.headline import headline
from nexusbench.comparison.rows import make_rows
from nexusbench.comparison.verdict import verdict
from nexusbench.comparison.view import Column, RunView
from nexusbench.core.config import RunConfig
from tests.unit.manifests import RESOLVED
from tests.unit.summaries import distribution, scalar, summary_of


def column(label: str, gpus: int | None, ttft: float, throughput: float) -> Column:
    summary = summary_of(
        ttft=distribution("lower", mean=ttft), output_throughput=scalar(throughput, "higher")
    )
    resolved = replace(RESOLVED, device=f"sim:{label}", kv_blocks=1000, gpus=gpus or 1)
    config = RunConfig(trace="t.jsonl")
    return Column(label, [RunView(label, "complete", True, config, resolved, summary)])


def table(columns: list[Column]) -> dict[tuple[str, str], list[str]]:
    return {(row.title, row.name): [c.marked for c in row.cells] for row in make_rows(columns)}


PAIR = [column("one", 1, 300.0, 200.0), column("two", 2, 100.0, 320.0)]


def test_rows_of_gpus_and_of_rates_per_gpu() -> None:
    rows = table(PAIR)
    assert rows["GPUs", ""] == ["1", "2"]
    assert rows["output throughput", "tok/s"] == ["200", "320*"]
    assert rows["  per GPU", "tok/s"] == ["200*", "160"]


def test_equal_numbers_of_gpus_change_nothing() -> None:
    """A group of two each, or manifests that do not say: no new row, no new sentence."""
    for gpus in (None, 1, 2):
        same = [column("one", gpus, 300.0, 200.0), column("two", gpus, 100.0, 320.0)]
        assert not [key for key in table(same) if "GPU" in key[0]]
        assert "GPU" not in " ".join(verdict(same)) + headline(same).text
        assert not note_lines(same)


def test_a_winner_on_more_gpus_is_told_as_one() -> None:
    told = "two uses 2 GPUs: per GPU its output throughput is 160.0 tok/s, 20.0 % lower than one."
    assert told in verdict(PAIR)
    found = headline(PAIR)
    assert found.claim.startswith("two has the lowest mean TTFT")
    assert found.price.endswith(told)
    (note,) = note_lines(PAIR)
    assert "one 1 (sim:one, 1,000 KV blocks), two 2 (sim:two, 1,000 KV blocks)" in note[1]


def test_better_and_level_per_gpu_too() -> None:
    better = [PAIR[0], column("two", 2, 100.0, 480.0)]
    assert "240.0 tok/s, 20.0 % higher than one." in " ".join(verdict(better))
    level = [PAIR[0], column("two", 2, 100.0, 401.0)]
    assert "200.5 tok/s, level with one." in " ".join(verdict(level))


def test_nothing_is_said_of_more_gpus_that_win_nothing() -> None:
    slower = [PAIR[0], column("two", 2, 400.0, 150.0)]
    assert "uses 2 GPUs" not in " ".join(verdict(slower)) + headline(slower).text
    assert table(slower)["  per GPU", "tok/s"] == ["200*", "75"]
