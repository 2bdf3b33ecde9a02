"""A server's usage moves tokens only where it is a count of them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusbench.core.request import Request
from nexusbench.endpoint.counting import Counted
from nexusbench.endpoint.exchange import Exchange
from nexusbench.endpoint.recording import ReplayRecording
from nexusbench.endpoint.stream import Answer, BadEnd, Endless
from tests.examples import examples

ONE_EACH = [(time, 1) for time in range(10)]


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def word(text: str = " word", **more: object) -> dict[str, Any]:
    return {"choices": [{"text": text, "finish_reason": None}], **more}


def answer(counts: Sequence[object], last: object = None, text: str = " word") -> Answer:
    """Words at the times 0, 1, 2 ... with a usage each (None for none), and one at the end."""
    found = Answer()
    for time, count in enumerate(counts):
        usage = {} if count is None else {"usage": {"completion_tokens": count}}
        found.feed(event(word(text, **usage)), time)
    if last is not None:
        found.feed(event({"choices": [], "usage": {"completion_tokens": last}}), len(counts))
    found.feed(b"data: [DONE]\n\n", len(counts))
    return found


@pytest.mark.parametrize(
    ("counts", "last", "how"),
    [
        (list(range(1, 11)), 10, "each"),
        (list(range(1, 11)), None, "each"),
        ([None] * 10, 10, "end"),
        ([None] * 10, None, "none"),
        ([0] * 10, 10, "end"),
        ([0] * 10, 0, "none"),
        ([0] * 10, None, "none"),
        ([10] * 10, 10, "end"),
        ([5] * 5 + [10] * 5, 10, "end"),
        (list(range(10, 0, -1)), None, "refused"),
        (list(range(10, 0, -1)), 10, "end"),
        (list(range(30, 20, -1)), None, "refused"),
        ([1] * 10, 1, "refused"),
        ([7] * 10, None, "refused"),
        ([1, 2, 3, 4, 5, 1000, 1001, 1002, 1003, 1004], None, "refused"),
        ([10**15] * 10, None, "refused"),
        ([None] * 10, 10**15, "refused"),
        ([None] * 10, 1, "refused"),  # fifty signs are no single token
        (["1"] * 10, "10", "none"),
        ([-1] * 10, -10, "none"),
        ([True] * 10, True, "none"),
        ([1.5] * 10, 10.0, "end"),
        ([[1]] * 10, {"a": 1}, "none"),
    ],
)
def test_a_count_that_is_none_moves_no_token(counts: list[object], last: object, how: str) -> None:
    assert answer(counts, last).tokens(10) == Counted(ONE_EACH, how, 0)


@pytest.mark.parametrize(
    ("counts", "last", "steps", "how"),
    [
        # Several tokens a chunk, as with speculative decoding.
        ([3, 6, 7], 7, [(0, 3), (1, 3), (2, 1)], "each"),
        # The last token has no text, and only the usage at the end knows of it.
        ([1, 2, 3], 4, [(0, 1), (1, 1), (2, 2)], "each"),
        # One token of ten in two chunks.
        ([1, 2, 3, 4, 5, 5, 6, 7, 8, 9], 9,
         [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (6, 1), (7, 1), (8, 1), (9, 1)], "each"),
        # A count that leaps is no running one, but a total is a total.
        ([1, 2, 30], 30, [(0, 10), (1, 10), (2, 10)], "spread"),
        ([None, None, None], 6, [(0, 2), (1, 2), (2, 2)], "spread"),
    ],
)  # fmt: skip
def test_a_count_of_tokens_is_believed(
    counts: list[object], last: int, steps: list[tuple[int, int]], how: str
) -> None:
    assert answer(counts, last).tokens(30) == Counted(steps, how, 0)


@given(
    st.lists(st.one_of(st.none(), st.integers(-5, 60), st.just(10**12)), min_size=1, max_size=12),
    st.one_of(st.none(), st.integers(-5, 60), st.just(10**12)),
)
@settings(max_examples=examples(200), deadline=None)
def test_whatever_is_counted_the_first_token_comes_first(
    counts: list[int | None], last: int | None
) -> None:
    steps, _, _ = answer(counts, last).tokens(20)
    assert steps[0][0] == 0
    assert [time for time, _ in steps] == sorted({time for time, _ in steps})
    assert all(tokens > 0 for _, tokens in steps)
    # Never more than were asked for, or than there are signs.
    assert sum(tokens for _, tokens in steps) <= max(20, 6 * len(counts))


def reasoning(total: int, reasoned: int) -> bytes:
    details = {"reasoning_tokens": reasoned}
    usage = {"completion_tokens": total, "completion_tokens_details": details}
    return event({"choices": [], "usage": usage})


@pytest.mark.parametrize(
    ("total", "reasoned", "steps", "how", "hidden"),
    [
        (60, 50, ONE_EACH, "end", 50),
        # Servers that count it apart from the answer.
        (10, 50, ONE_EACH, "end", 50),
        (10, 5, ONE_EACH, "end", 5),
        (80, 50, [(time, 3) for time in range(10)], "spread", 50),
        (50, 50, ONE_EACH, "none", 50),
        (10, 0, ONE_EACH, "end", 0),
    ],
)
def test_hidden_reasoning_is_told_apart(
    total: int, reasoned: int, steps: list[tuple[int, int]], how: str, hidden: int
) -> None:
    found = Answer()
    for time in range(10):
        found.feed(event(word()), time)
    found.feed(reasoning(total, reasoned), 10)
    assert found.tokens(60) == Counted(steps, how, hidden)


def test_a_count_that_runs_from_hidden_reasoning_on_moves_no_token() -> None:
    for hidden in (1, 3, 50):
        found = Answer()
        for time in range(10):
            details = {"reasoning_tokens": hidden}
            usage = {"completion_tokens": hidden + time + 1, "completion_tokens_details": details}
            found.feed(event(word(usage=usage)), time)
        assert found.tokens(60) == Counted(ONE_EACH, "end", hidden)


def test_reasoning_that_comes_counts_as_what_came() -> None:
    found = Answer()
    for time in range(10):
        name = "reasoning_content" if time < 5 else "content"
        found.feed(event({"choices": [{"delta": {name: " word"}}]}), time)
    found.feed(reasoning(10, 5), 10)
    assert found.tokens(10) == Counted(ONE_EACH, "end", 0)
    assert found.reasoned == 5


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "stop"),
        ("function_call", "stop"),
        ("", "no finish reason given"),
        (None, "no finish reason given"),
    ],
)
def test_reasons_that_are_no_failure(reason: str | None, why: str) -> None:
    found = Answer()
    found.feed(event({"choices": [{"text": "a", "finish_reason": reason}]}), 0)
    found.feed(b"data: [DONE]\n\n", 1)
    assert found.end() == why


def test_any_other_reason_is_a_failure_whose_tokens_are_kept() -> None:
    found = Answer()
    with pytest.raises(BadEnd, match="ended by the server: abort"):
        found.feed(
            event(word("a")) + event({"choices": [{"text": "b", "finish_reason": "abort"}]}), 0
        )
    assert found.tokens().steps == [(0, 2)]


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [word("")],
        [word("", usage={"completion_tokens": 0})],
        [{"choices": [{"text": "", "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}],
        [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}],
    ],
)
def test_done_without_a_token_is_a_failure(chunks: list[dict[str, Any]]) -> None:
    found = Answer()
    found.feed(b"".join(map(event, chunks)) + b"data: [DONE]\n\n", 0)
    with pytest.raises(BadEnd, match="ended without a token"):
        found.end()


def test_empty_texts_are_tokens_where_they_are_counted() -> None:
    """Half of a letter has no text yet; a token of a special sign has none ever."""
    assert answer([1, 2, 3], 3, text="").tokens() == Counted([(0, 1), (1, 1), (2, 1)], "each", 0)
    assert answer([1, 2, 3], 3, text="").end() == "no finish reason given"


def test_nothing_after_done_matters() -> None:
    found = answer([1, 2])
    found.feed(event({"error": "late"}) + b"<html>\n" + event(word()), 9)
    found.close(9)
    assert len(found.deliveries) == 2


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.slow
def test_an_event_without_an_end_is_given_up(size: int) -> None:
    for part in (b"x" * size, b"data:\n" * size, b"data: " + b"x" * size + b"\n"):
        found = Answer()
        found.feed(b"data: ", 0)
        pieces = [part * max(1, 50_000 // size)] * 45
        with pytest.raises(Endless, match="an event without an end"):
            deque((found.feed(data, 0) for data in pieces), maxlen=0)


@pytest.mark.parametrize(
    ("cached", "prompt", "kept", "refused"),
    [
        (12, 20, 12, 0), (0, 20, 0, 0), (20, 20, 20, 0), (21, 20, -1, 1), (10**9, 20, -1, 1),
        # Of a prompt that the server does not count, what was asked is known.
        (19, None, 19, 0), (21, None, -1, 1),
        # A template's tokens are counted by the server, and are none of the prompt's.
        (28, 29, 20, 0),
        (-1, 20, -1, 0), (1.5, 20, -1, 0), ("7", 20, -1, 0), (True, 20, -1, 0), (None, 20, -1, 0),
    ],
)  # fmt: skip
def test_more_cached_than_there_is_is_refused(
    cached: object, prompt: int | None, kept: int, refused: int
) -> None:
    exchange = Exchange(Request("0", 0, 0, 20, 1, 21), b"")
    exchange.sent_ns = 1
    usage = {"completion_tokens": 1, "prompt_tokens": prompt}
    usage["prompt_tokens_details"] = {"cached_tokens": cached}  # type: ignore[assignment]
    exchange.answer.feed(event(word(usage=usage)), 5)
    exchange.outcome, exchange.end_ns, exchange.reason = 0, 9, "length"
    recording = ReplayRecording()
    recording.add(exchange)
    recording.gather()
    recording.write()
    assert list(recording.log.tables["admitted"].columns["cached_tokens"]) == [kept]
    assert recording.tally.cached_refused == refused
    believed = isinstance(cached, int) and not isinstance(cached, bool) and cached >= 0
    assert recording.tally.odd == (not believed and cached is not None)
    assert recording.tally.cached_tokens == max(0, kept)
