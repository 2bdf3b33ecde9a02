"""Groups of requests: the same for every scheduler, and of all requests."""

from __future__ import annotations

import numpy as np
import pytest
from test_metrics import Log

from nexusbench.metrics.groups import MOST_TENANTS, group
from nexusbench.metrics.run_events import RunEvents


def run(prompts: list[int], *, tenants: list[str] | None = None, slo: float = 0) -> RunEvents:
    """Requests served one after the other, 10 ms each; the last one is cancelled."""
    log = Log()
    for index, prompt in enumerate(prompts):
        log.request(0, prompt=prompt, output=2)
        log.admit(index, 10 * index)
        last = index == len(prompts) - 1
        log.step(2 * index, 10 * index, 10 * index + 4, chunks=((index, prompt),), tokens=(index,))
        if not last:
            log.step(2 * index + 1, 10 * index + 4, 10 * index + 10, decodes=1, tokens=(index,))
        log.end(index, 10 * index + 10, "cancelled" if last else "finished")
    events = log.run(slo={"ttft": slo} if slo else {})
    if tenants:
        events.requests["tenant"] = np.array(tenants, dtype=object)
    return events


def test_quarters_and_the_longest_twentieth() -> None:
    rows = group(run(list(range(100, 2100, 100)), slo=104), "prompt-length")
    assert [row.group for row in rows] == [
        "100 to 500", "600 to 1,000", "1,100 to 1,500", "1,600 to 1,900", "2,000",
    ]  # fmt: skip
    assert [row.offered for row in rows] == [5, 5, 5, 4, 1]
    assert [row.missed for row in rows] == [0, 0, 0, 0, 1]
    # TTFT is 4 ms after the place in the queue; only the first eleven are in time.
    assert [row.attainment for row in rows] == [100, 100, 20, 0, 0]
    assert rows[0].ttft.mean == pytest.approx(4 + 20)
    assert rows[0].tbt.p99 == pytest.approx(6)
    assert rows[4].tbt.n == 0


def test_equal_prompts_are_one_group() -> None:
    (row,) = group(run([64] * 9), "prompt-length")
    assert (row.group, row.offered, row.attainment) == ("64", 9, None)


def test_tenants_by_size_and_small_ones_together() -> None:
    names = [f"t{i}" for i in range(20)]
    rows = group(run([10] * 23, tenants=["big", "big", "", *names]), "tenant")
    assert (rows[0].group, rows[0].offered) == ("big", 2)
    assert rows[1].group == "(none)"
    assert len(rows) == MOST_TENANTS + 1
    assert (rows[-1].group, rows[-1].offered) == ("10 others", 10)
    assert sum(row.offered for row in rows) == 23


def test_first_tokens_are_timed_from_each_request_s_arrival() -> None:
    log = Log()
    for index, arrival in enumerate((0, 50)):
        log.request(arrival, prompt=64, output=1)
        log.step(index, arrival + 2, arrival + 7, chunks=((index, 64),), tokens=(index,))
        log.end(index, arrival + 7)
    (row,) = group(log.run(), "prompt-length")
    assert (row.ttft.n, row.ttft.mean, row.ttft.max) == (2, pytest.approx(7), pytest.approx(7))
