"""Readers and metrics at their edges: the first byte, a run without rows, a gap of 1 ns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nexusbench.core.errors import InputError
from nexusbench.core.events import EventLog
from nexusbench.gates.rules import parse_rule
from nexusbench.metrics import tokens
from nexusbench.metrics.occupancy import kv_over_time, queue_over_time
from nexusbench.metrics.pieces import chunk_numbers, continued, later_layers
from nexusbench.metrics.run_events import RunEvents
from nexusbench.workloads.base import Trace, TraceRequest
from nexusbench.workloads.convert import convert
from nexusbench.workloads.source import read_source
from nexusbench.workloads.trace import conversation_ids, load_trace, prefix_ids

FACTS = {
    "simulated": True, "num_sms": 16, "kv_blocks": 512, "block_size": 4,
    "partitions": ("all",), "splits": ((16,),),
}  # fmt: skip
COLUMNS = ("request", "id", "tenant", "arrival", "prompt_tokens", "output_tokens", "max_tokens")


def test_a_run_without_rows_has_no_steps() -> None:
    run = RunEvents.from_log(EventLog(), {name: [] for name in COLUMNS}, FACTS)
    steps, queue = kv_over_time(run), queue_over_time(run)
    assert len(steps.times) == len(steps.values) == 0
    assert len(queue.times) == len(queue.waiting) == len(queue.running) == 0
    assert later_layers(run).tolist() == chunk_numbers(run).tolist() == continued(run).tolist() == []


def test_tokens_a_nanosecond_apart_did_not_come_together() -> None:
    times = np.array([0, 5, 5, 6, 9], dtype=np.int64)
    requests = np.zeros(5, dtype=np.int32)

    def parts():
        return iter([requests])

    read = tokens.read_tokens(parts, times, np.ones(5, dtype=np.int64), 1)
    apart = tokens.apart(read, parts)
    assert apart.gaps.tolist() == [5, 1, 3]
    assert apart.owners.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "ms"),
    [("5000000ns", 5), ("5000us", 5), ("5000µs", 5), ("5000μs", 5), ("5ms", 5), ("5s", 5000)],
)
def test_every_unit_of_time_is_one(text: str, ms: float) -> None:
    assert parse_rule(f"ttft:5%:{text}").floor("ms") == pytest.approx(ms)


@pytest.mark.parametrize(("raw", "line"), [(b"\0a", 1), (b"a\n\0", 2), (b"a\nb\n\0\n", 3)])
def test_a_zero_byte_anywhere_is_no_text(raw: bytes, line: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(raw)
    with pytest.raises(InputError, match="binary file, not text") as caught:
        read_source(path)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("first", "refused"),
    [(999_999_999, False), (1_000_000_000, True), (99_999_999_999, True), (100_000_000_000, False)],
)
def test_milliseconds_that_look_like_seconds_since_1970(
    first: int, refused: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        f'{{"timestamp": {first}, "input_length": 5, "output_length": 2, "hash_ids": [1]}}\n'
    )
    if refused:
        with pytest.raises(InputError, match="looks like seconds since 1970") as caught:
            load_trace(path, "mooncake")
        assert (caught.value.line, caught.value.field) == (1, "timestamp")
    else:
        assert load_trace(path, "mooncake").requests[0].arrival_ns == 0


def test_a_mooncake_id_names_the_block_of_512_that_it_ends(tmp_path: Path) -> None:
    """Blocks of 16: two prompts that differ from token 512 on share one id, not less."""
    same, other = tuple(range(80)), (*range(32), *range(900, 948))
    shorter = (*range(31), *range(900, 949))
    made = [TraceRequest(str(i), 0, 1280, 5, ids) for i, ids in enumerate((same, other, shorter))]
    path = tmp_path / "m.jsonl"
    path.write_bytes(convert(Trace("t", made, hash_block=16), "mooncake")[0])
    first, second, third = prefix_ids(load_trace(path), 512)
    assert (len(first), len(second)) == (3, 3)
    assert first[0] == second[0] != third[0]
    assert first[1] != second[1]


def test_a_turn_without_hash_ids_names_no_tokens() -> None:
    turns = [
        TraceRequest("0", 0, 20, 13, (), session="a"),
        TraceRequest("1", 9, 50, 6, (1, 2, 3, 4, 5, 6, 7), session="a", turn=1),
    ]
    named = conversation_ids(Trace("t", turns, hash_block=8), 4)
    assert named[0] == ((), 0)
    assert named[1][1] == 50
