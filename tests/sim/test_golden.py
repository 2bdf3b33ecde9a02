"""Event logs are the same on every machine and Python (I6), and change only on purpose."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.sim.golden_runs import RUNS, committed, run

HINT = "If the change is meant: python -m tests.sim.refresh_golden, and say why in docs/log.md"


@pytest.mark.parametrize("name", RUNS)
def test_golden_event_log(name):
    assert run(name) == committed()[name], HINT


def test_every_golden_value_has_a_run():
    assert list(committed()) == list(RUNS)


@pytest.mark.slow
def test_the_log_does_not_depend_on_hash_randomisation():
    code = (
        "from tests.sim.golden_runs import run; print(run('nexus, both modes, reserve')['digest'])"
    )
    digests = set()
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    assert digests == {committed()["nexus, both modes, reserve"]["digest"]}
