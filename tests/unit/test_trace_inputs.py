"""Broken trace files: one line each that names file, line and field, and says what to do."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusbench.core.errors import InputError, UsageError
from nexusbench.workloads.trace import load_trace
from tests.examples import sample

LINE = b'{"timestamp": 0, "input_length": 600, "output_length": 5}\n'
MOON = b'{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'
HEAD = b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
ROW = b"2023-11-16 18:15:46.6805900,374,44\r\n"


def native(field: bytes, value: bytes) -> bytes:
    """A good line, then one with ``field`` set to ``value``."""
    fields = {b"timestamp": b"0", b"input_length": b"600", b"output_length": b"5", field: value}
    body = b", ".join(b'"%s": %s' % item for item in fields.items())
    return LINE + b"{" + body + b"}\n"


def azure(row: bytes) -> bytes:
    return HEAD + ROW + row + b"\r\n"


# content, line (None: the fault is in no line), field ("" likewise), what the message says
BROKEN: dict[str, tuple[bytes, int | None, str, str]] = {
    "empty": (b"", None, "", "is empty"),
    "white space": (b"\n \n", None, "", "white space"),
    "empty gzip": (gzip.compress(b""), None, "", "white space"),
    "gzip cut": (gzip.compress(LINE * 50)[:-12], None, "", "truncated"),
    "gzip cut in its header": (gzip.compress(LINE)[:5], None, "", "truncated"),
    "gzip damaged": (gzip.compress(LINE)[:-8] + b"\0" * 8, None, "", "corrupt"),
    "gzip of gzip": (gzip.compress(gzip.compress(LINE * 9)), 1, "", "binary"),
    "zlib stream": (zlib.compress(LINE * 9), 1, "", "UTF-8"),
    "binary": (b"PAR1\x00\x01" + LINE, 1, "", "binary"),
    "binary later": (LINE + b"\x00\n", 2, "", "binary"),
    "not UTF-8": (LINE + b'{"tenant": "\xe9"}\n', 2, "", "0xe9 is not UTF-8"),
    "UTF-16": (LINE.decode().encode("utf-16"), 1, "", "binary"),
    "prose": (b"\nHello there\n", 2, "", "no known trace format"),
    "other CSV": (
        b"a,b\n1,2\n",
        1,
        "",
        'Name your columns as one of these, or write lines such as {"time',
    ),
    "array": (b"[" + LINE.strip() + b"]", 1, "", "jq -c"),
    "array over lines": (b"[\n" + LINE + b"]\n", 1, "", "jq -c"),
    "not JSON": (LINE + b"{'timestamp': 0}\n", 2, "", "not valid JSON"),
    "cut in a line": (LINE + LINE[:30], 2, "", "cut off"),
    "two in a line": (LINE.strip() + LINE, 1, "", "not valid JSON"),
    "number": (LINE + b"17\n", 2, "", "no JSON object"),
    "deep": (LINE + b"{" * 100_000, 2, "", "JSON"),
    "length negative": (native(b"input_length", b"-3"), 2, "input_length", "not -3"),
    "length zero": (native(b"input_length", b"0"), 2, "input_length", "1 to"),
    "output zero": (native(b"output_length", b"0"), 2, "output_length", "1 to"),
    "length a fraction": (native(b"input_length", b"5.5"), 2, "input_length", "whole number"),
    "length a text": (native(b"output_length", b'"5"'), 2, "output_length", "whole number"),
    "length a truth value": (native(b"output_length", b"true"), 2, "output_length", "not true"),
    "length null": (native(b"output_length", b"null"), 2, "output_length", "not null"),
    "length huge": (native(b"input_length", b"9" * 30), 2, "input_length", "2,147,483,647"),
    "length NaN": (native(b"input_length", b"NaN"), 2, "input_length", "not NaN"),
    "time NaN": (native(b"timestamp", b"NaN"), 2, "timestamp", "finite"),
    "time infinite": (native(b"timestamp", b"Infinity"), 2, "timestamp", "finite"),
    "time overflows": (native(b"timestamp", b"1e999"), 2, "timestamp", "finite"),
    "time huge": (native(b"timestamp", b"1e15"), 2, "timestamp", "finite"),
    "time huge and whole": (native(b"timestamp", b"9" * 40), 2, "timestamp", "finite"),
    "time negative": (native(b"timestamp", b"-0.5"), 2, "timestamp", "not -0.5"),
    "time a text": (native(b"timestamp", b'"0"'), 2, "timestamp", "finite"),
    "time a truth value": (native(b"timestamp", b"true"), 2, "timestamp", "not true"),
    "seconds since 1970": (
        b'{"timestamp": 1700000000.5, "input_length": 3, "output_length": 2}\n',
        1,
        "timestamp",
        "Multiply by 1000",
    ),
    "field missing": (LINE + b'{"timestamp": 1, "input_length": 3}', 2, "output_length", "missing"),
    "field misspelt": (native(b"input_lenght", b"3"), 2, "input_lenght", "'input_length'?"),
    "field unknown": (native(b"zzz", b"3"), 2, "zzz", "Known: timestamp"),
    "time goes back": (
        b"\n" + native(b"timestamp", b"1.5") + LINE,
        4,
        "timestamp",
        "from 1.5 ms in line 3 to 0 ms",
    ),
    "ids twice": (
        native(b"id", b'"a"').replace(b"{", b'{"id": "a", ', 1),
        2,
        "id",
        "'a' is the id of line 1 too",
    ),
    "id on some": (native(b"id", b'"a"'), 2, "id", "line 1 has none"),
    "id empty": (native(b"id", b'""'), 2, "id", "not empty"),
    "tenant a number": (native(b"tenant", b"4"), 2, "tenant", "a text"),
    "hash block missing": (
        native(b"tenant", b'"x", "hash_ids": [1, 2]'),
        2,
        "hash_block",
        "first line",
    ),
    "hash block changes": (
        native(b"hash_block", b"16").replace(b"{", b'{"hash_block": 512, ', 1),
        2,
        "hash_block",
        "is 16, but line 1 says 512",
    ),
    "hash block zero": (native(b"hash_block", b"0"), 2, "hash_block", "1 or more"),
    "hash ids too few": (
        native(b"hash_block", b'512, "hash_ids": [1]'),
        2,
        "hash_ids",
        "1 ids, but 600 input tokens are 2 blocks",
    ),
    "hash ids negative": (
        native(b"hash_block", b'512, "hash_ids": [1, -1]'),
        2,
        "hash_ids",
        "0 or more",
    ),
    "mooncake too few": (MOON + MOON.replace(b"0, 1]", b"0]"), 2, "hash_ids", "2 blocks of 512"),
    "mooncake empty": (MOON + MOON.replace(b"0, 1]", b"]"), 2, "hash_ids", "is empty"),
    "mooncake without": (MOON + LINE, 2, "hash_ids", "missing"),
    "mooncake text": (MOON + MOON.replace(b"1]", b'"1"]'), 2, "hash_ids", "whole numbers"),
    "mooncake goes back": (MOON.replace(b" 0,", b" 9,", 1) + MOON, 2, "timestamp", "Sort"),
    "azure empty": (HEAD, None, "", "no requests"),
    "azure column missing": (HEAD.replace(b",Gen", b"#,Gen"), 1, "ContextTokens#", "'ContextTok"),
    "azure columns lack one": (b"TIMESTAMP,ContextTokens\n", 1, "GeneratedTokens", "missing"),
    "azure cut": (HEAD + ROW + b"2023-11-16 18:15:47.1,37", 3, "GeneratedTokens", "cut off"),
    "azure too many": (azure(b"2023-11-16 18:15:47.1,37,4,5"), 3, "", "4 columns"),
    "azure time": (azure(b"16.11.2023 18:15,374,44"), 3, "TIMESTAMP", "no time"),
    "azure day": (azure(b"2023-02-30 18:15:46.1,374,44"), 3, "TIMESTAMP", "no time"),
    "azure offset": (azure(b"2023-11-16 18:15:47+99:00,3,4"), 3, "TIMESTAMP", "no time"),
    "azure negative": (azure(b"2023-11-16 18:15:47.1,-374,44"), 3, "ContextTokens", "'-374'"),
    "azure zero": (azure(b"2023-11-16 18:15:47.1,0,44"), 3, "ContextTokens", "'0'"),
    "azure fraction": (azure(b"2023-11-16 18:15:47.1,3,4.5"), 3, "GeneratedTokens", "'4.5'"),
    "azure NaN": (azure(b"2023-11-16 18:15:47.1,3,nan"), 3, "GeneratedTokens", "'nan'"),
    "azure blank": (azure(b"2023-11-16 18:15:47.1,,4"), 3, "ContextTokens", "''"),
    "azure huge": (azure(b"2023-11-16 18:15:47.1,9999999999,4"), 3, "ContextTokens", "to 2,147"),
    "azure goes back": (
        azure(b"2023-11-16 18:15:46.6805899,3,4"),
        3,
        "TIMESTAMP",
        "from 2023-11-16 18:15:46.680590000 UTC in line 2",
    ),
    "azure far": (azure(b"2923-11-16 18:15:46,3,4"), 3, "TIMESTAMP", "146 years"),
}


# Each as it is, and packed unless its fault is in the packing.
CASES = [(name, False) for name in BROKEN]
CASES += [(name, True) for name, case in BROKEN.items() if case[0][:2] not in (b"", b"\x1f\x8b")]


@pytest.mark.parametrize(("name", "packed"), sample(CASES, 3))
def test_broken_trace_is_one_clear_error(name: str, packed: bool, tmp_path: Path) -> None:
    content, line, field, says = BROKEN[name]
    path = tmp_path / "trace.jsonl"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError) as caught:
        load_trace(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert (f"field '{field}'" in text) if field else ("field '" not in text)
    assert says in text
    assert "\n" not in text
    assert caught.value.hint, "it must say what to do"
    assert caught.value.exit_code == 2


@settings(deadline=None)
@given(
    st.sampled_from([LINE * 3, MOON * 3, HEAD + ROW * 3, gzip.compress(MOON * 3)]),
    st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=3)), min_size=1, max_size=4),
)
def test_damaged_bytes_are_read_or_refused_but_never_crash(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, edits: list[tuple[int, bytes]]
) -> None:
    for place, new in edits:
        content = content[:place] + new + content[place + 1 :]
    path = tmp_path_factory.mktemp("damaged") / "t"
    path.write_bytes(content)
    try:
        trace = load_trace(path)
    except InputError as error:
        text = str(error)
    else:
        text = str(path)
        assert trace.requests[0].arrival_ns == 0
    assert text.startswith(str(path))
    assert "\n" not in text


def test_missing_file_folder_and_unreadable_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        load_trace(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="this is a folder"):
        load_trace(tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        load_trace(str(tmp_path / "a\0b"))
    (tmp_path / "file").write_bytes(LINE)
    with pytest.raises(InputError, match="cannot read"):
        load_trace(tmp_path / "file" / "below")


def test_a_named_format_is_taken_and_a_wrong_name_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(MOON)
    assert load_trace(path).format == "mooncake"
    with pytest.raises(InputError, match="hash_block"):
        load_trace(path, "native")
    with pytest.raises(UsageError, match="Did you mean 'mooncake'"):
        load_trace(path, "moncake")


def test_what_is_unusual_but_right_is_read(tmp_path: Path) -> None:
    """Byte-order mark, CRLF, blank lines, no last newline, ids as numbers, fractions of a ms."""
    path = tmp_path / "t.jsonl"
    lines = [
        b'{"timestamp": 1700000000000.25, "input_length": 1, "output_length": 1, "id": 7}',
        b"",
        b'{"output_length": 2, "input_length": 3, "timestamp": 1700000000001, "id": "b"}',
    ]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    trace = load_trace(path)
    assert [(r.id, r.arrival_ns) for r in trace.requests] == [("7", 0), ("b", 750_000)]
    assert trace.notes == [
        "format native, timestamps in ms, 2 requests, 0.00075 s",
        "first arrival, 1,700,000,000,000.25 ms in the file, is time 0",
    ]


def test_hash_block_may_stand_on_the_first_line_or_on_all(tmp_path: Path) -> None:
    first = b'{"timestamp": 0, "input_length": 17, "output_length": 1, "hash_ids": [4, 5]%s}\n'
    block = b', "hash_block": 16'
    for content in (first % block + first % b"", first % block * 2):
        path = tmp_path / "t.jsonl"
        path.write_bytes(content)
        trace = load_trace(path)
        assert (trace.format, trace.hash_block) == ("native", 16)
        assert [r.hash_ids for r in trace.requests] == [(4, 5), (4, 5)]


def test_azure_of_2023_and_2024_keep_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "AzureTrace.csv"
    path.write_bytes(HEAD + ROW + b"2023-11-16 18:15:46.6805901,1,2\r\n\r\n")
    assert [r.arrival_ns for r in load_trace(path).requests] == [0, 100]
    path.write_bytes(
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
        b"2024-05-10 00:00:00.009930+00:00,2162,5\n"
        b"2024-05-10 00:00:01+00:00,2399,0\n"
        b"2024-05-10 02:00:01+02:00,76,15"
    )
    trace = load_trace(path)
    assert [(r.id, r.arrival_ns) for r in trace.requests] == [("0", 0), ("2", 990_070_000)]
    assert (trace.name, trace.format) == ("AzureTrace", "azure")
    assert "1 rows without a generated token skipped" in trace.notes
    assert trace.notes[-1].startswith("first arrival, 2024-05-10 00:00:00.009930000 UTC")
