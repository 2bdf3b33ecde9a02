"""Sweep specs: cross products, what is left out and added, and every mistake with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexusbench.core.errors import InputError
from nexusbench.experiments.sweep_spec import load_sweep

TRACE = '{"timestamp": 0, "input_length": 9, "output_length": 2}\n'
BASE = '[base]\ntrace = "t.jsonl"\ndevice = "sim:l20"\n'


@pytest.fixture
def spec(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text(TRACE)

    def write(text: str) -> Path:
        (tmp_path / "s.toml").write_text(text)
        return tmp_path / "s.toml"

    return write


def test_cross_product_last_axis_fastest(spec) -> None:
    sweep = load_sweep(
        spec(BASE + '[grid]\nscheduler = ["nexus", "vllm"]\nrate = [1, 2.5]\nseed = "0..2"\n')
    )
    assert len(sweep.configs) == 12
    assert [c.seed for c in sweep.configs[:4]] == [0, 1, 2, 0]
    assert sweep.axes == ("scheduler", "request_rate", "seed")
    assert sweep.configs[0].trace.endswith("t.jsonl")


def test_exclude_include_default_and_repeats(spec) -> None:
    sweep = load_sweep(
        spec(
            BASE + '[grid]\nscheduler = ["nexus", "vllm"]\npartitioner = ["default", "whole"]\n'
            '[[exclude]]\nscheduler = "vllm"\npartitioner = ["whole"]\n'
            '[[include]]\nscheduler = ["nexus", "sglang"]\n'
        )
    )
    named = [(c.scheduler, c.partitioner) for c in sweep.configs]
    assert named == [("nexus", None), ("nexus", "whole"), ("vllm", None), ("sglang", None)]
    assert (sweep.excluded, sweep.repeated) == (1, 1)


def test_only_included_runs_and_slos(spec) -> None:
    text = BASE + 'goodput = "ttft:500,itl:50"\n[[include]]\nseed = [1, 2]\n'
    sweep = load_sweep(spec(text))
    assert [c.seed for c in sweep.configs] == [1, 2]
    assert sweep.configs[0].goodput == {"ttft": 500, "tbt": 50}
    table = BASE + "[grid]\ngoodput = [{ttft = 500}, {e2e = 9000.0}]\n"
    assert [c.goodput for c in load_sweep(spec(table)).configs] == [{"ttft": 500}, {"e2e": 9000}]


@pytest.mark.parametrize(
    ("text", "line", "field", "sentence"),
    [
        ("[base\n", 1, None, "not valid TOML"),
        ("", None, None, "is empty"),
        ('[base]\ntrace = "none.jsonl"\n', 2, "base.trace", "relative to the spec's folder"),
        ("[grid]\nseed = [1]\n", None, "base.trace", "no trace is named"),
        (BASE + '[grid]\nschedulr = ["nexus"]\n', 5, "grid.schedulr", "Did you mean 'scheduler'?"),
        (BASE + '[grid]\nscheduler = ["nexsus"]\n', 5, "grid.scheduler", "Did you mean 'nexus'?"),
        (BASE + "[grid]\nseed = []\n", 5, "grid.seed", "empty list"),
        (BASE + "[grid]\nseed = [1.5]\n", 5, "grid.seed", "Expected `int`"),
        (BASE + "[grid]\nseed = 3\n", 5, "grid.seed", "must be a list"),
        (BASE + '[grid]\nscheduler = "nexus"\n', 5, "grid.scheduler", 'scheduler = ["'),
        (BASE + "[grid]\nrequest_rate = [-1]\n", 5, "grid.request_rate", "above 0"),
        (BASE + "[grid]\nrate = [1]\nrequest_rate = [2]\n", 6, "grid.request_rate", "twice"),
        (BASE + "seed = [1, 2]\n", 4, "base.seed", "Put lists into [grid]"),
        (BASE + 'seed = 1\n[grid]\nseed = [2]\n', 6, "grid.seed", "is in [base] too"),
        (BASE + '[grid]\ngoodput = ["ttft:p99<3"]\n', 5, "grid.goodput", "write KEY:MS here"),
        (BASE + '[grid]\nmodel = ["nomodel"]\n', 5, "grid.model", "nomodel"),
        (BASE + '[grid]\ndevice = ["sim:nogpu"]\n', 5, "grid.device", "nogpu"),
        (BASE + '[grid]\npartitioner = ["fixed:a=3"]\n', 5, "grid.partitioner", "no such option"),
        (BASE + "[girds]\nseed = [1]\n", 4, "girds", "Did you mean 'grid'?"),
        ('scheduler = "nexus"\n' + BASE, 1, "scheduler", "Put it into [base]"),
        (BASE + "[[exclude]]\n[[exclude]]\nsede = 1\n", 4, "exclude", "is empty"),
        (BASE + "[[exclude]]\nseed = 1\n[[exclude]]\nsede = 1\n", 7, "exclude.sede", "seed"),
        (BASE + "[grid]\nseed = [1]\n[[exclude]]\nseed = 1\n", None, None, "no run is left"),
        (BASE + "[grid]\nburstiness = [1.0]\n", None, "burstiness", "needs a rate"),
        (BASE + "[exclude]\nseed = 1\n", 4, "exclude", "must be tables"),
    ],
)  # fmt: skip
def test_mistakes_are_located(spec, text: str, line: int | None, field: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        load_sweep(spec(text))
    error = caught.value
    assert (error.line, error.field) == (line, field), str(error)
    assert sentence in str(error)
    assert "s.toml" in str(error)
