"""Servers whose streams are odd, replayed: what is measured of them is right, or has no value.

Six requests of ten tokens. Times are compared with each other, never with the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from nexusbench.comparison.heading import header_lines
from nexusbench.comparison.view import view_of_reader
from nexusbench.metrics.latency import came_at_once
from nexusbench.metrics.run_events import RunEvents
from nexusbench.metrics.summary import summarise
from nexusbench.results.reader import RunReader
from nexusbench.serving.runner import RunResult

Send = Callable[..., RunResult]
Serve = Callable[..., Any]
COUNT, TOKENS = 6, 10


@pytest.fixture
def measure(serve: Serve, send: Send) -> Callable[..., RunResult]:
    """The run of a server with these ways: requests have them in turn."""

    def run(
        *ways: str, options: Sequence[object] = (), delay_ms: float = 5, requests: int = COUNT,
        **config: Any,
    ) -> RunResult:  # fmt: skip
        words = ["--behaviours", ",".join(ways), "--by", "prompt", "--delay-ms", delay_ms]
        served = serve(*words, *options)
        lines = [
            {"timestamp": 15 * i, "input_length": 20 * len(ways) + i, "output_length": TOKENS}
            for i in range(requests)
        ]
        return send(served, lines, **config)

    return run


def entry(result: RunResult, tag: str) -> dict[str, Any]:
    found: Any = result.summary.metrics[tag]
    return found


def warnings(result: RunResult) -> str:
    return " ".join(result.resolved.client.warnings)


def check_pace(result: RunResult) -> None:
    """All tokens came, one after the other, and nothing but their times is in TPOT and TBT."""
    events = result.events
    number = events.num_requests
    assert events.num_output_tokens.tolist() == [TOKENS] * number
    assert entry(result, "finished").value == number
    pace = (events.last_token - events.first_token) / (TOKENS - 1)
    assert entry(result, "tpot").mean == pytest.approx(float(np.mean(pace)) / 1e6)
    assert entry(result, "tpot").n == number
    assert entry(result, "tbt").min > 0
    # The first token is the first to come: its nine fellows took longer than a moment.
    assert (events.first_token - events.arrival < events.ended - events.arrival).all()
    assert (pace > 1e6).all()


def test_an_abort_is_a_failure_with_its_reason(measure: Callable[..., RunResult]) -> None:
    result = measure("ends_abort", goodput={"ttft": 60_000})
    assert entry(result, "failed").value == COUNT
    assert entry(result, "attainment").value == 0
    assert "ended by the server: abort" in result.events.facts.strings
    # What came before is kept.
    assert result.events.num_output_tokens.tolist() == [TOKENS // 2] * COUNT


def test_usage_that_is_no_count_moves_no_token(measure: Callable[..., RunResult]) -> None:
    refused = ("falling_usage", "constant_usage", "huge_usage", "leaping_usage")
    ways = (
        "zero_usage_until_the_end", "zero_usage", "whole_usage_at_once", "rare_usage",
        "text_usage", "negative_usage", "broken_usage", *refused,
    )  # fmt: skip
    result = measure(*ways, requests=len(ways))
    check_pace(result)
    counting = result.resolved.client.counting
    assert all(how.startswith("one a chunk") for how in counting)
    assert counting["one a chunk, for the usage cannot be a count of them"] == len(refused)
    assert "the usage of 4 answers cannot be a count" in warnings(result)
    assert "3 answers counted with what is no number of tokens" in warnings(result)


@pytest.mark.slow
def test_the_end_of_a_stream_has_no_part_in_the_pace(measure: Callable[..., RunResult]) -> None:
    result = measure("late_end")
    check_pace(result)
    events = result.events
    assert (events.ended - events.last_token > 250e6).all()


@pytest.mark.slow
def test_a_stream_that_is_held_back_has_no_pace(measure: Callable[..., RunResult]) -> None:
    ways = ("held_back", "held_back_in_pieces", "one_chunk")
    result = measure(*ways, delay_ms=0, goodput={"tpot": 60_000})
    assert entry(result, "finished").value == COUNT
    assert came_at_once(result.events).all()
    for tag in ("tbt", "tpot"):
        assert entry(result, tag).mean is None
        assert "came in one delivery" in entry(result, tag).reason
    assert entry(result, "ttft").n == COUNT
    assert entry(result, "attainment").value == 0
    assert "6 of 6 finished answers came in one delivery" in warnings(result)
    assert warnings(result) in " ".join(result.notes)
    # A bound that can be judged is.
    reader = RunReader(result.folder)
    for key, kept in (("ttft", 100), ("e2e", 100), ("tbt", 0)):
        summary = summarise(RunEvents.from_reader(reader, slo={key: 60_000}))
        assert summary.metrics["attainment"].value == kept
    # And what is read again is warned of again.
    view = view_of_reader(reader)
    said = [text for name, text in header_lines(view, view.resolved) if name == "WARNING"]
    assert said == result.resolved.client.warnings


@pytest.mark.slow
def test_an_end_without_a_token_is_a_failure(measure: Callable[..., RunResult]) -> None:
    ways = ("done_only", "stops_without_a_token", "done_after_empty_chunks")
    result = measure(*ways, goodput={"ttft": 60_000, "tpot": 60_000})
    assert entry(result, "failed").value == COUNT
    assert entry(result, "goodput").value == 0
    assert entry(result, "ttft").n == 0


def test_hidden_reasoning_is_no_output(measure: Callable[..., RunResult]) -> None:
    result = measure("hides_reasoning", options=["--takes", "ids,usage,pin"])
    assert result.events.num_output_tokens.tolist() == [TOKENS // 2] * COUNT
    assert "6 answers hid 30 tokens of reasoning" in warnings(result)
    client = result.resolved.client
    assert (client.hidden, client.hidden_tokens, client.short) == (COUNT, 30, COUNT)


@pytest.mark.slow
def test_shown_reasoning_is_output_and_told(measure: Callable[..., RunResult]) -> None:
    options = ["--takes", "text,chat,usage,pin"]
    result = measure("shows_reasoning", options=options, api="chat")
    check_pace(result)
    assert "6 answers began with the model's reasoning" in warnings(result)
    assert result.resolved.client.hidden == 0


@pytest.mark.slow
def test_what_cannot_be_cached_is_left_out(measure: Callable[..., RunResult]) -> None:
    ways = ("cached_negative", "cached_text", "cached_broken", "cached_true", "details_are_a_text")
    result = measure("cached_beyond_the_prompt", *ways)
    assert entry(result, "finished").value == COUNT
    assert entry(result, "prefix_hit_rate").value is None
    assert "1 answer claimed more cached tokens than the prompt has" in warnings(result)
    assert "5 answers counted with what is no number of tokens" in warnings(result)
    assert result.resolved.client.cached_tokens == 0
