"""Servers whose streams are odd, replayed: what is measured of them is right, or has no value.

Six requests of ten tokens. Times are compared with each other, never with the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nexusbench.metrics.at_once import came_at_once
from nexusbench.results.reader import RunReader
from nexusbench.runner import RunResult

Send = Callable[..., RunResult]
Serve = Callable[..., Any]
COUNT, TOKENS = 6, 10
LINES = [
    {"timestamp": 15 * index, "input_length": 20 + index, "output_length": TOKENS}
    for index in range(COUNT)
]


@pytest.fixture
def measure(serve: Serve, send: Send) -> Callable[..., RunResult]:
    """The run of a server with one way."""

    def run(way: str, *options: object, delay_ms: float = 5, **config: Any) -> RunResult:
        served = serve("--behaviours", way, "--delay-ms", delay_ms, *options)
        return send(served, LINES, **config)

    return run


def entry(result: RunResult, tag: str) -> dict[str, Any]:
    found: dict[str, Any] = result.summary["metrics"][tag]
    return found


def warnings(result: RunResult) -> str:
    return " ".join(result.resolved["client"]["warnings"])


def check_pace(result: RunResult) -> None:
    """All tokens came, one after the other, and nothing but their times is in TPOT and TBT."""
    events = result.events
    assert events.num_output_tokens.tolist() == [TOKENS] * COUNT
    assert entry(result, "finished")["value"] == COUNT
    pace = (events.last_token - events.first_token) / (TOKENS - 1)
    assert entry(result, "tpot")["mean"] == pytest.approx(float(np.mean(pace)) / 1e6)
    assert entry(result, "tpot")["n"] == COUNT
    assert entry(result, "tbt")["min"] > 0
    # The first token is the first to come: its nine fellows took longer than a moment.
    assert (events.first_token - events.arrival < events.ended - events.arrival).all()
    assert (pace > 1e6).all()


def test_an_abort_is_a_failure_with_its_reason(measure: Callable[..., RunResult]) -> None:
    result = measure("ends_abort", goodput={"ttft": 60_000})
    assert entry(result, "failed")["value"] == COUNT
    assert entry(result, "attainment")["value"] == 0
    assert "ended by the server: abort" in result.events.facts.strings
    # What came before is kept.
    assert result.events.num_output_tokens.tolist() == [TOKENS // 2] * COUNT


@pytest.mark.parametrize(
    "way",
    [
        "zero_usage_until_the_end", "zero_usage", "falling_usage", "constant_usage",
        "whole_usage_at_once", "rare_usage", "text_usage", "negative_usage", "huge_usage",
        "leaping_usage",
    ],
)  # fmt: skip
def test_usage_that_is_no_count_moves_no_token(measure: Callable[..., RunResult], way: str) -> None:
    result = measure(way)
    check_pace(result)
    (how,) = result.resolved["client"]["counting"]
    assert how.startswith("one a chunk")
    refused = way in ("falling_usage", "constant_usage", "huge_usage", "leaping_usage")
    assert ("cannot be a count" in warnings(result)) == refused
    assert ("no number of tokens" in warnings(result)) == (way in ("text_usage", "negative_usage"))


def test_the_end_of_a_stream_has_no_part_in_the_pace(measure: Callable[..., RunResult]) -> None:
    result = measure("late_end")
    check_pace(result)
    events = result.events
    assert (events.ended - events.last_token > 250e6).all()


@pytest.mark.parametrize("way", ["held_back", "held_back_in_pieces", "one_chunk"])
def test_a_stream_that_is_held_back_has_no_pace(
    measure: Callable[..., RunResult], way: str
) -> None:
    bounds = {"tpot": 60_000.0}
    result = measure(way, delay_ms=0, goodput=bounds)
    assert entry(result, "finished")["value"] == COUNT
    assert came_at_once(result.events).all()
    for tag in ("tbt", "tpot"):
        assert entry(result, tag)["mean"] is None
        assert "came in one delivery" in entry(result, tag)["reason"]
    assert entry(result, "ttft")["n"] == COUNT
    assert entry(result, "attainment")["value"] == 0
    assert "6 of 6 finished answers came in one delivery" in warnings(result)
    assert warnings(result) in " ".join(result.notes)
    # A bound that can be judged is.
    ttft = measure(way, delay_ms=0, goodput={"ttft": 60_000})
    assert entry(ttft, "attainment")["value"] == 100


@pytest.mark.parametrize("way", ["done_only", "stops_without_a_token", "done_after_empty_chunks"])
def test_an_end_without_a_token_is_a_failure(measure: Callable[..., RunResult], way: str) -> None:
    result = measure(way, goodput={"ttft": 60_000, "tpot": 60_000})
    assert entry(result, "failed")["value"] == COUNT
    assert entry(result, "goodput")["value"] == 0
    assert entry(result, "ttft")["n"] == 0


def test_hidden_reasoning_is_no_output(measure: Callable[..., RunResult]) -> None:
    result = measure("hides_reasoning", "--takes", "ids,usage,pin")
    assert result.events.num_output_tokens.tolist() == [TOKENS // 2] * COUNT
    assert "6 answers hid 30 tokens of reasoning" in warnings(result)
    client = result.resolved["client"]
    assert (client["hidden"], client["hidden_tokens"], client["short"]) == (COUNT, 30, COUNT)


def test_shown_reasoning_is_output_and_told(measure: Callable[..., RunResult]) -> None:
    result = measure("shows_reasoning", "--takes", "text,chat,usage,pin", api="chat")
    check_pace(result)
    assert "6 answers began with the model's reasoning" in warnings(result)
    assert result.resolved["client"]["hidden"] == 0


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("cached_beyond_the_prompt", "claimed more cached tokens than the prompt has"),
        ("cached_negative", "no number of tokens"),
        ("cached_text", "no number of tokens"),
        ("cached_broken", "no number of tokens"),
        ("details_are_a_text", "no number of tokens"),
    ],
)
def test_what_cannot_be_cached_is_left_out(
    measure: Callable[..., RunResult], way: str, said: str
) -> None:
    result = measure(way)
    assert entry(result, "finished")["value"] == COUNT
    assert entry(result, "prefix_hit_rate")["value"] is None
    assert said in warnings(result)


def test_warnings_are_kept_and_read_again(
    measure: Callable[..., RunResult], tmp_path: Path
) -> None:
    from nexusbench.comparison.heading import header_lines
    from nexusbench.comparison.view import view_of_reader

    folder = measure("held_back", delay_ms=0).folder
    view = view_of_reader(RunReader(folder))
    said = [text for name, text in header_lines(view, view.resolved) if name == "WARNING"]
    assert len(said) == 1
    assert "came in one delivery" in said[0]
