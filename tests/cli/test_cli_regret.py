"""``nexusbench regret``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import Outcome

from nexusbench.cli import _regretting
from nexusbench.core.errors import Interrupted
from tests.examples import slow
from tests.sim.profiles import make_profile

Call = Callable[..., Outcome]


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[object, ...]:
    path = tmp_path / "busy.jsonl"
    rows = [{"timestamp": 90 * i, "input_length": 900, "output_length": 60} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("regret", path, "--device", "sim:l20", "--model", "qwen2.5-3b", "--sample", 20)


@pytest.mark.slow
def test_every_belief_of_a_profile_beside_the_oracle(
    call: Call, arguments: tuple[object, ...], tmp_path: Path
) -> None:
    make_profile(tmp_path / "p")
    done = call(*arguments, "--profile", tmp_path / "p")
    assert done.code == 0, done.err
    for label in ("roofline unfitted", "nexus fitted", "oracle", "fixed", "SIMULATED"):
        assert label in done.out
    assert "SIMULATED" not in done.err


@pytest.mark.slow
def test_one_document(call: Call, arguments: tuple[object, ...]) -> None:
    done = call(*arguments, "--cost-model", "roofline", "--partitioner", "nexus", "--json")
    document = json.loads(done.out)
    assert document["simulated"] is True
    assert [row["label"] for row in document["rows"]] == ["roofline", "oracle"]
    assert document["config"]["cost_model"] == "roofline"
    assert document["rows"][0]["config"]["cost_model"] == "roofline"
    assert document["resolved"]["device"] == "sim:l20"
    assert document["rows"][1]["mape_alone"] is None


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--cost-model", "nexus"), "--profile"),
        (("--cost-model", "nxus"), "Did you mean 'nexus'"),
        (("--partitioner", "nexsus"), "Did you mean 'nexus'"),
        (("--profile", "nowhere"), "no such profile"),
        (("--sample", "0"), "sample"),
        (("--force-profile",), "goes with --profile"),
    ],
)
def test_refusals(
    call: Call, arguments: tuple[object, ...], flags: tuple[str, ...], sentence: str
) -> None:
    done = call(*arguments, *flags)
    assert done.code == 2
    assert sentence in done.err
    assert done.out == ""


@pytest.mark.slow
def test_a_profile_of_something_else_is_refused_before_anything_is_served(
    call: Call, arguments: tuple[object, ...], tmp_path: Path
) -> None:
    make_profile(tmp_path / "p", gpu="l40s")
    done = call(*arguments, "--profile", "p")
    assert (done.code, done.out) == (2, "")
    assert "it is of sim:l40s" in done.err
    assert "requests" not in done.err
    make_profile(tmp_path / "own")
    done = call(*arguments[:2], "--device", "sim:own", *arguments[4:], "--profile", "own")
    assert "scored against itself" in done.err
    assert "requests" not in done.err


@pytest.mark.slow
def test_an_interrupted_comparison_shows_what_is_finished(
    call: Call, arguments: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged_run, calls = _regretting.judged_run, []

    def interrupted(*positional: Any, **named: Any) -> Any:
        calls.append(positional)
        if len(calls) == 2:
            raise Interrupted("interrupted at 3 s of the run")
        return judged_run(*positional, **named)

    monkeypatch.setattr(_regretting, "judged_run", interrupted)
    done = call(*arguments, "--partitioner", "nexus")
    assert done.code == 130
    assert re.search(r"roofline +\d", done.out)
    assert "WARNING: did not run to the end: oracle" in done.out
    assert "interrupted at 3 s" in done.err
    calls.clear()
    done = call(*arguments, "--partitioner", "nexus", "--json")
    assert (done.code, json.loads(done.out)["not_run"]) == (130, ["oracle"])


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, *slow(100)])
def test_header_labels_and_width(
    call: Call, arguments: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = call(*arguments, "--partitioner", "nexus:beta=2", "--seed", 1)
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= columns
    assert "sim:l20: NVIDIA L20, 92 SMs" in done.out
    assert "max_num_batched_tokens 2,048" in done.out
    assert "nexus:beta=2 roofline" in done.out


def test_a_belief_that_nobody_asks(call: Call, arguments: tuple[object, ...]) -> None:
    done = call(*arguments, "--partitioner", "fixed", "--cost-model", "roofline")
    assert "--cost-model has no effect: no partitioner here asks a belief" in done.out


def test_a_real_device_is_refused_before_it_is_opened(call: Call, trace: Path) -> None:
    """Whose weights, or whose GPU, may not even be there."""
    done = call("regret", trace, "--device", "cpu")
    assert (done.code, done.out) == (2, "")
    assert "cpu is not simulated" in done.err
    assert "Use --device sim:GPU" in done.err
