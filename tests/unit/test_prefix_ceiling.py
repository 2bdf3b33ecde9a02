"""The prefix ceiling of ``trace show``: no run finds more of its prompts in the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusbench.cli.main import main
from nexusbench.core.state import Limits
from nexusbench.serving.assembly import make_requests
from nexusbench.testing import serve
from nexusbench.testing._harness import Setting
from nexusbench.workloads import transform
from nexusbench.workloads.base import Trace, TraceRequest
from nexusbench.workloads.statistics import prefix_ceiling
from tests.examples import examples

MS = 1_000_000


def hits(
    trace: Trace, block_size: int, scheduler: str = "vllm", kv_blocks: int = 4096, seqs: int = 4
) -> float:
    """Percent of the prompt tokens that a run found, each request at its first admission."""
    setting = Setting(
        kv_blocks=kv_blocks, block_size=block_size, hash_block=trace.hash_block,
        limits=Limits(seqs, 64, 1024), concurrency=trace.concurrency,
    )  # fmt: skip
    engine = serve(make_requests(transform.bounds(trace), block_size), scheduler, setting=setting)
    admitted = engine.log.tables["admitted"].columns
    first: dict[int, int] = {}
    for index, cached in zip(admitted["request"], admitted["cached_tokens"], strict=True):
        first.setdefault(int(index), int(cached))
    prompts = sum(request.prompt_tokens for request in trace.requests)
    return 100 * sum(first.values()) / prompts


def ceiling(trace: Trace) -> float:
    found = prefix_ceiling(trace)
    assert found is not None
    return float(found.tokens)


def test_a_run_with_small_blocks_finds_parts_of_a_hash_block() -> None:
    """600 tokens are two hash blocks of 512; the second, begun one is found in blocks of 16."""
    requests = [TraceRequest(str(i), i * 10_000 * MS, 600, 2, (7, 8)) for i in range(2)]
    trace = Trace("t", requests, hash_block=512)
    assert hits(trace, 8) == 100 * 592 / 1200
    assert ceiling(trace) == 100 * 599 / 1200


def test_the_screen_says_what_the_ceiling_is_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the longest request rejected, a run's share is of the others only, and higher."""
    line = '{"timestamp": %d, "input_length": %d, "output_length": 2, "hash_ids": %s}\n'
    rows = [(0, 512, [1]), (9000, 512, [1]), (18000, 512 * 200, list(range(9, 209)))]
    (tmp_path / "t.jsonl").write_text("".join(line % row for row in rows))
    assert main(["trace", "show", str(tmp_path / "t.jsonl")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "0.5 % of the prompt tokens where all requests are served" in shown
    assert "a run that rejects some counts the others only" in shown


def test_another_order_than_the_trace_s_can_find_more() -> None:
    """Shortest prompt first: the 16 tokens are there when the 40 that begin with them come."""
    requests = [
        TraceRequest("0", 0, 200, 2),
        TraceRequest("1", MS, 40, 2, (1, 2, 3, 4, 5)),
        TraceRequest("2", MS, 16, 2, (1, 2)),
    ]
    trace = Trace("t", requests, hash_block=8)
    assert hits(trace, 1, "vllm:order=spf", seqs=1) == 100 * 16 / 256
    assert ceiling(trace) == 100 * 16 / 256


def test_what_nobody_shares_has_a_ceiling_of_zero() -> None:
    requests = [TraceRequest(str(i), 0, 20, 2, (2 * i, 2 * i + 1)) for i in range(3)]
    assert ceiling(Trace("t", requests, hash_block=16)) == 0
    assert prefix_ceiling(Trace("t", [TraceRequest("0", 0, 20, 2)])) is None


@st.composite
def traces(draw: st.DrawFn) -> tuple[Trace, int]:
    """Prompts that begin alike and end anywhere, alone and in sessions, and a block size."""
    block = draw(st.sampled_from([1, 4, 8, 24]))
    requests: list[TraceRequest] = []
    now, turns = 0, {"a": 0, "b": 0}
    lengths: dict[str, tuple[int, tuple[int, ...]]] = {}
    for index in range(draw(st.integers(1, 12))):
        now += draw(st.sampled_from([0, 0, 3, 500])) * MS
        output = draw(st.integers(1, 30))
        session = draw(st.sampled_from(["", "", "a", "b"]))
        before, ids = lengths.get(session, (0, ()))
        prompt = before + draw(st.integers(1, 60))
        count = -(-prompt // block)
        shared = draw(st.sampled_from([0, count // 2, count, count]))
        # A later turn goes on from the prompt and the answer before, as generated ones do.
        whole = ids[: before // block] if session else ()
        other = 100 * index if draw(st.booleans()) else 0
        rest = [i if i < shared else other + 50 + i for i in range(count)]
        names = (*whole, *rest[len(whole) :])
        follows = bool(session) and turns[session] > 0
        requests.append(
            TraceRequest(
                str(index), now, prompt, output, names, session=session,
                turn=turns.get(session, 0), follows=follows, think_ns=MS if follows else 0,
            )
        )  # fmt: skip
        if session:
            turns[session] += 1
            filled = range(10_000 * (index + 1), 10_000 * (index + 1) + 200)
            lengths[session] = (prompt + output, (*names[: prompt // block], *filled))
    for request in requests:
        if request.follows:
            first = next(r for r in requests if r.session == request.session)
            request.arrival_ns = first.arrival_ns
    sizes = [size for size in (1, 2, 4, 8, 24) if block % size == 0]
    return Trace("t", requests, hash_block=block), draw(st.sampled_from(sizes))


@settings(max_examples=examples(60), deadline=None)
@given(
    traces(),
    st.sampled_from(["vllm", "vllm:order=spf", "sglang:order=lpm", "nexus", "fastserve"]),
    st.sampled_from([1, 30]),
    st.sampled_from([1, 4]),
)
def test_no_run_is_above_the_ceiling(
    made: tuple[Trace, int], scheduler: str, room: int, seqs: int
) -> None:
    trace, block_size = made
    longest = max(r.prompt_tokens + r.output_tokens for r in trace.requests)
    blocks = room * (-(-longest // block_size) + 2)
    assert hits(trace, block_size, scheduler, blocks, seqs) <= ceiling(trace) + 1e-9
