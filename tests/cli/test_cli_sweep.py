"""``nexusbench sweep``: kills, failures, dry runs, a Ray cluster that loses a worker."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commandline import Outcome, start, write_trace

from nexusbench.core.errors import NexusbenchError, PlanRefused
from nexusbench.experiments import cluster, pool
from nexusbench.experiments.cells import SweepCell, run_cell
from nexusbench.experiments.store import Store
from nexusbench.experiments.sweep import plan_sweep, run_sweep
from nexusbench.experiments.sweep_spec import load_sweep
from nexusbench.experiments.sweep_table import sweep_table

Call = Callable[..., Outcome]
SPEC = """
[base]
trace = "t.jsonl"
device = "sim:l20"
model = "qwen2.5-3b"
[grid]
scheduler = ["nexus", "vllm"]
seed = [0, 1]
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    write_trace(tmp_path / "t.jsonl", 6, output=2)
    (tmp_path / "s.toml").write_text(SPEC)
    return tmp_path / "s.toml"


def big(folder: Path) -> Path:
    """200 cells: 4 x 5 x 10."""
    folder.mkdir()
    write_trace(folder / "t.jsonl", 5, output=2)
    rates = ", ".join(str(rate) for rate in range(1, 6))
    text = SPEC.replace('"vllm"]', '"vllm", "sglang", "nexus:order=fcfs"]')
    text = text.replace("[0, 1]", f'"0..9"\nrate = [{rates}]')
    (folder / "s.toml").write_text(text)
    return folder / "s.toml"


def cells_kept(folder: Path) -> int:
    return len(list((folder / "results" / "cells").glob("*/*.json")))


def sweep(folder: Path) -> str:
    """The sweep to its end; its stderr. Slow machines may take their time."""
    process = start("sweep", "s.toml", "--jobs", 2, cwd=folder)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return err


def kill_at(folder: Path, count: int) -> None:
    """Start the sweep and kill it, as the system would, once ``count`` cells are kept."""
    process = start("sweep", "s.toml", "--jobs", 2, cwd=folder, start_new_session=True)
    while cells_kept(folder) < count:
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate(timeout=20)


@pytest.mark.slow
def test_200_cells_killed_twice_equal_an_uninterrupted_sweep(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    big(whole)
    big(broken)
    sweep(whole)
    kill_at(broken, 40)
    after_one = cells_kept(broken)
    kill_at(broken, after_one + 60)
    assert 100 <= cells_kept(broken) < 200
    assert "200 cells" in sweep(broken)
    whole_file, broken_file = (f / "results" / "s.parquet" for f in (whole, broken))
    assert whole_file.read_bytes() == broken_file.read_bytes()
    first = pq.read_table(whole_file)
    assert first.num_rows == 200
    assert len(set(first["digest"].to_pylist())) > 30


def test_a_row_per_cell_with_every_metric(call: Call, spec: Path) -> None:
    done = call("sweep", spec, "--jobs", 1, "-o", "out/table.parquet")
    assert done.code == 0, done.err
    assert "SIMULATED" in done.out
    assert "out/table.parquet" in done.out
    table = pq.read_table("out/table.parquet")
    assert table.num_rows == 4
    assert table["scheduler"].to_pylist() == ["nexus", "nexus", "vllm", "vllm"]
    assert table["status"].to_pylist() == ["ok"] * 4
    assert all(len(digest) == 64 for digest in table["digest"].to_pylist())
    assert {"ttft.p99", "tbt.mean", "goodput", "kv_use_peak", "slo"} <= set(table.schema.names)
    assert table.schema.field("ttft.p99").metadata[b"unit"] == b"ms"


@pytest.mark.slow
def test_what_is_kept_is_not_run_again(call: Call, spec: Path) -> None:
    dry = json.loads(call("sweep", spec, "--dry-run", "--json").out)
    assert (dry["to_run"], dry["estimated_seconds"]) == (4, None)
    call("sweep", spec, "--jobs", 1)
    bytes_before = Path("results/s.parquet").read_bytes()
    assert "about" not in call("sweep", spec, "--dry-run").out
    spec.write_text(SPEC.replace("[0, 1]", "[0, 1, 2]"))
    dry = json.loads(call("sweep", spec, "--dry-run", "--json").out)
    assert dry["to_run"] == 2
    assert dry["estimated_seconds"] > 0
    spec.write_text(SPEC)
    again = call("sweep", spec, "--jobs", 1)
    assert "4 kept, 0 to run" in again.err
    assert Path("results/s.parquet").read_bytes() == bytes_before
    assert "4 cells, 4 to run" in call("sweep", spec, "--fresh", "--jobs", 1).err


@pytest.mark.slow
def test_another_trace_of_the_same_name_is_another_cell(call: Call, spec: Path) -> None:
    call("sweep", spec, "--jobs", 1)
    write_trace(spec.parent / "t.jsonl", 7, output=2)
    assert json.loads(call("sweep", spec, "--dry-run", "--json").out)["to_run"] == 4


@pytest.mark.slow
def test_damaged_cells_are_run_again(call: Call, spec: Path) -> None:
    call("sweep", spec, "--jobs", 1)
    one, two, *_ = sorted(Path("results/cells").glob("*/*.json"))
    one.write_text(one.read_text()[:100])
    two.write_text("")
    assert "2 kept, 2 to run" in call("sweep", spec, "--jobs", 1).err


@pytest.mark.slow
def test_failures_are_rows_and_exit_1(call: Call, spec: Path) -> None:
    spec.write_text(SPEC + 'partitioner = ["default", "nexus"]\n')
    done = call("sweep", spec, "--jobs", 1)
    assert done.code == 1
    assert "cannot serve scheduler 'vllm'" in done.err
    table = pq.read_table("results/s.parquet").to_pylist()
    bad = [row for row in table if row["status"] == "failed"]
    assert [(row["scheduler"], row["partitioner"]) for row in bad] == [("vllm", "nexus")] * 2
    assert all("cannot serve" in row["error"] and row["ttft.mean"] is None for row in bad)
    again = call("sweep", spec, "--jobs", 1, "--json")
    assert "6 kept, 2 to run" in again.err
    assert [c["status"] for c in json.loads(again.out)["cells"]].count("failed") == 2


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--jobs", "0"), "--jobs"),
        (("--ray", "127.0.0.1:1"), "nothing answers there"),
        (("-o", "/proc/none/x.parquet"), "/proc/none: cannot be made"),
    ],
)
@pytest.mark.slow
def test_refusals(call: Call, spec: Path, flags: tuple[str, ...], sentence: str) -> None:
    if "--ray" in flags:
        pytest.importorskip("ray", reason="Ray is an extra: pip install 'nexusbench[ray]'")
    done = call("sweep", spec, *flags)
    assert done.code == 2
    assert sentence in done.err
    assert done.out == ""


