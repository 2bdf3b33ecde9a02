"""The pytest plugin, in pytest runs of its own."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
PLUGIN = "nexusbench.gates.pytest_plugin"
SAVE = "--nexusbench-gate-save"
# Installed, it loads by its entry point; twice is not allowed.
LOAD = [] if entry_points(group="pytest11", name="nexusbench-gate") else ["-p", PLUGIN]
CI_PAGE = Path(__file__).parents[2] / "docs" / "ci.md"

NUMBERS = """
    def test_numbers(nexusbench_gate):
        times = VALUES
        nexusbench_gate.check({"step": times}, ["step:5%:0.1ms"], baseline="base.json", unit="ms")
"""


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*LOAD, "-rs", "-p", "no:cacheprovider", *arguments)


def numbers(pytester: pytest.Pytester, values: list[float]) -> None:
    pytester.makepyfile(test_it=NUMBERS.replace("VALUES", repr(values)))


def saved(pytester: pytest.Pytester, values: list[float]) -> None:
    numbers(pytester, values)
    run(pytester, SAVE).assert_outcomes(skipped=1)


@pytest.mark.slow
def test_numbers(pytester: pytest.Pytester) -> None:
    saved(pytester, [10, 10.1, 10.2, 10.3, 10.4])
    run(pytester).assert_outcomes(passed=1)
    kept = json.loads((pytester.path / "base.json").read_text())
    assert list(kept["series"]) == ["test_it.py::test_numbers"]
    numbers(pytester, [12, 12.1, 12.2, 12.3, 12.4])
    done = run(pytester)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        ["*gate: fail*", "*step +19.*5%:0.1ms*beyond the rule*", f"*pytest {SAVE}*"]
    )
    numbers(pytester, [10.3, 10.4, 10.5, 10.6, 10.7])
    run(pytester).assert_outcomes(passed=1)
    numbers(pytester, [10.45, 10.5, 10.6, 10.7, 10.8])
    run(pytester).assert_outcomes(passed=1, warnings=1)


def test_no_baseline_fails(pytester: pytest.Pytester) -> None:
    numbers(pytester, [1.0])
    done = run(pytester)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines([f"*there is no baseline*base.json. Make it: pytest {SAVE}*"])


@pytest.mark.slow
def test_what_cannot_be_told_is_skipped(pytester: pytest.Pytester) -> None:
    saved(pytester, [1.0, 2.0])
    done = run(pytester)
    done.assert_outcomes(skipped=1)
    done.stdout.fnmatch_lines(["*inconclusive*"])
    path = pytester.path / "base.json"
    path.write_text(path.read_text().replace('"cpu": "', '"cpu": "another '))
    done = run(pytester)
    done.assert_outcomes(skipped=1)
    done.stdout.fnmatch_lines(["*incompatible-env*"])


def test_broken_baseline(pytester: pytest.Pytester) -> None:
    numbers(pytester, [1.0])
    (pytester.path / "base.json").write_text("{")
    done = run(pytester)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*base.json: not a baseline*"])


def test_rerun(pytester: pytest.Pytester) -> None:
    saved(pytester, [10, 10.1, 10.2, 10.3, 10.4])
    pytester.makepyfile(
        test_it="""
        SLOW, FAST = [12, 12.1, 12.2, 12.3, 12.4], [10, 10.1, 10.2, 10.3, 10.4]

        def test_numbers(nexusbench_gate):
            report = nexusbench_gate.check(
                {"step": SLOW}, ["step:5%"], baseline="base.json", unit="ms",
                rerun=lambda: {"step": FAST},
            )
            assert report.verdict == "warn"
        """
    )
    run(pytester).assert_outcomes(passed=1, warnings=1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ('{"a": 1.0}, baseline="b.json"', "rules are missing for a"),
        ('{"a": []}, ["a:1%"], baseline="b.json"', "at least one"),
        ('{"a": [1], "b": [1, 2]}, ["a:1%"], baseline="b.json"', "as many numbers"),
        ('{"a": [float("nan")]}, ["a:1%"], baseline="b.json"', "not finite"),
        ('{"a": 1}, ["a:1%"], baseline="b.json", better="up"', "better is 'lower' or 'higher'"),
        ('{"a": 1}, ["b:1%"], baseline="b.json"', "no metric 'b'"),
    ],
)
@pytest.mark.slow
def test_wrong_calls(pytester: pytest.Pytester, call: str, words: str) -> None:
    pytester.makepyfile(f"def test_it(nexusbench_gate):\n    nexusbench_gate.check({call})\n")
    done = run(pytester, SAVE)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines([f"*{words}*"])


@pytest.mark.slow
def test_the_documented_example(pytester: pytest.Pytester) -> None:
    (code,) = [
        block.split("```")[0]
        for block in CI_PAGE.read_text().split("```python\n")[1:]
        if "nexusbench_gate" in block
    ]
    trace = '{"timestamp": 0, "input_length": 64, "output_length": 8}\n' * 20
    (pytester.path / "trace.jsonl").write_text(trace)
    pytester.makepyfile(test_it=code)
    (pytester.path / "baselines").mkdir()
    tests = code.count("def test_")
    run(pytester, SAVE).assert_outcomes(skipped=tests)
    # Not the one that measures times: here only what is deterministic may decide.
    run(pytester, "-k", "simulated").assert_outcomes(passed=1, deselected=tests - 1)
