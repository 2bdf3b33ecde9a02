"""Inputs without an end, or far larger than they look: refused in little time and memory."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from nexusbench.cli._tracing import convert_file, make_file
from nexusbench.core.errors import InputError, NexusbenchError, UsageError
from nexusbench.experiments.keys import file_sha256
from nexusbench.workloads import convert as converting
from nexusbench.workloads import source
from nexusbench.workloads.source import read_source, stored_sha256
from nexusbench.workloads.trace import load_trace

LINE = b'{"timestamp": 0, "input_length": 600, "output_length": 5}\n'


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test can go beyond at once."""
    for name, value in (("_PIECE", 1 << 10), ("MAX_LINE", 4 << 10), ("MAX_TEXT", 64 << 10),
                        ("MAX_LINES", 2_000), ("MAX_STORED", 128 << 10)):  # fmt: skip
        monkeypatch.setattr(source, name, value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (LINE * 1_200, None, "text, the most that is read. Cut the file, or serve its beginning"),
        (LINE + b"\n" * 3_000, None, "over 2,000 lines"),
        (LINE * 3 + b"x" * 5_000, 4, "the line is longer than"),
        (LINE * 3 + b"x" * 5_000 + b"\n" + LINE, 4, "the line is longer than"),
        (LINE * 3 + b" " * 70_000, 4, "the line is longer than"),
    ],
)
def test_a_bound_is_named_before_the_file_is_in_memory(
    content: bytes, line: int | None, says: str, packed: bool, small: None, tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError) as caught:
        load_trace(path)
    assert says in str(caught.value)
    assert caught.value.line == line


def test_what_is_just_within_the_bounds_is_read(small: None, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(LINE * 1_100)
    assert len(load_trace(path).requests) == 1_100
    text = LINE + b" " * 4_000 + LINE + LINE.replace(b"\n", b"\r\n") + b"\n" * 300
    path.write_bytes(gzip.compress(text))
    assert read_source(path).text == text
    assert len(load_trace(path).requests) == 3
    path.write_bytes(LINE.replace(b"\n", b"\r") * 100)
    assert len(load_trace(path).requests) == 100


def test_text_is_checked_in_every_piece_and_across_them(small: None, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    long = LINE.replace(b"}", b', "tenant": "' + "\u6d4b".encode() * 700 + b'"}')
    path.write_bytes(long * 9)
    assert load_trace(path).requests[8].tenant == "\u6d4b" * 700
    for fault, says in ((b"\xff", "0xff is not UTF-8"), (b"\0", "NUL byte")):
        path.write_bytes(LINE * 50 + fault + LINE * 50)
        with pytest.raises(InputError, match=says) as caught:
            load_trace(path)
        assert caught.value.line == 51
    path.write_bytes(b"x" * 3_000 + b"\0" * 3_000)
    with pytest.raises(InputError, match="NUL byte"):
        load_trace(path)


def test_a_stored_file_of_any_size_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with path.open("wb") as file:
        file.truncate(10 << 30)  # takes no room on the disk
    with pytest.raises(InputError, match="10,737,418,240 bytes, and at most"):
        load_trace(path)


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "/dev/null", "loop", "folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "pipe":
        os.mkfifo(path)
    elif name == "loop":
        path.symlink_to(path)
    elif name == "folder":
        path.mkdir()
    for read in (load_trace, read_source, stored_sha256, file_sha256):
        with pytest.raises(InputError, match=r"pipe or a device|cannot (be )?read|folder|no file"):
            read(path)


def test_the_hash_is_that_of_the_stored_bytes(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(LINE * 9_000) + b"\0" * 9)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_source(path).sha256 == stored_sha256(path) == expected


@pytest.mark.parametrize("how", ["same", "dots", "symlink", "hard link"])
def test_convert_never_writes_over_what_it_reads(how: str, tmp_path: Path) -> None:
    path, other = tmp_path / "t.jsonl", tmp_path / "other.jsonl"
    path.write_bytes(LINE)
    if how == "symlink":
        other.symlink_to(path)
    elif how == "hard link":
        other.hardlink_to(path)
    elif how == "dots":
        (tmp_path / "a").mkdir()
        other = tmp_path / "a" / ".." / "t.jsonl"
    else:
        other = path
    for one, two in ((path, other), (other, path)):
        with pytest.raises(UsageError, match="the same file as"):
            convert_file(one, two, "azure")
    assert path.read_bytes() == LINE


def test_make_never_writes_over_its_spec_or_its_table(tmp_path: Path) -> None:
    spec, table = tmp_path / "s.toml", tmp_path / "lengths.csv"
    table.write_text("num_prefill_tokens,num_decode_tokens\n1,2\n")
    spec.write_text(
        '[workload]\nname = "w"\nnum_requests = 2\n[arrivals]\nprocess = "constant"\nrate = 1\n'
        '[[classes]]\nname = "a"\nlengths = { file = "lengths.csv" }\n'
    )
    before = spec.read_bytes(), table.read_bytes()
    for output in (spec, table, tmp_path / "x" / ".." / "lengths.csv"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match="the same file as"):
            make_file(spec, output, None)
    assert (spec.read_bytes(), table.read_bytes()) == before
    make_file(spec, tmp_path / "s.jsonl", None)
    assert len(load_trace(tmp_path / "s.jsonl").requests) == 2


def test_a_failed_conversion_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, good, target = tmp_path / "b.jsonl", tmp_path / "g.jsonl", tmp_path / "o.jsonl"
    broken.write_bytes(LINE + b"{\n")
    good.write_bytes(LINE)
    target.write_bytes(b"kept")
    with pytest.raises(InputError):
        convert_file(broken, target, "native")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    def stopped(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    for failing, error in ((full, NexusbenchError), (stopped, KeyboardInterrupt)):
        monkeypatch.setattr(Path, "replace", failing)
        with pytest.raises(error):
            convert_file(good, target, "native")
        monkeypatch.undo()
    assert target.read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.jsonl", "g.jsonl", "o.jsonl"]


def test_conversion_makes_up_a_bounded_number_of_hash_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converting, "_MOST_FRESH", 2)
    path = tmp_path / "t.jsonl"
    path.write_bytes(LINE.replace(b"600", b"1500"))
    with pytest.raises(UsageError, match="more than 2 of them"):
        convert_file(path, tmp_path / "o.jsonl", "mooncake")