def test_a_missing_spec(call: Call) -> None:
    done = call("sweep", "none.toml")
    assert done.code == 2
    assert done.err.startswith("error: none.toml: no such file")


def dies_once(item: tuple[str, int]) -> int:
    folder, number = item
    mark = Path(folder) / str(number)
    if number % 3 == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * number


def dies_always(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuses(number: int) -> int:
    raise PlanRefused("I5", "mine", f"took {number}")


@pytest.mark.slow
def test_errors_of_workers_come_back_as_they_are() -> None:
    with pytest.raises(NexusbenchError, match="I5: policy 'mine' took"):
        list(pool.run_all(refuses, [1, 2], 2))


@pytest.mark.slow
def test_workers_that_die_are_replaced(tmp_path: Path) -> None:
    items = [(str(tmp_path), number) for number in range(6)]
    assert dict(pool.run_all(dies_once, items, 2)) == {n: 10 * n for n in range(6)}
    found: dict[int, Any] = dict(pool.run_all(dies_always, [0, 1, 2, 3], 2))
    assert isinstance(found[1], pool.Lost)
    assert found[3] == 3


def cell_that_loses_its_worker(config: Any) -> SweepCell:
    """Kills its own Ray worker in the middle of the sweep, once."""
    mark = Path(config.trace).parent / "killed"
    if config.seed == 3 and not mark.exists():
        mark.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return run_cell(config)


@pytest.mark.slow
def test_a_ray_cluster_loses_a_worker_and_nothing_else(spec: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'nexusbench[ray]'")
    spec.write_text(SPEC.replace("[0, 1]", '"0..5"'))
    sweep = load_sweep(spec)
    alone = Store(tmp_path / "alone", ".json")
    here = dict(run_sweep(plan_sweep(sweep, alone), alone, jobs=1))
    # A real cluster of this machine with two workers; what the sweep shuts down is its connection.
    head = ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(_paths())}},
    )  # fmt: skip
    connect, cluster._connect = cluster._connect, lambda address: ray
    try:
        store = Store(tmp_path / "cells", ".json")
        plan = plan_sweep(sweep, store)
        function = cell_that_loses_its_worker
        there = dict(run_sweep(plan, store, jobs=1, ray=str(head), function=function))
    finally:
        cluster._connect = connect
        ray.shutdown()
    assert (tmp_path / "killed").exists()
    assert sorted(there) == list(range(12))
    assert sweep_table(sweep, plan.keys, there).equals(sweep_table(sweep, plan.keys, here))
    assert not plan_sweep(sweep, store).todo


def _paths() -> list[str]:
    return [str(Path(__file__).parent), str(Path(__file__).parents[2])]


@pytest.mark.slow
def test_the_table_keeps_to_the_terminal(
    call: Call, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = call("sweep", spec, "--jobs", 1)
    assert done.code == 0, done.err
    assert "TTFT mean, ms" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
