"""Event tables that do not fit together: the first row that cannot be is named, with its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nexusbench.core.errors import InputError
from nexusbench.core.events import EventLog
from nexusbench.metrics.run_events import RunEvents
from nexusbench.results.reader import RunReader
from nexusbench.results.store import RunWriter
from tests.examples import sample
from tests.unit.manifests import manifest

REQUESTS: dict[str, list[Any]] = {
    "request": [0, 1], "id": ["a", "b"], "tenant": ["", ""], "arrival": [0, 5],
    "prompt_tokens": [10, 20], "output_tokens": [2, 2], "max_tokens": [2, 4],
}  # fmt: skip


def fill(log: EventLog, first: int) -> None:
    for step in range(first, first + 3):
        log.tables["submitted"].row(step, step * 10, 0, 8, 1, 0, 0, 0, -1, 3, 1, 0, 0)
        log.tables["chunk"].row(step, 0, 4, 0)
        log.tables["step_done"].row(step, step * 10 + 5, 5, 1)
        log.tables["token"].row(0)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A complete run of two parts, with the digest of its log."""
    writer, log = RunWriter(tmp_path, manifest(), REQUESTS), EventLog()
    for request in (0, 1):
        log.tables["arrived"].row(request, 5 * request, 10, 2)
    fill(log, 0)
    writer.flush(log, [[8]])
    fill(log, 3)
    for request in (0, 1):
        log.tables["ended"].row(request, 60 + request, 0, log.code("length"))
        log.tables["preempted"].row(request, 40, 0, 1)
        log.tables["moved"].row(request, 40, 41, 0, 0, 1)
    log.tables["repartitioned"].row(40, 0, 0)
    writer.flush(log, [[8]])
    writer.finish("complete", {"x": 1}, event_digest=log.digest())
    return writer.path


def rewrite(run: Path, **changes: Any) -> None:
    path = run / "manifest.json"
    path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **changes}))


def edit(file: Path, change: Callable[[dict[str, list[Any]]], None]) -> None:
    table = pq.read_table(file, partitioning=None)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    change(columns)
    kinds = {field.name: field.type for field in table.schema}
    pq.write_table(pa.table({n: pa.array(v, kinds[n]) for n, v in columns.items()}), file)


# Part, column, row, new value, and what is said of it. All the rest of the log stays as it was.
ROWS = [
    ("submitted-00001", "time", 1, 29, "29 comes after 30"),
    ("step_done-00001", "time", 0, 1, "1 comes after 25"),
    ("ended-00001", "time", 1, 3, "3 comes after 60"),
    ("submitted-00001", "partition", 2, 1, "1 is not within 0..0"),
    ("submitted-00000", "split", 2, -2, "-2 is not within 0..0"),
    ("submitted-00001", "step", 1, 3, "3 is there a second time"),
    ("submitted-00001", "predicted", 1, -2, "-2 is not -1 or more"),
    ("submitted-00001", "kv_used", 1, -1, "-1 is not 0 or more"),
    ("step_done-00001", "step", 2, 9, "9 is not in event table 'submitted'"),
    ("chunk-00001", "step", 0, 9, "9 is not in event table 'submitted'"),
    ("chunk-00001", "request", 0, 2, "names a request that does not exist: 2 of 2"),
    ("token-00001", "request", 1, -1, "names a request that does not exist: -1 of 2"),
    ("arrived-00000", "request", 1, 0, "0 is there a second time"),
    ("ended-00001", "request", 1, 0, "0 is there a second time"),
    ("ended-00001", "outcome", 0, 4, "4 is not within 0..3"),
    ("ended-00001", "reason", 0, 1, "1 is not within 0..0"),
    ("preempted-00001", "kind", 0, 2, "2 is not within 0..1"),
    ("moved-00001", "target", 0, 1, "1 is not within 0..0"),
    ("repartitioned-00001", "split", 0, 7, "7 is not within 0..0"),
]


