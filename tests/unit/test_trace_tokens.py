"""Prompts in native traces: read, checked, carried through transforms, written again."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import pytest

from nexusbench.core.errors import InputError
from nexusbench.workloads import transform
from nexusbench.workloads.convert import convert
from nexusbench.workloads.statistics import TokenIdFigures, describe_trace
from nexusbench.workloads.trace import load_trace, write_trace


def line(tokens: Any, **fields: Any) -> dict[str, Any]:
    count = len(tokens) if isinstance(tokens, list) else 1
    return {
        "timestamp": 0,
        "input_length": count,
        "output_length": 2,
        "token_ids": tokens,
        **fields,
    }


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def test_tokens_survive_every_transform(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        line([1, 2, 3], hash_ids=[1, 2], hash_block=2),
        line([1, 2, 4, 5], hash_ids=[1, 3], timestamp=10),
    )
    trace = load_trace(file)
    assert [r.token_ids for r in trace.requests] == [
        array("i", [1, 2, 3]),
        array("i", [1, 2, 4, 5]),
    ]
    assert [r.line for r in trace.requests] == [1, 2]
    moved = transform.spread_ties(transform.rate(transform.speed(trace, 2), 5), "uniform", 0)
    bounded = transform.bounds(transform.closed_loop(transform.limit(moved, 2), 2))
    assert [r.token_ids for r in bounded.requests] == [r.token_ids for r in trace.requests]
    clipped = transform.fit_context(trace, 5, "clip").requests
    assert [list(r.token_ids or ()) for r in clipped] == [[1, 2, 3], [1, 2, 4]]
    assert [r.prompt_tokens for r in clipped] == [3, 3]
    write_trace(trace, tmp_path / "b.jsonl")
    assert load_trace(tmp_path / "b.jsonl").requests == trace.requests
    assert describe_trace(trace).token_ids == TokenIdFigures(largest=5)
    assert "token ids of 2 requests dropped" in convert(trace, "azure")[1]
    assert "token ids of 2 requests dropped" in convert(trace, "mooncake")[1]


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (line([1, 2], input_length=3), "2 token ids, but input_length is 3"),
        (line([1, -2]), "must be a list of token ids"),
        (line([1, 2.5]), "must be a list of token ids"),
        (line([1, True]), "must be a list of token ids"),
        (line([1, 2**31]), "must be a list of token ids"),
        (line("1 2"), "must be a list of token ids"),
        ({"timestamp": 0, "input_length": 1, "output_length": 1}, "missing, but line 1 has them"),
        (line([1, 9, 3], hash_ids=[1, 5]), "block 0 differs from that of line 1"),
        (line([1, 2, 9], hash_ids=[1, 2]), "block 1 differs from that of line 1"),
    ],
)
def test_faults_are_named(tmp_path: Path, second: dict[str, Any], problem: str) -> None:
    first = line([1, 2, 3, 4], hash_ids=[1, 2], hash_block=2)
    with pytest.raises(InputError, match=problem) as caught:
        load_trace(write(tmp_path / "t.jsonl", first, second))
    text = str(caught.value)
    assert "t.jsonl" in text
    assert "token_ids" in text
    assert "2" in text.split("token_ids")[0]


def test_equal_beginnings_of_other_lengths_agree(tmp_path: Path) -> None:
    """A prompt may end within a block that another one goes on with."""
    short = line([1, 2, 3], hash_ids=[1, 2], hash_block=2)
    load_trace(write(tmp_path / "t.jsonl", short, line([1, 2, 3, 4], hash_ids=[1, 2])))
    wrong = line([1, 2, 3, 9], hash_ids=[1, 2])
    with pytest.raises(InputError, match="block 1 differs from that of line 2"):
        load_trace(write(tmp_path / "t.jsonl", short, line([1, 2, 3, 4], hash_ids=[1, 2]), wrong))
