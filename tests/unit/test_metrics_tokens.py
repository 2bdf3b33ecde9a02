"""The chunked reading of tokens equals the obvious one, wherever the chunks end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.metrics import arrays


def naive(requests, times, size):
    """Dictionaries and lists."""
    before, first, gaps, owners = {}, {}, [], []
    for request, time in zip(requests, times, strict=True):
        if request in before:
            gaps.append(time - before[request])
            owners.append(request)
        first.setdefault(request, time)
        before[request] = time
    count = [requests.count(i) for i in range(size)]
    last = [before.get(i, -1) for i in range(size)]
    return count, [first.get(i, -1) for i in range(size)], last, gaps, owners


steps = st.lists(st.lists(st.integers(0, 6), max_size=6, unique=True), max_size=30)


@given(steps=steps, chunk=st.integers(1, 9), long=st.booleans())
def test_chunks_do_not_show(steps, chunk, long):
    counts = np.array([len(step) for step in steps], dtype=np.int64)
    scale = 2**33 if long else 7
    times = np.arange(len(steps), dtype=np.int64) ** 2 * scale
    requests = np.array([r for step in steps for r in step], dtype=np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "CHUNK", chunk)
        got = arrays.read_tokens(lambda: iter([requests]), times, counts, 7)
        owners = arrays.gap_owners(lambda: iter([requests]), 7)
    want = naive(requests.tolist(), np.repeat(times, counts).tolist(), 7)
    assert got.number.tolist() == want[0]
    assert got.first.tolist() == want[1]
    assert got.last.tolist() == want[2]
    assert got.gaps.tolist() == want[3]
    assert owners.tolist() == want[4]


def test_small_gaps_take_four_bytes():
    requests = np.zeros(5, dtype=np.int32)
    times = np.arange(5, dtype=np.int64) * 1_000_000
    got = arrays.read_tokens(lambda: iter([requests]), times, np.ones(5, dtype=np.int64), 1)
    assert got.gaps.dtype == np.uint32


def test_many_gaps_are_read_again_and_converted_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from nexusbench.core.events import EventLog
    from nexusbench.metrics import latency, run_events

    log = EventLog()
    for request in (0, 1):
        log.tables["arrived"].row(request, 0, 5, 9)
    for step in range(40):
        log.tables["submitted"].row(step, step * 10**6, 0, 8, 2, 0, 0, 0, -1, 0, 2, 0, 0)
        log.tables["step_done"].row(step, (step + 1) ** 2 * 10**6, -1, 2)
        log.tables["token"].columns["request"].extend([0, 1])
    columns = {name: [0, 1] for name in ("request", "prompt_tokens", "output_tokens", "max_tokens")}
    columns |= {"id": ["a", "b"], "tenant": ["", ""], "arrival": [0, 0]}
    facts = {
        "simulated": True,
        "num_sms": 8,
        "kv_blocks": 9,
        "block_size": 16,
        "partitions": ["all"],
    }
    want = latency.TimeBetweenTokens().values(run_events.RunEvents.from_log(log, columns, facts))
    for module in (latency, run_events):
        monkeypatch.setattr(module, "MANY", 16)
    run = run_events.RunEvents.from_log(log, columns, facts)
    for _ in range(2):  # the first conversion must not spoil the second
        assert latency.TimeBetweenTokens().values(run).tolist() == pytest.approx(want.tolist())
