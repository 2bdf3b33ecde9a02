"""The baseline file: round trips, readable diffs, and every way in which it can be broken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.core.errors import BaselineError, UsageError
from nexusbench.core.specs import GpuSpec
from nexusbench.gates.baseline import (
    appended,
    encode_baseline,
    load_baseline,
    merged,
    rounded,
    save_baseline,
)
from nexusbench.gates.environment import environment_of
from nexusbench.gates.series import RunSeries
from nexusbench.gates.spec import load_spec
from nexusbench.gates.verdicts import TOLERANCE
from nexusbench.results.reader import RunReader
from nexusbench.schedulers.base import schedulers
from tests.gates.made_up import exact, measured, samples, series

HOSTILE = 'a|b `c` <img src=x onerror=alert(1)> "q" \\ \x00\x1b[31m\n]]> 😀 @all'


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "b.json"
    found = {"s": exact(1.5, 2.5, logs=["x", "y"]), HOSTILE: measured(1, None, 3)}
    assert save_baseline(path, found)
    assert load_baseline(path) == found
    assert not save_baseline(path, found), "an unchanged file is not written again"


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=4))
def test_rounding_is_below_the_tolerance(values: list[float]) -> None:
    kept = rounded(exact(*values)).metrics["x"].known
    for before, after in zip(values, kept, strict=True):
        assert abs(before - after) <= TOLERANCE * abs(before) / 10
    assert rounded(rounded(exact(*values))) == rounded(exact(*values))


def test_diffs_read_well() -> None:
    """Sorted, a line per metric, so that one changed number is one changed line."""
    old = {"b": exact(1), "a": series({"y": samples([1, 2]), "x": samples([3, 4])})}
    before = encode_baseline(old).decode().splitlines()
    old["a"].metrics["x"].values[1] = 4.5
    after = encode_baseline(old).decode().splitlines()
    changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert len(changed) == 1
    line = changed[0][1].strip().rstrip(",")
    assert line == '"x": {"unit": "ms", "better": "lower", "exact": false, "values": [3.0, 4.5]}'
    assert [before.index(f'    "{name}": {{') for name in "ab"] == sorted(
        before.index(f'    "{name}": {{') for name in "ab"
    )


def document() -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(encode_baseline({"s": exact(1, logs=["x"])}))
    return decoded


def broken() -> dict[str, tuple[str, str]]:
    """What a broken file holds, and the words that must name it."""
    found = {
        "empty": ("", "not a baseline"),
        "cut": (encode_baseline({"s": exact(1)}).decode()[:100], "not a baseline"),
        "not utf-8": ("\udcff", "not a baseline"),
        "another document": ('{"a": 1}', "field 'kind'"),
        "a list": ("[1]", "not a baseline"),
        "a summary": ('{"schema": 1, "metrics": {}}', "field 'kind'"),
    }
    changes: dict[str, tuple[list[Any], Any, str]] = {
        "newer": (["schema"], 99, "newer nexusbench (schema 99, this one reads 1)"),
        "text": (["series", "s", "metrics", "x", "values"], ["1"], "values"),
        "no unit": (["series", "s", "metrics", "x", "unit"], ..., "unit"),
        "better": (["series", "s", "metrics", "x", "better"], "sideways", "better"),
        "unknown": (["series", "s", "colour"], "red", "colour"),
        "seed": (["series", "s", "runs", 0, "seed"], "zero", "seed"),
        "lengths": (["series", "s", "metrics", "x", "values"], [1, 2],
                    "field 'series.s.metrics.x.values': 2 values for 1 runs"),
    }  # fmt: skip
    for name, (path, value, words) in changes.items():
        changed: Any = document()
        place = changed
        for key in path[:-1]:
            place = place[key]
        if value is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        found[name] = (json.dumps(changed), words)
    return found


@pytest.mark.parametrize("name", broken())
def test_broken_files_are_named(name: str, tmp_path: Path) -> None:
    text, words = broken()[name]
    path = tmp_path / "b.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(BaselineError, match=re.escape(words)) as caught:
        load_baseline(path)
    assert caught.value.exit_code == 5
    assert str(caught.value).startswith(str(path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="gate baseline save RUN"):
        load_baseline(tmp_path / "none.json")
    with pytest.raises(BaselineError, match="cannot be read"):
        load_baseline(tmp_path)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        save_baseline(tmp_path / "file" / "b.json", {"s": exact(1)})


def test_merge_says_what_changes() -> None:
    old = {"a": exact(10), "b": exact(1), "c": exact(5)}
    new: dict[str, RunSeries] = {"a": exact(11), "c": exact(5.0000000001), "d": exact(1)}
    kept, lines = merged(old, new, keep_others=True)
    assert sorted(kept) == ["a", "b", "c", "d"]
    assert lines == ["changed  a", "  x: 10 -> 11 ms (+10.00 %)", "new      d"]
    only, lines = merged(old, new, keep_others=False)
    assert sorted(only) == ["a", "c", "d"]
    assert lines[-1] == "removed  b"
    _, lines = merged({"a": exact(0)}, {"a": series({"y": samples([1])})}, keep_others=True)
    assert lines == ["changed  a", "  x: removed", "  y: added"]


def test_append_adds_measured_runs() -> None:
    found, lines = appended({"a": measured(1, 2)}, {"a": measured(3, 4), "b": exact(1)})
    assert found["a"].metrics["x"].values == [1, 2, 3, 4]
    assert len(found["a"].runs) == 4
    assert lines == ["added    2 to 2 runs of a", "new      b"]


def test_append_adds_deterministic_runs_once() -> None:
    found, _ = appended({"a": exact(1, 2)}, {"a": exact(2, 3, seeds=[1, 2])})
    assert found["a"].metrics["x"].values == [1, 2, 3]
    assert [run.seed for run in found["a"].runs] == [0, 1, 2]


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (exact(2), "seed 0 differs in deterministic metrics"),
        (exact(1, model="other"), "model: m -> other"),
        (exact(1, machine={"cpu": "b"}), "cpu: a CPU -> b"),
        (series({"y": samples([1], exact=True)}), "metrics: x -> y"),
    ],
)
def test_append_refuses_what_does_not_belong(new: RunSeries, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        appended({"a": exact(1)}, {"a": new})


def test_words_about_constants_leave_a_baseline_what_it_is() -> None:
    run = RunReader(Path(__file__).parents[1] / "data" / "schema-1" / "engine")
    config, resolved = run.manifest.config, run.manifest.resolved
    gpu = resolved.gpu

    def device(gpu: GpuSpec) -> object:
        changed = msgspec.structs.replace(resolved, gpu=gpu)
        return environment_of(config, changed, True)["device_sha256"]

    reworded = msgspec.structs.replace(gpu, sources={}, ranges={"turn_taking": (0.1, 0.2)})
    sim = msgspec.structs.replace(gpu.sim, turn_taking=0.5)
    assert device(reworded) == device(gpu) != device(msgspec.structs.replace(gpu, sim=sim))


def test_the_projects_own_baseline_covers_every_scheduler() -> None:
    """What .ci/run checks; a new scheduler needs the update that docs/ci.md names."""
    folder = Path(__file__).parents[2] / "results" / "baselines"
    spec = load_spec(folder / "shipped.toml")
    assert spec.baseline == folder / "shipped.json"
    stored = load_baseline(spec.baseline)
    covered = {(s.environment["trace"], s.environment["scheduler"]) for s in stored.values()}
    traces = ("mixed", "ldc", "arxiv", "sharegpt")
    assert covered == {(trace, name) for trace in traces for name in schedulers.names()}
    assert len(spec.configs) == len(stored)
    wanted = {rule.metric for rule in spec.rules}
    counts = {"offered", "finished_work", "e2e.n", "tbt.n", "ttft.n"}  # kept whatever the rules are
    assert all(set(series.metrics) == wanted | counts for series in stored.values())
    assert all(s.exact for series in stored.values() for s in series.metrics.values())
