"""Run folders: what is written can be read back, also after a kill, and damage is named."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from nexusbench.core.errors import InputError, NexusbenchError, UsageError
from nexusbench.core.events import SCHEMA, EventLog, RunFacts
from nexusbench.metrics.run_events import RunEvents
from nexusbench.metrics.summary import summarise
from nexusbench.results import store
from nexusbench.results.manifest import SCHEMA_VERSION, git_state
from nexusbench.results.reader import RunReader, list_runs
from nexusbench.results.store import RunWriter
from tests.examples import slow
from tests.unit.manifests import RESOLVED, STORED, manifest

REQUESTS = {
    "request": [0, 1], "id": ["a", "b"], "tenant": ["", "x"], "arrival": [0, 5],
    "prompt_tokens": [10, 20], "output_tokens": [2, 2], "max_tokens": [2, 4],
}  # fmt: skip


def serve(log: EventLog, first: int, count: int) -> None:
    """``count`` steps with a token each for request 0."""
    for step in range(first, first + count):
        log.tables["submitted"].row(step, step * 10, 0, 8, 1, 0, 0, 0, -1, 3, 1, 0, 0)
        log.tables["step_done"].row(step, step * 10 + 5, 5, 1)
        log.tables["token"].row(0)


def test_round_trip(tmp_path: Path) -> None:
    whole, log = EventLog(), EventLog()
    writer = RunWriter(tmp_path / "new" / "results", manifest(), REQUESTS)
    for target in (whole, log):
        target.tables["arrived"].row(0, 0, 10, 2)
        serve(target, 0, 3)
    writer.flush(log, [[8]])
    assert len(log) == 0
    for target in (whole, log):
        serve(target, 3, 2)
        target.tables["ended"].row(0, 45, 0, target.code("length"))
    writer.flush(log)
    writer.flush(log)
    ended = msgspec.structs.replace(RESOLVED, decision_us={"n": 5})
    writer.finish(
        "complete", {"x": 1.5}, event_digest=log.digest(), invariants={"I1": "ok"},
        resolved=ended,
    )  # fmt: skip
    reader = RunReader(writer.path)
    assert (reader.status, reader.complete) == ("complete", True)
    assert reader.summary() == {"x": 1.5}
    assert reader.manifest.event_digest == whole.digest()
    assert reader.manifest.resolved == ended
    assert (reader.manifest.splits, reader.manifest.strings) == ([[8]], ["length"])
    assert len(reader.manifest.parts) == 2
    for name in SCHEMA:
        for column, values in reader.table(name).items():
            assert values.tolist() == whole.tables[name].columns[column].tolist()
    requests = reader.requests()
    assert {name: values.tolist() for name, values in requests.items()} == REQUESTS
    names = {path.name for path in (writer.path / "events").iterdir()}
    assert "token-00001.parquet" in names
    assert "preempted-00000.parquet" not in names
    known = {key: STORED[key] for key in STORED if key in RunFacts.__struct_fields__}
    facts = msgspec.convert(
        {**known, "simulated": True, "partitions": ["all"], "splits": [[8]]}, RunFacts
    )
    stored, held = RunEvents.from_reader(reader), RunEvents.from_log(whole, REQUESTS, facts)
    assert summarise(stored) == summarise(held)
    assert stored.facts == held.facts
    assert RunEvents.from_reader(reader, slo={"e2e": 1}, warmup_ns=3).facts.warmup_ns == 3


def test_a_tail_is_read_until_the_next_flush_takes_its_place(tmp_path: Path) -> None:
    """Rows that may yet get others before them are there for whoever reads meanwhile, once."""

    def steps() -> list[int]:
        return RunReader(writer.path).table("step_done")["step"].tolist()

    log, tail = EventLog(), EventLog()
    writer = RunWriter(tmp_path, manifest(), REQUESTS)
    serve(tail, 0, 3)
    writer.flush(log, tail=tail.tables)
    assert steps() == [0, 1, 2]
    assert len(tail.tables["step_done"]) == 3
    files = writer.path / "events"
    first = {file.name for file in files.iterdir()}
    serve(log, 0, 2)
    for count in range(2, 6):
        later = EventLog()
        serve(later, 2, count)
        writer.flush(log, tail=later.tables)
        assert steps() == list(range(2 + count))
        # Whoever has read an older manifest may still be reading.
        assert (first <= {file.name for file in files.iterdir()}) == (count < 4)
    serve(log, 2, 1)
    writer.flush(log)
    assert steps() == [0, 1, 2]
    whole = EventLog()
    serve(whole, 0, 3)
    assert log.digest() == whole.digest()
    writer.finish("complete")
    listed = {
        store.part_file(table, number)
        for number, rows in enumerate(RunReader(writer.path).manifest.parts)
        for table in rows
    }
    assert {file.name for file in files.iterdir()} == listed


def test_a_full_disk_keeps_the_tail_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, tail = EventLog(), EventLog()
    writer = RunWriter(tmp_path, manifest(), REQUESTS)
    serve(tail, 0, 3)
    writer.flush(log, tail=tail.tables)

    def fail(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    serve(log, 0, 2)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_write_all", fail)
        with pytest.raises(NexusbenchError, match="No space left"):
            writer.flush(log)
    assert RunReader(writer.path).table("step_done")["step"].tolist() == [0, 1, 2]
    writer.flush(log)
    assert RunReader(writer.path).table("step_done")["step"].tolist() == [0, 1]


def test_ids_are_unique_and_found_under_the_root(tmp_path: Path) -> None:
    paths = [RunWriter(tmp_path, manifest(), REQUESTS).path for _ in range(3)]
    assert [path.name for path in paths] == ["run", "run-2", "run-3"]
    assert list_runs(tmp_path) == ["run", "run-2", "run-3"]
    assert RunReader("run-2", tmp_path).manifest.run_id == "run-2"
    assert list_runs(tmp_path / "none") == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp"])
def test_run_names_stay_in_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="plain folder name"):
        RunWriter(tmp_path, msgspec.structs.replace(manifest(), run_id=name), REQUESTS)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_root_that_cannot_be_is_a_usage_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("here")
    root = tmp_path / "file" / below if below else tmp_path / "file"
    with pytest.raises(UsageError, match=r"cannot write results to .*file.*Choose a folder"):
        RunWriter(root, manifest(), REQUESTS)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_an_unwritable_root_is_a_usage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        RunWriter(tmp_path / "x", manifest(), REQUESTS)


def test_bad_request_columns_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NexusbenchError, match="request columns"):
        RunWriter(tmp_path, manifest(), {**REQUESTS, "id": ["a"]})
    assert list(tmp_path.iterdir()) == []


def fail_writing(monkeypatch: pytest.MonkeyPatch, fragment: str) -> None:
    """The disk is full as soon as a file whose name has ``fragment`` is to be put in place."""
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if fragment in Path(target).name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)


@pytest.mark.parametrize("fragment", ["submitted-00001", "token-00001", "manifest.json"])
def test_a_full_disk_keeps_earlier_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fragment: str
) -> None:
    writer, log = RunWriter(tmp_path, manifest(), REQUESTS), EventLog()
    serve(log, 0, 3)
    writer.flush(log)
    serve(log, 3, 4)
    with monkeypatch.context() as patch:
        fail_writing(patch, fragment)
        with pytest.raises(NexusbenchError, match=rf"{fragment}.*No space left.*kept") as raised:
            writer.flush(log)
        assert not isinstance(raised.value, UsageError)
    assert not list(tmp_path.rglob("*.tmp"))
    run = RunEvents.from_reader(RunReader(writer.path))
    assert run.num_output_tokens.tolist() == [3, 0]
    # With room again, the same rows go where they should have gone.
    writer.flush(log)
    assert RunReader(writer.path).table("submitted")["step"].tolist() == list(range(7))


def test_a_killed_run_is_readable_and_torn_files_are_ignored(tmp_path: Path) -> None:
    writer, log = RunWriter(tmp_path, manifest(), REQUESTS), EventLog()
    log.tables["arrived"].row(0, 0, 10, 2)
    serve(log, 0, 3)
    writer.flush(log, [[8]])
    events = writer.path / "events"
    # Killed in the middle of the next flush: one whole part, one torn, and a torn manifest.
    (events / "submitted-00001.parquet").write_bytes(
        (events / "submitted-00000.parquet").read_bytes()
    )
    (events / ".token-00001.parquet.tmp").write_bytes(b"PAR1 torn")
    (writer.path / ".manifest.json.tmp").write_text('{"run_id": "ru')
    reader = RunReader(writer.path)
    assert (reader.status, reader.complete) == ("killed or still running", False)
    assert reader.summary() is None
    run = RunEvents.from_reader(reader)
    metrics = summarise(run).metrics
    assert (metrics["unfinished"].value, metrics["offered"].value) == (1, 1)
    assert metrics["attainment"].value == 0
    assert metrics["tbt"].n == 2


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_results import REQUESTS, RunWriter, EventLog, manifest, serve
writer, log, step = RunWriter(Path(sys.argv[1]), manifest(), REQUESTS), EventLog(), 0
print("begun", flush=True)
while True:
    serve(log, step, 50)
    step += 50
    writer.flush(log)
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [*slow(0.01), 0.05, *slow(0.12)])
def test_kill_at_any_moment(tmp_path: Path, delay: float) -> None:
    here = Path(__file__)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), str(here.parent), str(here.parents[2])],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"begun\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    reader = RunReader("run", tmp_path)
    steps = 50 * len(reader.manifest.parts)
    assert reader.table("submitted")["step"].tolist() == list(range(steps))
    assert RunEvents.from_reader(reader).num_output_tokens.tolist() == [steps, 0]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A complete run of two parts."""
    writer, log = RunWriter(tmp_path, manifest(), REQUESTS), EventLog()
    for part in range(2):
        serve(log, 3 * part, 3)
        writer.flush(log, [[8]])
    writer.finish("complete", {"x": 1})
    return writer.path


