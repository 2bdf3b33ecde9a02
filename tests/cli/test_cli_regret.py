"""``nexusbench regret``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Outcome

from tests.sim.profiles import make_profile

Call = Callable[..., Outcome]


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[object, ...]:
    path = tmp_path / "busy.jsonl"
    rows = [{"timestamp": 90 * i, "input_length": 900, "output_length": 60} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("regret", path, "--device", "sim:l20", "--model", "qwen2.5-3b", "--sample", 20)


def test_every_belief_of_a_profile_beside_the_oracle(
    call: Call, arguments: tuple[object, ...], tmp_path: Path
) -> None:
    make_profile(tmp_path / "p")
    done = call(*arguments, "--profile", tmp_path / "p")
    assert done.code == 0, done.err
    for label in ("roofline unfitted", "nexus fitted", "oracle", "fixed", "SIMULATED"):
        assert label in done.out
    assert "SIMULATED" not in done.err


def test_one_document(call: Call, arguments: tuple[object, ...]) -> None:
    done = call(*arguments, "--cost-model", "roofline", "--partitioner", "nexus", "--json")
    document = json.loads(done.out)
    assert document["simulated"] is True
    assert [row["label"] for row in document["rows"]] == ["roofline", "oracle"]
    assert document["rows"][1]["mape_alone"] is None


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--cost-model", "nexus"), "--profile"),
        (("--cost-model", "nxus"), "Did you mean 'nexus'"),
        (("--partitioner", "nexsus"), "Did you mean 'nexus'"),
        (("--profile", "nowhere"), "no such profile"),
        (("--sample", "0"), "sample"),
    ],
)
def test_refusals(
    call: Call, arguments: tuple[object, ...], flags: tuple[str, ...], sentence: str
) -> None:
    done = call(*arguments, *flags)
    assert done.code == 2
    assert sentence in done.err
    assert done.out == ""
