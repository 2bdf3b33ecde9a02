"""MFU and MBU on logs small enough to compute by hand."""

from __future__ import annotations

import pytest

from nexusbench.core.events import EventLog, RunFacts
from nexusbench.core.work import Work
from nexusbench.metrics.base import load_metrics
from nexusbench.metrics.run_events import RunEvents

MS = 1_000_000
METRICS = load_metrics()
# Distinct powers of ten, so that every part can be read off the sum.
WORK = Work(
    token_flops=1.0, head_flops=1e3, pair_flops=1e6,
    weight_bytes=1.0, head_bytes=1e3, kv_bytes=1e6,
    peak_flops=1e9, peak_bytes=1e9,
)  # fmt: skip


def run(
    steps: list[dict], requests: int = 3, work: Work | None = WORK, warmup: int = 0
) -> RunEvents:
    """Steps with ``begin``, ``ends`` (ms), ``decodes``, ``context``, ``chunks``, ``made``."""
    log = EventLog()
    for index in range(requests):
        log.tables["arrived"].row(index, 0, 10, 9)
    for step, s in enumerate(steps):
        chunks = s.get("chunks", [])
        log.tables["submitted"].row(
            step, s["begin"] * MS, 0, 4, s.get("decodes", 0), s.get("context", 0), len(chunks),
            sum(tokens for _, tokens, _ in chunks), -1, 0, 0, 0, 0,
        )  # fmt: skip
        for request, tokens, context in chunks:
            log.tables["chunk"].row(step, request, tokens, context)
        for end, made in zip(s["ends"], s["made"], strict=True):
            log.tables["step_done"].row(step, end * MS, -1, made)
            log.tables["token"].columns["request"].extend([0] * made)
    columns = {
        "request": list(range(requests)), "id": [str(i) for i in range(requests)],
        "tenant": [""] * requests, "arrival": [0] * requests, "prompt_tokens": [10] * requests,
        "output_tokens": [9] * requests, "max_tokens": [9] * requests,
    }  # fmt: skip
    facts = RunFacts(False, 4, 100, 16, ("all",), ((4,),), work=work, warmup_ns=warmup * MS)
    return RunEvents.from_log(log, columns, facts)


def shares(events: RunEvents) -> tuple[float, float]:
    """FLOPs and bytes that the two metrics stand for."""
    seconds = events.busy.length / 1e9
    return tuple(METRICS[tag].value(events) / 100 * 1e9 * seconds for tag in ("mfu", "mbu"))


def test_a_prompt_in_two_chunks() -> None:
    events = run(
        [
            {"begin": 0, "ends": [4], "made": [0], "chunks": [(0, 6, 0)]},
            {"begin": 4, "ends": [10], "made": [1], "chunks": [(0, 4, 6)]},
        ]
    )
    # 6 tokens see 21 pairs; 4 more after 6 see 34. Keys read: 6, then 10; written: 10.
    assert shares(events) == pytest.approx((10 + 1e3 + 1e6 * 55, 2 + 1e3 + 1e6 * 26))


def test_decode_steps_in_one_launch_see_more_each() -> None:
    events = run([{"begin": 0, "ends": [3, 6, 9], "made": [2, 2, 2], "decodes": 2, "context": 30}])
    keys = 32 + 34 + 36
    assert shares(events) == pytest.approx((6 + 6e3 + 1e6 * keys, 3 + 3e3 + 1e6 * (keys + 6)))


def test_the_warm_up_does_not_count() -> None:
    steps = [
        {"begin": 0, "ends": [4], "made": [1], "decodes": 1, "context": 5},
        {"begin": 5, "ends": [9], "made": [1], "decodes": 1, "context": 6},
    ]
    assert METRICS["mfu"].value(run(steps, warmup=1)) is None  # nobody arrived after it
    log = run(steps)
    assert shares(log)[0] == pytest.approx(2 + 2e3 + 1e6 * 13)


def test_none_with_a_reason() -> None:
    nothing = run([])
    assert METRICS["mfu"].value(nothing) is None
    assert METRICS["mfu"].reason(nothing) == "nothing was computed"
    simulated = run([{"begin": 0, "ends": [4], "made": [1], "decodes": 1}], work=None)
    assert METRICS["mbu"].value(simulated) is None
    assert "are not known" in METRICS["mbu"].reason(simulated)
    pieces = run(
        [
            {"begin": 0, "ends": [4], "made": [0], "chunks": [(1, 6, 0)]},
            {"begin": 4, "ends": [8], "made": [1], "chunks": [(1, 6, 0)]},
        ]
    )
    assert METRICS["mfu"].value(pieces) is None
    assert "layer by layer" in METRICS["mfu"].reason(pieces)