@pytest.mark.parametrize(("part", "column", "row", "value", "words"), sample(ROWS, 2))
def test_a_row_that_cannot_be_is_named(
    stored: Path, part: str, column: str, row: int, value: int, words: str
) -> None:
    def change(columns: dict[str, list[Any]]) -> None:
        columns[column][row] = value

    file = stored / "events" / f"{part}.parquet"
    edit(file, change)
    with pytest.raises(InputError, match="digest") as raised:
        RunEvents.from_reader(RunReader(stored))
    rewrite(stored, event_digest="")  # as a run that was killed has none
    with pytest.raises(InputError) as raised:
        RunEvents.from_reader(RunReader(stored))
    told = str(raised.value)
    assert told.startswith(f"{file}: field '{column}': event table '{part[:-6]}', row {row}: ")
    assert words in told
    assert raised.value.exit_code == 2


def test_a_change_that_still_fits_is_told_by_the_digest(stored: Path) -> None:
    RunReader(stored).verify()
    edit(stored / "events" / "step_done-00001.parquet", lambda c: c["solo"].__setitem__(1, 6))
    for read in (RunReader(stored).summary, RunReader(stored).events):
        with pytest.raises(InputError, match=r"manifest\.json: field 'event_digest': .*restore it"):
            read()
    rewrite(stored, event_digest="")
    RunEvents.from_reader(RunReader(stored))


def test_strings_are_part_of_what_the_digest_covers(stored: Path) -> None:
    rewrite(stored, strings=["stop"])
    with pytest.raises(InputError, match="strings"):
        RunReader(stored).verify()


@pytest.mark.parametrize(
    ("kind", "words"), [(pa.float64(), "holds double"), (pa.int32(), "holds int32"),
                        (pa.string(), "holds string")],
)  # fmt: skip
def test_a_column_of_another_kind_is_named(stored: Path, kind: pa.DataType, words: str) -> None:
    file = stored / "events" / "step_done-00001.parquet"
    table = pq.read_table(file, partitioning=None)
    at = table.column_names.index("time")
    pq.write_table(table.set_column(at, "time", table["time"].cast(kind)), file)
    with pytest.raises(InputError, match=rf"step_done-00001.*field 'time': {words}, not int64"):
        RunReader(stored).table("step_done")


def test_a_row_without_a_value_is_named(stored: Path) -> None:
    file = stored / "events" / "token-00001.parquet"
    edit(file, lambda columns: columns["request"].__setitem__(1, None))
    with pytest.raises(InputError, match="field 'request': row 1 has no value"):
        RunReader(stored).table("token")


@pytest.mark.parametrize("rows", [{"nonsense": 1}, {"token": -1}])
def test_parts_that_cannot_be_are_named(stored: Path, rows: dict[str, int]) -> None:
    rewrite(stored, parts=[rows])
    with pytest.raises(InputError, match=r"manifest\.json: field 'parts"):
        RunReader(stored)


def test_rows_that_no_file_has_ask_for_no_memory(stored: Path) -> None:
    rewrite(stored, parts=[{"token": 10**15}])
    with pytest.raises(InputError, match=r"holds 3 rows, the manifest says 1000000000000000"):
        RunReader(stored).table("token")


def test_only_the_last_part_of_a_run_that_was_cut_off_may_be_ahead(stored: Path) -> None:
    parts = msgspec.json.decode((stored / "manifest.json").read_bytes())["parts"]
    parts[1] |= {"token": 2, "step_done": 2}
    rewrite(stored, parts=parts, event_digest="")
    with pytest.raises(InputError, match="holds 3 rows, the manifest says 2"):
        RunReader(stored).table("token")
    rewrite(stored, status="running")
    assert len(RunReader(stored).table("token")["request"]) == 5
    assert RunEvents.from_reader(RunReader(stored)).num_output_tokens.tolist() == [5, 0]
    parts[0] |= {"token": 2}
    rewrite(stored, parts=parts)
    with pytest.raises(InputError, match=r"token-00000.*holds 3 rows, the manifest says 2"):
        RunReader(stored).table("token")
