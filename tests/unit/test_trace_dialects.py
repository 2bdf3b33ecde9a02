"""Spellings that real files have: read as what they mean, or named with file, line and field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from nexusbench.core.errors import InputError
from nexusbench.workloads.base import Trace
from nexusbench.workloads.lengths import load_table
from nexusbench.workloads.trace import load_trace

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROWS = "2024-05-10 00:00:00.001,10,2\n2024-05-10 00:00:00.002,20,3\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
LINE = '{"timestamp": 0, "input_length": 10, "output_length": 2}\n'


def load(folder: Path, content: str | bytes) -> Trace:
    path = folder / "t"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_trace(path)


def figures(trace: Trace) -> list[tuple[int, int, int]]:
    return [(r.arrival_ns, r.prompt_tokens, r.output_tokens) for r in trace.requests]


EXPECTED = [(0, 10, 2), (1_000_000, 20, 3)]
AZURE = {
    "quoted": '"TIMESTAMP","ContextTokens","GeneratedTokens"\n'
    '"2024-05-10T00:00:00.001Z",10,2\n"2024-05-10T00:00:00.002Z","20","3"\n',
    "10.0": HEAD + "2024-05-10 00:00:00.001,10.0,2.\n2024-05-10 00:00:00.002,20.00,3\n",
    "1e1": HEAD + "2024-05-10 00:00:00.001,1e1,2E0\n2024-05-10 00:00:00.002,+2e+1,30e-1\n",
    "byte-order mark": "\ufeff" + HEAD + ROWS,
    "CRLF": (HEAD + ROWS).replace("\n", "\r\n"),
    "CR": (HEAD + ROWS).replace("\n", "\r"),
    "tabs": (HEAD + ROWS).replace(",", "\t"),
    "semicolons": (HEAD + ROWS).replace(",", ";"),
    "bars": (HEAD + ROWS).replace(",", "|"),
    "spaces": (HEAD + ROWS).replace(",", " , "),
    "blank lines": "\n\n" + HEAD + "\n" + ROWS.replace("\n", "\n \n"),
    "no last line end": (HEAD + ROWS).rstrip(),
    "empty last column": (HEAD + ROWS).replace("\n", ",\n"),
    "more delimiters than columns": HEAD + ROWS.replace("\n", ",,\n"),
    "another order": "GeneratedTokens,TIMESTAMP,ContextTokens\n"
    "2,2024-05-10 00:00:00.001,10\n3,2024-05-10 00:00:00.002,20\n",
    "columns without a name": HEAD.replace("\n", ",,\n") + ROWS.replace("\n", ",,\n", 1),
    "twelve digits": HEAD
    + "2024-05-10 00:00:00.001000000999,10,2\n2024-05-10 00:00:00.002000000001,20,3\n",
    "offset of hours": HEAD
    + "2024-05-10 00:00:00.001 +02,10,2\n2024-05-10 00:30:00.002 +02:30,20,3\n",
    "UTC in letters": HEAD + "2024-05-10 00:00:00.001 UTC,10,2\n2024-05-10 00:00:00.002UTC,20,3\n",
    "offset without colon": HEAD
    + "2024-05-10 00:00:00.001+0200,10,2\n2024-05-10 00:00:00.002+0200,20,3\n",
    "zeros after the gzip data": "",
    "two gzip members": "",
}


@pytest.mark.parametrize("name", AZURE)
def test_what_means_the_same_is_read_the_same(name: str, tmp_path: Path) -> None:
    content = AZURE[name].encode()
    if name.startswith("zeros"):
        content = gzip.compress((HEAD + ROWS).encode()) + b"\0" * 100
    elif name.startswith("two"):
        content = gzip.compress(HEAD.encode()) + gzip.compress(ROWS.encode())
    trace = load(tmp_path, content)
    assert trace.format == "azure"
    assert figures(trace) == EXPECTED


def test_lines_are_counted_through_quoted_cells_and_blank_lines(tmp_path: Path) -> None:
    head = "TIMESTAMP,prompt,ContextTokens,GeneratedTokens\n"
    row = '2024-05-10 00:00:00.001,"say ""x"",\nthen\ny",10,2\n'
    assert figures(load(tmp_path, head + row)) == [(0, 10, 2)]
    with pytest.raises(InputError, match="not 'x'") as caught:
        load(tmp_path, "\n" + head + row + "\n2024-05-10 00:00:01,z,x,2\n")
    assert (caught.value.line, caught.value.field) == (7, "ContextTokens")


def test_columns_that_are_not_used_are_told(tmp_path: Path) -> None:
    head, rows = HEAD.replace("\n", ",NumImages,\x1b\n"), ROWS.replace("\n", ",3,x\n")
    trace = load(tmp_path, head + rows)
    assert figures(trace) == EXPECTED
    assert "columns not used: 'NumImages', '\\x1b'" in trace.notes
    assert "columns separated by tabs" in load(tmp_path, (HEAD + ROWS).replace(",", "\t")).notes
    burst = BURST.replace("\n", ",Region\n") + "1,A,10,2,12,x,EU\n"
    assert "columns not used: 'Region'" in load(tmp_path, burst).notes
    assert not any("columns" in note for note in load(tmp_path, HEAD + ROWS).notes)


def test_a_cell_may_be_as_long_as_a_prompt(tmp_path: Path) -> None:
    head = "TIMESTAMP,prompt,ContextTokens,GeneratedTokens\n"
    trace = load(tmp_path, head + f"2024-05-10 00:00:00.001,{'a' * 200_000},10,2\n")
    assert figures(trace) == [(0, 10, 2)]


def test_burstgpt_in_other_spellings(tmp_path: Path) -> None:
    rows = '"5","Chat, GPT",10.0,2,12,"a\nb"\n\n1e1,B,2e1,3.0,23,x\n'
    trace = load(tmp_path, BURST + rows)
    assert figures(trace) == [(0, 10, 2), (5_000_000_000, 20, 3)]
    assert [(r.id, r.tenant) for r in trace.requests] == [("0", "Chat, GPT"), ("3", "B")]


@pytest.mark.parametrize(
    ("cell", "ns"),
    [
        ("+5.5", 5_500_000_000), (".5", 500_000_000), ("1.5555e1", 15_555_000_000),
        ("25e-4", 2_500_000), ("1e-9", 1), ("5.1234567891e0", 5_123_456_789), ("1e-999", 0),
        ("999999999e0", 999_999_999 * 10**9),
    ],
)  # fmt: skip
def test_seconds_of_burstgpt_in_any_spelling(cell: str, ns: int, tmp_path: Path) -> None:
    trace = load(tmp_path, f"{BURST}0,A,1,2,3,x\n{cell},A,1,2,3,x\n")
    assert trace.requests[1].arrival_ns == ns


@pytest.mark.parametrize(
    ("row", "field", "says"),
    [
        ("1000000000e0,A,1,2,3,x", "Timestamp", "'1000000000e0'"),
        ("nan,A,1,2,3,x", "Timestamp", "'nan'"),
        ("inf,A,1,2,3,x", "Timestamp", "'inf'"),
        ("-5,A,1,2,3,x", "Timestamp", "'-5'"),
        ("1e999,A,1,2,3,x", "Timestamp", "'1e999'"),
        ("1,A,nan,2,3,x", "Request tokens", "'nan'"),
        ('1,A,"1,000",2,3,x', "Request tokens", "without separators"),
        ("1,A,1_000,2,3,x", "Request tokens", "without separators"),
        ("1,A,1e999,2,3,x", "Request tokens", "'1e999'"),
        ("1,A,\u0661,2,3,x", "Request tokens", "whole number"),
        ("1,A,,2,3,x", "Request tokens", "not ''"),
        ("1,A,true,2,3,x", "Request tokens", "'true'"),
        ("1,A,1,2,3,x,9", None, "7 columns instead of 6"),
        ('1,"A,1,2,3,x', None, "cannot be read as columns"),
    ],
)
def test_rows_that_mean_nothing_are_named(
    row: str, field: str | None, says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, BURST + "0,A,1,2,3,x\n" + row + "\n")
    assert (caught.value.line, caught.value.field) == (3, field)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def test_whole_numbers_with_a_point_or_an_exponent_in_json(tmp_path: Path) -> None:
    line = '{"timestamp": 1e1, "input_length": 10.0, "output_length": 2E+0}\n'
    assert figures(load(tmp_path, LINE + line)) == [(0, 10, 2), (10_000_000, 10, 2)]
    hashed = (
        '{"timestamp": 0, "input_length": 600.0, "output_length": 2, "hash_block": 512.0, '
        '"hash_ids": [1.0, 2], "token_ids": [' + ", ".join(["7.0"] * 600) + "]}"
    )
    request = load(tmp_path, hashed).requests[0]
    assert (request.hash_ids, list(request.token_ids or ())) == ((1, 2), [7] * 600)
    chat = (
        '{"chat_id": 1.0, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 16.0, '
        '"output_length": 2, "hash_ids": [3.0]}'
    )
    assert load(tmp_path, chat).requests[0].id == "1"


def test_hash_ids_of_64_bits_without_a_sign(tmp_path: Path) -> None:
    most = 2**64 - 1
    line = '{"timestamp": 0, "input_length": 1024, "output_length": 5, "hash_ids": [%d, %d]}\n'
    trace = load(tmp_path, line % (most, 2**32) + line % (most, 1))
    assert [request.hash_ids for request in trace.requests] == [(most, 2**32), (most, 1)]
    with pytest.raises(InputError, match="more than 64 bits, 18446744073709551616") as caught:
        load(tmp_path, line % (most, 1) + line % (most + 1, 1))
    assert (caught.value.line, caught.value.field) == (2, "hash_ids")


def test_a_begun_block_gets_an_id_that_is_free_among_64_bits(tmp_path: Path) -> None:
    chat = (
        '{"chat_id": %d, "parent_chat_id": -1, "timestamp": 1, "input_length": 20, '
        '"output_length": 2, "hash_ids": [%d]}\n'
    )
    trace = load(tmp_path, chat % (1, 2**64 - 1) + chat % (2, 0) + chat % (3, 2**64 - 1))
    begun = [request.hash_ids for request in trace.requests]
    assert begun == [(2**64 - 1, 1), (0, 2), (2**64 - 1, 3)]


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ('"input_length": 10, "input_length": 3', "input_length", "given twice"),
        ('"input_length": 10, "tenant": "a:b", "tenant": "c"', "tenant", "given twice"),
        ('"input_length": 10, "input\\u005flength": 3', "input_length", "given twice"),
        ('"input_length": 10.0, "tenant": "c", "tenant": "d"', "tenant", "given twice"),
        ('"input_length": 1e999999999999999999999', "input_length", "not Infinity"),
        ('"input_length": 1e-999999999999999999999', "input_length", "whole number"),
        ('"input_length": ' + "9" * 5000, "input_length", "not Infinity"),
        ('"input_length": 10, "tenant": null', "tenant", "not null"),
        ('"input_length": 10, "id": "\\ud800"', "id", "U+D800"),
        ('"input_length": 10, "id": "%s"' % ("a" * 2000), "id", "longer than 1,024"),
        ('"input_length": 10, "\\ud800\\n": 1', "\\ud800\\n", "unknown field"),
        ('"input_length": 10, "a": ' + "[" * 9000, None, "nested too deeply"),
        ('"input_length": 10, "a": ' + '{"a":' * 9000, None, "nested too deeply"),
    ],
)
def test_lines_that_mean_two_things_or_none_are_named(
    fields: str, field: str | None, says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, '\n{"timestamp": 0, "output_length": 2, ' + fields + "}\n")
    assert (caught.value.line, caught.value.field) == (2, field)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a\nb", "a\x00b", "\x1b[31m", "a\u202eb", "\u2028", "\x9b2J"])
def test_names_that_would_control_a_screen_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    """Screens and folder names leave control characters out (tests/cli/test_cli_streams.py)."""
    line = {"timestamp": 0, "input_length": 10, "output_length": 2, "id": name, "tenant": name}
    (request,) = load(tmp_path, json.dumps(line) + "\n").requests
    assert (request.id, request.tenant) == (name, name)


def test_names_of_any_language_are_read(tmp_path: Path) -> None:
    names = ["a:b", "\u6d4b\u8bd5", "\U0001f469\u200d\U0001f680", "x y"]
    lines = [LINE.replace("}", f', "id": "{name}", "tenant": "{name}"}}') for name in names]
    trace = load(tmp_path, "".join(lines))
    assert [request.id for request in trace.requests] == names
    assert [request.tenant for request in trace.requests] == names


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04" + b"x" * 99, "a zip archive"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 99, "zstd data"),
        ((HEAD + ROWS).encode("utf-16"), "iconv"),
        (gzip.compress(HEAD.encode()) + b"more", "follows the gzip data"),
        (b"\x1f\x8b", "truncated"),
        (b'{\n "timestamp": 0\n}\n', "jq -c . FILE"),
        ((HEAD + "2024-05-10 00:00:00,10,0\n").encode(), "1 rows without a generated token"),
        (HEAD.replace("Con", "Kon").encode(), "Did you mean 'ContextTokens'"),
        (HEAD.replace("\n", ",ContextTokens\n").encode(), "two columns have this name"),
        ((HEAD + "1960-05-10 00:00:00,10,2\n").encode(), "no time since 1970"),
    ],
)
def test_other_forms_are_named_with_the_remedy(content: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        load(tmp_path, content)
    assert says in str(caught.value)


def test_length_tables_have_the_same_spellings(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text('x;"num_decode_tokens";num_prefill_tokens\n\n"a;b";2.0;1e1\n')
    assert load_table(path).rows == [(10, 2)]
