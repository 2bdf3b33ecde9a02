"""``--limit`` and ``--window`` read no more than they need, and never another trace than that."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InputError
from nexusbench.serving.assembly import shape_traffic
from nexusbench.workloads import source, transform
from nexusbench.workloads.base import Trace
from nexusbench.workloads.head import load_head
from nexusbench.workloads.readers.base import Parsed
from nexusbench.workloads.trace import load_trace
from tests.examples import sample

COUNT = 400


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first part of about ten lines."""
    monkeypatch.setattr(source, "_PIECE", 700)


def native(index: int, **fields: object) -> str:
    line = {"timestamp": 10 * index, "input_length": 5 + index, "output_length": 2, **fields}
    return json.dumps(line)


def mooncake(index: int) -> str:
    return native(index, hash_ids=[index])


def azure(index: int) -> str:
    return f"2024-05-10 00:00:{index // 100:02}.{index % 100:02}0+00:00,{5 + index},2"


def chat(index: int) -> str:
    parent = index - 1 if index % 3 else -1
    return native(
        index, timestamp=index / 100, chat_id=index, parent_chat_id=parent, hash_ids=[], type="a"
    )


def burst(index: int) -> str:
    return f"{index / 100:.2f},GPT-4,{5 + index},2,9,API log"


FORMATS = {
    "native": ("", native),
    "mooncake": ("", mooncake),
    "azure": ("TIMESTAMP,ContextTokens,GeneratedTokens\n", azure),
    "qwen-bailian": ("", chat),
    "burstgpt": (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n",
        burst,
    ),
}


def save(folder: Path, lines: list[str], head: str = "") -> Path:
    path = folder / "t"
    path.write_text(head + "\n".join(lines) + "\n")
    return path


def both(path: Path, limit: int | None, window: str | None) -> tuple[Trace, Trace]:
    """The requests of a run, and those of reading the whole file."""
    config = RunConfig(trace=str(path), limit=limit, window=window)
    whole = load_trace(path)
    if window is not None:
        whole = transform.window(whole, *transform.parse_window(window))
    return shape_traffic(config), whole if limit is None else transform.limit(whole, limit)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("limit", "window"),
    sample([(90, None), (1, None), (5, "0.5:3"), (7, None), (None, "0.1:0.3")], 2),
)
def test_the_beginning_is_what_reading_everything_gives(
    format: str, limit: int | None, window: str | None, tmp_path: Path
) -> None:
    head, line = FORMATS[format]
    path = save(tmp_path, [line(index) for index in range(COUNT)], head)
    found, whole = both(path, limit, window)
    assert (found.format, found.whole, whole.whole) == (format, False, True)
    assert found.requests == whole.requests
    assert found.sha256 == whole.sha256
    assert found.hash_block == whole.hash_block
    assert any("only the order of times looked at" in note for note in found.notes)
    assert any("the file goes on" in note for note in found.notes)


@pytest.mark.parametrize("format", FORMATS)
def test_a_time_that_goes_back_far_behind_is_seen(format: str, tmp_path: Path) -> None:
    head, line = FORMATS[format]
    lines = [line(index) for index in range(1, COUNT)]
    path = save(tmp_path, [*lines, line(0).replace('"chat_id": 0', '"chat_id": 999')], head)
    if format == "qwen-bailian":  # its reader sorts
        found, whole = both(path, 3, None)
        assert found.requests == whole.requests
        assert found.requests[0].id == "999"
        return
    for limit, window in ((3, None), (None, (0.0, 0.2))):
        with pytest.raises(InputError, match="time goes back") as caught:
            load_head(path, limit=limit, window=window)
        assert caught.value.line == COUNT + bool(head)


@pytest.mark.parametrize("format", ["native", "mooncake", "azure", "burstgpt"])
@pytest.mark.parametrize("places", [(300, 301), (200, 390)])
def test_two_later_lines_that_change_places_are_seen(
    format: str, places: tuple[int, int], tmp_path: Path
) -> None:
    """Within one piece and across pieces, and all of them later than what is taken."""
    head, line = FORMATS[format]
    lines = [line(index) for index in range(COUNT)]
    one, two = places
    lines[one], lines[two] = lines[two], lines[one]
    with pytest.raises(InputError, match="time goes back"):
        load_head(save(tmp_path, lines, head), limit=3)


@pytest.mark.parametrize("format", ["azure", "burstgpt"])
def test_a_column_before_the_time_is_not_taken_for_it(format: str, tmp_path: Path) -> None:
    """As of a table that was written with the numbers or other times of its rows."""
    head, line = FORMATS[format]
    lines = [line(index) for index in range(COUNT)]
    before = [
        f"{1000 + index}" if format == "burstgpt" else line(index)[:26] for index in range(COUNT)
    ]
    lines[300], lines[301] = lines[301], lines[300]
    rows = [f"{number},{row}" for number, row in zip(before, lines, strict=True)]
    with pytest.raises(InputError, match="time goes back"):
        load_head(save(tmp_path, rows, f"before,{head}"), limit=3)


def test_letters_after_a_time_do_not_change_the_order(tmp_path: Path) -> None:
    times = [f"2024-05-10 00:00:{index // 10:02}.{index % 10}Z" for index in range(COUNT)]
    head, rest = FORMATS["azure"][0], ",5,2"
    assert not load_head(save(tmp_path, [time + rest for time in times], head), limit=3).whole
    times[300], times[301] = times[300].replace("Z", "5Z"), times[300]  # .05Z, and then .0Z
    with pytest.raises(InputError, match="time goes back"):
        load_head(save(tmp_path, [time + rest for time in times], head), limit=3)