@pytest.mark.parametrize(
    "file", ["events/token-00001.parquet", "events/submitted-00000.parquet", "requests.parquet"]
)
@pytest.mark.parametrize("damage", ["truncated", "garbled", "empty", "missing"])
def test_damage_is_named(stored: Path, file: str, damage: str) -> None:
    path = stored / file
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"truncated": data[: len(data) // 2], "garbled": b"x" * len(data), "empty": b""}[damage]
        )
    with pytest.raises(InputError) as raised:
        RunEvents.from_reader(RunReader(stored))
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_part_that_was_exchanged_is_named(stored: Path) -> None:
    import pyarrow.parquet as pq

    path = stored / "events" / "token-00001.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(InputError, match=r"token-00001.*2 rows, the manifest says 3"):
        RunReader(stored).table("token")
    path.write_bytes((stored / "events" / "step_done-00001.parquet").read_bytes())
    with pytest.raises(InputError, match=r"token-00001.*another version"):
        RunReader(stored).table("token")


def rewrite(run: Path, **changes: Any) -> None:
    path = run / "manifest.json"
    path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": SCHEMA_VERSION + 1, "other": 1}, "newer nexusbench.*Upgrade"),
        ({"other": 1}, "field 'other': .*not a key that is known here"),
        ({"status": "done"}, "field 'status'"),
        ({"parts": [{"token": "x"}]}, "field 'parts"),
        ({"schema": "x"}, "field 'schema'"),
    ],
)
def test_a_bad_manifest_is_named(stored: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(stored, **changes)
    with pytest.raises(InputError, match=rf"manifest\.json: .*{message}"):
        RunReader(stored)


def test_a_manifest_without_what_metrics_need_is_named(stored: Path) -> None:
    rewrite(stored, resolved={key: v for key, v in STORED.items() if key != "kv_blocks"})
    with pytest.raises(InputError, match=r"manifest\.json: field 'resolved\.kv_blocks': .*missing"):
        RunReader(stored)


def test_what_is_no_run_is_refused(stored: Path) -> None:
    root = stored.parent
    (stored / "manifest.json").write_text('{"schema": 1, "run_')
    with pytest.raises(InputError, match=r"manifest\.json: .*not valid JSON"):
        RunReader(stored)
    with pytest.raises(InputError, match="not a run folder: it has no manifest"):
        RunReader(root)
    with pytest.raises(InputError, match="a file, not a run folder"):
        RunReader(stored / "requests.parquet")
    with pytest.raises(InputError, match=r"no such run.*Did you mean 'run'"):
        RunReader("runn", root)
    with pytest.raises(InputError, match=r"no such run.*There are no runs under"):
        RunReader("run", root / "nothing")
    (stored / "summary.json").write_text("{")
    rewriteable = RunWriter(root, manifest(), REQUESTS)
    (rewriteable.path / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json"):
        RunReader(rewriteable.path).summary()


def test_an_unknown_table_is_refused(stored: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'token'"):
        RunReader(stored).table("tokens")


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True,
                   capture_output=True, env=environment)  # fmt: skip


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_state(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert git_state(package) == (None, None)
    git(tmp_path, "init", "-q")
    # Somebody else's repository that does not track the package says nothing about it.
    assert git_state(package) == (None, None)
    git(tmp_path, "add", ".")
    assert git_state(package) == (None, True)
    git(tmp_path, "commit", "-qm", "one")
    commit, dirty = git_state(package)
    assert commit is not None
    assert (len(commit), dirty) == (40, False)
    (tmp_path / "elsewhere").write_text("")
    assert git_state(package) == (commit, False)
    (package / "mine.py").write_text("")
    assert git_state(package) == (commit, True)


def test_the_manifest_says_what_made_it() -> None:
    made = manifest()
    assert made.numpy == np.__version__
    assert made.python == ".".join(map(str, sys.version_info[:3]))
    assert made.status == "running"
    assert made.schema == SCHEMA_VERSION


@pytest.mark.slow
def test_writing_and_reading_load_pyarrow_only_when_used() -> None:
    code = (
        "import sys, nexusbench.results.store, nexusbench.results.reader;"
        "sys.exit(any(name in sys.modules for name in ('pyarrow', 'numpy')))"
    )
    root = Path(store.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
