"""What streams say, however they are cut, and how their tokens are counted."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusbench.endpoint.sayings import error_reason
from nexusbench.endpoint.stream import Answer, StreamError
from nexusbench.endpoint.words import Words
from tests.examples import examples


def event(text: str = " a", *, finish: str | None = None, **more: object) -> bytes:
    chunk = {"choices": [{"text": text, "finish_reason": finish}], **more}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def usage(completion: int, prompt: int = 7) -> bytes:
    counted = {"prompt_tokens": prompt, "completion_tokens": completion}
    return b"data: " + json.dumps({"choices": [], "usage": counted}).encode() + b"\n\n"


def read(*parts: bytes) -> Answer:
    answer = Answer()
    for now, part in enumerate(parts):
        answer.feed(part, now)
    answer.close(len(parts))
    return answer


DONE = b"data: [DONE]\n\n"
STREAM = b": hi\n" + event(" é") + b"event: x\nid: 3\n" + event(finish="length") + usage(2) + DONE


@given(st.sets(st.integers(1, len(STREAM) - 1)), st.sampled_from([b"\n", b"\r\n", b"\r"]))
@settings(max_examples=examples(60), deadline=None)
def test_any_cut_and_any_line_end_reads_the_same(cuts: set[int], end: bytes) -> None:
    data = STREAM.replace(b"\n", end)
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    answer = read(*(data[a:b] for a, b in pairwise(edges)))
    assert answer.done
    assert answer.stopped
    assert (answer.usage.prompt, answer.usage.completion) == (7, 2)
    assert sum(tokens for _, tokens in answer.tokens()[0]) == 2


def test_data_over_several_lines_is_one_event() -> None:
    answer = read(b'data: {"choices": [{"text":\ndata: "a", "finish_reason": "stop"}]}\n\n')
    assert [delivery.chunks for delivery in answer.deliveries] == [1]


def test_the_last_event_needs_no_blank_line() -> None:
    assert read(event() + DONE.rstrip()).done


@pytest.mark.parametrize(
    ("parts", "tokens", "how"),
    [
        # One token a chunk, and the usage agrees.
        ([event(), event(), event(finish="length") + usage(3)], [(0, 1), (1, 1), (2, 1)], "end"),
        # Nobody counts.
        ([event(), event(finish="stop")], [(0, 1), (1, 1)], "none"),
        # More tokens than chunks: by the length of their text, at least one in the first.
        (
            [event(" a"), event(" abcde"), event(" abcde", finish="length") + usage(8)],
            [(0, 1), (1, 3), (2, 4)],
            "spread",
        ),
        # The token without text that came with the finish reason.
        ([event(), event(), event("", finish="length") + usage(3)], [(0, 1), (1, 2)], "end"),
        # Fewer tokens than chunks.
        ([event(), event(), event(), event() + usage(2)], [(0, 1), (3, 1)], "spread"),
    ],
)
def test_tokens_by_the_usage_at_the_end(
    parts: list[bytes], tokens: list[tuple[int, int]], how: str
) -> None:
    assert read(*parts).tokens()[:2] == (tokens, how)


def test_tokens_by_the_usage_of_each_chunk() -> None:
    def counted(count: int) -> dict[str, object]:
        return {"usage": {"prompt_tokens": 5, "completion_tokens": count}}

    parts = [event(**counted(1)), event(**counted(4)) + event(**counted(5)), usage(6)]
    assert read(*parts).tokens()[:2] == ([(0, 1), (1, 5)], "each")


def test_a_role_is_no_token_and_an_empty_text_is_one_after_the_first() -> None:
    def chat(**delta: object) -> bytes:
        return b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n"

    parts = [chat(role="assistant", content=""), chat(reasoning_content="hm"), chat(content="")]
    assert read(*parts).tokens()[:2] == ([(1, 1), (2, 1)], "none")


@pytest.mark.parametrize(
    "garbage",
    [b"data: {nonsense\n\n", b"<html>\n", b'data: {"choices": 5}\n\n', b'data: "\xff"\n\n'],
)
def test_garbage_is_named(garbage: bytes) -> None:
    with pytest.raises(StreamError, match="garbage in the stream"):
        read(event(), garbage)


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"message": "out of memory"}},
        {"error": "out of memory"},
        {"object": "error", "message": "out of memory"},
    ],
)
def test_an_error_in_the_stream_is_named(said: dict[str, object]) -> None:
    with pytest.raises(StreamError, match="out of memory"):
        read(b"data: " + json.dumps(said).encode() + b"\n\n")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error": {"message": "no such model"}}', "HTTP 404: no such model"),
        (b'{"detail": "Not Found"}', "HTTP 404: Not Found"),
        (b"<html>\nnginx", "HTTP 404: <html> nginx"),
        (b"\xff", "HTTP 404: \ufffd"),
        (b"", "HTTP 404"),
    ],
)
def test_reasons_of_errors(body: bytes, reason: str) -> None:
    assert Words().of(error_reason(404, body)) == reason