@pytest.mark.parametrize(
    "line",
    [
        native(COUNT, concurrency=4),
        native(COUNT, parent_chat_id=3, chat_id=5),
        native(COUNT).replace('"timestamp"', '"time"'),
        native(COUNT, timestamp="late"),
        "garbage",
        '{"timestamp":',
    ],
)
def test_a_later_line_that_matters_or_cannot_be_timed_is_read(line: str, tmp_path: Path) -> None:
    path = save(tmp_path, [*(native(index) for index in range(COUNT)), line])
    with pytest.raises(InputError):
        load_trace(path)
    with pytest.raises(InputError):
        load_head(path, limit=3)


def test_mooncake_that_turns_out_to_be_native_is_read_whole(tmp_path: Path) -> None:
    lines = [mooncake(index) for index in range(COUNT)]
    path = save(tmp_path, [*lines, native(COUNT, hash_ids=[1], hash_block=512)])
    assert load_head(path, limit=3).format == load_trace(path).format == "native"


def test_later_turns_of_a_window_come_from_anywhere_in_the_file(tmp_path: Path) -> None:
    lines = [native(index) for index in range(COUNT)]
    lines[0] = native(0, session="a", turn=0)
    turn = native(0, session="a", turn=1, think_time=5)
    path = save(tmp_path, [*lines, turn.replace('"timestamp": 0, ', "")])
    found, whole = both(path, None, "0:0.05")
    assert found.requests == whole.requests
    assert [request.id for request in found.requests if request.follows] == [str(COUNT)]
    # A limit takes the first lines, turns or not.
    found, whole = both(path, 3, None)
    assert found.requests == whole.requests


def test_faults_of_the_text_are_seen_and_others_told(tmp_path: Path) -> None:
    lines = [native(index) for index in range(COUNT)]
    path = save(tmp_path, [*lines, native(COUNT, input_length=-1)])
    trace = load_head(path, limit=3)
    assert len(trace.requests) == 3
    note = next(note for note in trace.notes if "looked at" in note)
    assert note.startswith("read up to line ")
    assert "lines only the order of times looked at" in note
    path.write_bytes(path.read_bytes() + b"\0\n")
    with pytest.raises(InputError, match="NUL byte") as caught:
        load_head(path, limit=3)
    assert caught.value.line == COUNT + 2


def test_beyond_the_bounds_the_note_says_how_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MAX_LINES", 300)
    path = save(tmp_path, [native(index) for index in range(COUNT)])
    with pytest.raises(InputError, match="over 300 lines"):
        load_trace(path)
    trace = load_head(path, limit=3)
    assert len(trace.requests) == 3
    assert any("up to line 30" in note and "no further" in note for note in trace.notes)


def test_a_short_file_or_a_large_limit_is_the_whole_file(tmp_path: Path) -> None:
    path = save(tmp_path, [native(index) for index in range(COUNT)])
    for limit in (COUNT, COUNT + 1):
        found = load_head(path, limit=limit)
        assert (found.requests, found.whole) == (load_trace(path).requests, True)
    assert "limit 401 not reached" in both(path, COUNT + 1, None)[0].notes[-1]
    assert load_head(path, window=(1.0, None)).whole
    assert load_head(save(tmp_path, [native(0), native(1)]), limit=1).whole


def test_a_reader_that_does_not_say_how_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nexusbench.workloads.readers.base import Reader
    from nexusbench.workloads.readers.native import Native

    path = save(tmp_path, [native(index) for index in range(COUNT)])
    for skim in (Reader.skim, lambda *_: 1 / 0, lambda *_: "soon", lambda *_: -1):
        monkeypatch.setattr(Native, "skim", skim)
        assert load_head(path, limit=3).whole


@pytest.mark.parametrize("format", FORMATS)
def test_a_piece_that_begins_before_the_last_one_ended_is_out_of_order(format: str) -> None:
    from nexusbench.workloads.readers.base import readers

    reader, (_, line) = readers.load(format)(), FORMATS[format]
    piece = "".join(f"{line(index)}\n" for index in range(5, 9)).encode()
    first = reader.skim(piece[: piece.find(b"\n") + 1], 0)
    last = reader.skim(piece, first)
    assert last - first == 30_000_000
    assert reader.skim(piece, first + 1) is None
    assert reader.skim(piece + piece, first) is None
    assert reader.skim(piece + b"\xe2\x80\xa8garbage\n", first) is None


def test_a_part_that_was_not_enough_is_read_again_only_four_times_as_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred lines are ten pieces: reading from the beginning at each would be ten readings."""
    from nexusbench.workloads.readers.native import Native

    readings, read = list[int](), Native.read

    def counted(reader: Native, text: source.Source) -> Parsed:
        readings.append(len(text.text))
        return read(reader, text)

    monkeypatch.setattr(Native, "read", counted)
    path = save(tmp_path, [native(index) for index in range(COUNT)])
    assert len(load_head(path, limit=100).requests) == 100
    assert len(readings) == 3
    assert all(later >= 4 * before for before, later in pairwise(readings))
