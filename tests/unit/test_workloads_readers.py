"""BurstGPT and Qwen-Bailian, from small files written to their published schemas; conversions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nexusbench.core.errors import InputError, UsageError
from nexusbench.workloads.base import Trace, TraceRequest
from nexusbench.workloads.convert import convert
from nexusbench.workloads.statistics import describe_trace, prefix_ceiling
from nexusbench.workloads.trace import load_trace, prefix_ids

BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURST_12 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
)


def save(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_burstgpt_release_1(tmp_path: Path) -> None:
    rows = (
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45.5,ChatGPT,1087,230,1317,Conversation log\n"
        "118,GPT-4,417,0,417,API log\n"
        "120,GPT-4,417,276,693,API log\n"
    )
    trace = load_trace(save(tmp_path / "b.csv", BURST + rows))
    assert trace.format == "burstgpt"
    found = [
        (r.id, r.arrival_ns, r.prompt_tokens, r.output_tokens, r.tenant) for r in trace.requests
    ]
    assert found == [
        ("0", 0, 472, 18, "ChatGPT"),
        ("1", 40_500_000_000, 1087, 230, "ChatGPT"),
        ("3", 115_000_000_000, 417, 276, "GPT-4"),
    ]
    assert "1 rows without response tokens (failures) skipped" in trace.notes
    assert "first arrival, 5 s in the file, is time 0" in trace.notes


def test_burstgpt_release_1_2_has_sessions(tmp_path: Path) -> None:
    rows = (
        "1,u1,3.2,ChatGPT,10,5,15,Conversation log\n"
        "2,u2,0.5,ChatGPT,10,5,15,Conversation log\n"
        "9,u1,1.0,ChatGPT,30,5,35,Conversation log\n"
        "9,,1.0,GPT-4,30,5,35,API log\n"
    )
    trace = load_trace(save(tmp_path / "b.csv", BURST_12 + rows))
    assert [(r.session, r.turn) for r in trace.requests] == [
        ("u1", 0),
        ("u2", 0),
        ("u1", 1),
        ("", 0),
    ]
    assert not any(r.follows for r in trace.requests)
    assert "2 sessions, replayed at their own timestamps (open loop)" in trace.notes


@pytest.mark.parametrize(
    ("text", "line", "field", "says"),
    [
        (BURST + "x,ChatGPT,1,2,3,API log\n", 2, "Timestamp", "no number of seconds"),
        (BURST + "1,ChatGPT,1.5,2,3,API log\n", 2, "Request tokens", "whole number"),
        (BURST + "1,ChatGPT,1\n", 2, "Response tokens", "3 columns instead of 6"),
        (BURST + "9,A,1,2,3,API log\n8,A,1,2,3,API log\n", 3, "Timestamp", "goes back from 9 s"),
        (BURST.replace("Log Type", "Logtype"), 1, "Logtype", "Did you mean 'Log Type'"),
        (BURST.replace(",Log Type", ""), 1, "Log Type", "missing column"),
        (BURST.replace("Log Type", "Model"), 1, "Model", "two columns"),
    ],
)
def test_burstgpt_faults(text: str, line: int, field: str, says: str, tmp_path: Path) -> None:
    path = save(tmp_path / "b.csv", text)
    with pytest.raises(InputError, match=says) as caught:
        load_trace(path)
    assert (caught.value.line, caught.value.field) == (line, field)


def chat(chat_id: int, parent: int, time: float, length: int, **other: Any) -> dict[str, Any]:
    blocks = -(-length // 16)
    return {
        "chat_id": chat_id, "parent_chat_id": parent, "timestamp": time, "input_length": length,
        "output_length": 7, "type": "text", "turn": 1, "hash_ids": list(range(blocks)), **other,
    }  # fmt: skip


def save_chats(path: Path, *chats: dict[str, Any]) -> Path:
    return save(path, "\n".join(json.dumps(fields) for fields in chats) + "\n")


def test_bailian(tmp_path: Path) -> None:
    trace = load_trace(
        save_chats(
            tmp_path / "q.jsonl",
            chat(10, -1, 0.5, 20),
            chat(11, -1, 0.75, 16, type="search"),
            chat(12, 10, 61.114, 50, turn=2),
            chat(13, 10, 62, 50, turn=2),  # branches off the same chat
            chat(14, 12, 63, 80, turn=3),
            chat(15, 99, 64, 80, turn=9),  # its parent is not in the file
            chat(16, -1, 65, 80, output_length=0),
        )
    )
    assert (trace.format, trace.hash_block) == ("qwen-bailian", 16)
    assert [(r.id, r.session, r.turn) for r in trace.requests] == [
        ("10", "10", 0), ("11", "11", 0), ("12", "10", 1), ("13", "13", 0), ("14", "10", 2),
        ("15", "15", 0),
    ]  # fmt: skip
    assert [r.arrival_ns for r in trace.requests[:3]] == [0, 250_000_000, 60_614_000_000]
    assert not any(r.follows for r in trace.requests)
    assert {r.tenant for r in trace.requests} == {"text", "search"}
    said = "; ".join(trace.notes)
    for words in ("timestamps in s", "open loop", "1 turns branch off", "1 turns go on with a chat",
                  "1 rows without output tokens skipped"):  # fmt: skip
        assert words in said


def test_bailian_sorts_and_completes_ids(tmp_path: Path) -> None:
    trace = load_trace(
        save_chats(
            tmp_path / "q.jsonl",
            chat(1, -1, 9, 40, hash_ids=[4, 5]),  # whole blocks only
            chat(2, -1, 3, 5, hash_ids=[]),
        )
    )
    assert [r.id for r in trace.requests] == ["2", "1"]
    assert trace.requests[1].hash_ids[:2] == (4, 5)
    assert len(trace.requests[1].hash_ids) == 3
    assert "sorted" in "; ".join(trace.notes)


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"timestamp": -1}, "timestamp", "number of seconds"),
        ({"hash_ids": [1]}, "hash_ids", "5 blocks of 16"),
        ({"zzz": 1}, "zzz", "unknown field"),
        ({"parent_chat_id": "no"}, "parent_chat_id", "-1 for a first turn"),
    ],
)
def test_bailian_faults(change: dict[str, Any], field: str, says: str, tmp_path: Path) -> None:
    path = save_chats(tmp_path / "q.jsonl", chat(1, -1, 0, 80), chat(2, -1, 1, 80, **change))
    with pytest.raises(InputError, match=says) as caught:
        load_trace(path)
    assert (caught.value.line, caught.value.field) == (2, field)


def requests(**fields: Any) -> list[TraceRequest]:
    return [
        TraceRequest(str(i), 1_500_100 * i, 40 + i, 5, tuple(range(3)), **fields) for i in range(4)
    ]


def write(folder: Path, trace: Trace, target: str) -> tuple[Trace, list[str]]:
    content, told = convert(trace, target)
    path = folder / f"out-{target}"
    path.write_bytes(content)
    again = load_trace(path)
    assert again.format == target
    return again, told


def test_convert_tells_what_it_drops(tmp_path: Path) -> None:
    trace = Trace("t", requests(tenant="a", timeout_ns=5, session="s"), hash_block=16)
    native, told = write(tmp_path, Trace("t", requests(tenant="a"), hash_block=16), "native")
    assert (native.requests, told) == (requests(tenant="a"), [])
    azure, told = write(tmp_path, trace, "azure")
    assert [r.arrival_ns for r in azure.requests] == [1_500_100 * i for i in range(4)]
    assert told == [
        "hash ids of 4 requests dropped", "tenants of 4 requests dropped",
        "sessions of 4 requests dropped", "timeouts of 4 requests dropped",
    ]  # fmt: skip
    mooncake, told = write(tmp_path, trace, "mooncake")
    assert [r.arrival_ns for r in mooncake.requests] == [0, 2_000_000, 3_000_000, 5_000_000]
    assert [len(r.hash_ids) for r in mooncake.requests] == [1] * 4
    assert "3 timestamps rounded to whole milliseconds" in told
    assert "32 hash blocks of 16 tokens became one of 512" in told


def test_mooncake_blocks_are_shared_where_all_of_them_is(tmp_path: Path) -> None:
    same, other = tuple(range(80)), (*range(40), *range(900, 940))
    made = [TraceRequest(str(i), 0, 1280, 5, ids) for i, ids in enumerate((same, other, same[:80]))]
    mooncake, _ = write(tmp_path, Trace("t", made, hash_block=16), "mooncake")
    first, second, third = prefix_ids(mooncake, 512)
    assert first == third
    assert first[0] == second[0]  # the first 512 tokens are the same, the next are not
    assert not set(first[1:]) & set(second[1:])
    none, told = write(tmp_path, Trace("t", [TraceRequest("0", 0, 600, 1)]), "mooncake")
    assert len(none.requests[0].hash_ids) == 2
    assert "share nothing" in told[0]


def test_formats_with_fixed_times_cannot_hold_sessions() -> None:
    follows = TraceRequest("1", 0, 5, 5, session="s", turn=1, follows=True)
    trace = Trace("t", [TraceRequest("0", 0, 5, 5, session="s"), follows])
    for target in ("azure", "mooncake"):
        with pytest.raises(UsageError, match="wait for an earlier one"):
            convert(trace, target)
        with pytest.raises(UsageError, match="closed loop of 2 users"):
            convert(Trace("t", trace.requests[:1], concurrency=2), target)
    with pytest.raises(UsageError, match="no multiple of"):
        convert(Trace("t", requests(), hash_block=48), "mooncake")
    with pytest.raises(UsageError, match="Did you mean 'azure'"):
        convert(trace, "azur")


def test_dispersion_is_the_variance_over_the_mean_of_whole_windows() -> None:
    """Three requests in a second and one in the next; what is after the last whole one is left
    out.
    """
    times = [second + k / 10 for second in range(20) for k in range(1 if second % 2 else 3)]
    arrivals = [round(time * 1e9) for time in [*times, 20.0, 20.1, 20.2, 20.3]]
    facts = describe_trace(
        Trace("t", [TraceRequest(str(i), ns, 5, 5) for i, ns in enumerate(arrivals)])
    )
    assert facts.arrivals is not None
    assert facts.arrivals.dispersion == {"1s": pytest.approx(1 / 2), "10s": None, "60s": None}


def data(name: str) -> Path:
    folder = os.environ.get("NEXUSBENCH_DATA", "")
    path = Path(folder) / "traces" / name
    if not folder or not path.is_file():
        pytest.skip(f"{name} is not on this machine (set NEXUSBENCH_DATA)")
    return path


@pytest.mark.slow
def test_statistics_of_real_traces_are_the_published_ones() -> None:
    """Burstiness and reuse as computed by others from the same files."""
    mooncake = load_trace(data("mooncake-conversation.jsonl.gz"))
    facts = describe_trace(mooncake)
    assert facts.arrivals.gap_cv == pytest.approx(3.03, abs=0.01)
    assert facts.arrivals.dispersion["10s"] == pytest.approx(2.1, abs=0.05)
    assert facts.input_per_output == pytest.approx(35.1, abs=0.1)
    ceiling = prefix_ceiling(mooncake)
    assert ceiling is not None
    assert ceiling.blocks == pytest.approx(36.6, abs=0.05)
    azure = describe_trace(load_trace(data("azure-2023-conv.csv.gz")))
    assert azure.arrivals.rate == pytest.approx(5.53, abs=0.01)
    assert azure.arrivals.dispersion["60s"] == pytest.approx(16, abs=0.2)
    assert azure.prefixes is None
