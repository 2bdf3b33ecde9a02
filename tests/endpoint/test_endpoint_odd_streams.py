"""Streams that are odd but answers, and those that look like answers and are none."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest

from nexusbench.core.request import Request
from nexusbench.endpoint.address import parse_address
from nexusbench.endpoint.connection import Connection
from nexusbench.endpoint.counting import Counted
from nexusbench.endpoint.exchange import Exchange
from nexusbench.endpoint.held import UnderWay
from nexusbench.endpoint.receiver import FAILED, FINISHED, Receiver
from nexusbench.endpoint.recording import ReplayRecording
from nexusbench.endpoint.stream import Answer, BadEnd, StreamError
from nexusbench.endpoint.words import Words

DONE = b"data: [DONE]\n\n"


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def word(text: str = " word", **more: object) -> bytes:
    return event({"choices": [{"text": text, "finish_reason": None, **more}]})


def chat(**delta: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": delta}]})


def last(tokens: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": tokens}})


def read(*parts: bytes) -> Answer:
    found = Answer()
    for now, part in enumerate(parts):
        found.feed(part, now)
    return found


def exchange(bound: int, *parts: bytes) -> Exchange:
    """A finished one whose parts came a second apart, sent at 0."""
    made = Exchange(Request("a", 0, 0, 9, bound, 9 + bound), b"")
    for now, part in enumerate(parts, 1):
        made.answer.feed(part, now * 10**9)
    made.sent_ns, made.end_ns, made.outcome = 0, (len(parts) + 1) * 10**9, FINISHED
    made.reason = made.answer.end()
    return made


@pytest.mark.parametrize(
    "alive",
    [b"data:\n\n", b"data: \n\n", b"data:\ndata:\n\n", b"event: ping\ndata:\n\n", b": x\n\n"],
)
def test_an_event_without_data_is_none(alive: bytes) -> None:
    found = read(alive, word(), alive, DONE)
    assert found.tokens().steps == [(1, 1)]
    assert found.end() == "no finish reason given"


@pytest.mark.parametrize("first", [word(""), chat(content=""), chat(content="", role="assistant")])
@pytest.mark.parametrize(
    ("rest", "steps", "how"),
    [
        # The total is that of the chunks with text: no other is a token.
        ((word(), word(""), word(), last(2)), [(1, 1), (3, 1)], "end"),
        # It is not counted: a first token is one that is there.
        ((word(), word()), [(1, 1), (2, 1)], "none"),
        ((word() + word(), word()), [(1, 2), (2, 1)], "none"),
        # More tokens than chunks: none of them before the first text.
        ((word(), word(), last(6)), [(1, 3), (2, 3)], "spread"),
    ],
)
def test_an_empty_chunk_before_the_first_text_is_no_token(
    first: bytes, rest: tuple[bytes, ...], steps: list[tuple[int, int]], how: str
) -> None:
    found = read(first, *rest)
    assert found.tokens(9) == Counted(steps, how, 0)
    kept = UnderWay()
    kept.take(found)
    assert kept.times[0] == 1


def test_an_empty_chunk_is_a_token_where_the_total_says_so() -> None:
    """Half of a letter has no text yet."""
    assert read(word(""), word(), last(2)).tokens() == Counted([(0, 1), (1, 1)], "end", 0)


@pytest.mark.parametrize(
    "parts",
    [
        [event({"choices": [{"index": 0, "text": "a"}, {"index": 1, "text": "b"}]})],
        [word(index=0), word(index=1)],
        [word(index=0), event({"choices": [{"text": "", "finish_reason": "length", "index": 1}]})],
    ],
)
def test_several_answers_are_no_answer(parts: list[bytes]) -> None:
    with pytest.raises(BadEnd, match="several answers"):
        read(*parts)


def test_one_choice_may_have_any_number() -> None:
    assert read(word(index=3), word(), word(index=3)).tokens().steps == [(0, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"error_code": 336, "error_msg": "out of memory"}, "out of memory"),
        ({"status": 500, "msg": "out of memory"}, "out of memory"),
        ({"errors": [{"message": "out of memory"}]}, "out of memory"),
        ({"hint": "out of memory"}, '{"hint": "out of memory"}'),
    ],
)
def test_a_document_that_is_no_chunk_explains_an_end_without_a_reason(
    document: dict[str, Any], said: str
) -> None:
    found = read(word(), event(document), DONE)
    with pytest.raises(BadEnd) as caught:
        found.end()
    assert str(caught.value) == f"ended without a finish reason, after: {said}"
    whole = event({"choices": [{"text": "", "finish_reason": "length"}]})
    assert read(word(), event(document), whole, DONE).end() == "length"


def test_a_sign_of_life_explains_nothing() -> None:
    named = b"event: heartbeat\ndata: {}\n\n"
    assert read(word(), event({"type": "ping"}), named, DONE).end() == "no finish reason given"


def test_an_error_may_lie_in_the_choice() -> None:
    error = {"message": "out of memory", "code": 502}
    with pytest.raises(StreamError, match=r"^error in the stream: out of memory$"):
        read(word(), word("", error=error))
    assert read(word(error=None), word(error={}), DONE).end()


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        (rb"\ud83d", 1), (rb"\ude00", 1), (rb"\ud83d\ude00", 1), (rb"\ude00\ud83d", 2),
        (rb"\uD83D\uD83D\uDE00", 2), (rb"a\ud83d\u0041", 3),
    ],
)  # fmt: skip
def test_half_a_letter_is_a_token(text: bytes, signs: int) -> None:
    """Servers whose strings are of 16-bit units cut letters beyond them in two."""
    found = read(b'data: {"choices": [{"text": "' + text + b'"}]}\n\n')
    assert [delivery.size for delivery in found.deliveries] == [signs]


def test_what_is_packed_keeps_its_status() -> None:
    address = parse_address("http://127.0.0.1:9")
    line = Connection(address, None, 0)
    line.most_bytes = 1000
    with pytest.raises(StreamError, match=r"^HTTP 500: a packed answer"):
        line.parse(b"HTTP/1.1 500 X\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nxx")
    line.close()


def warnings(*parts: bytes) -> list[str]:
    recording = ReplayRecording()
    recording.add(exchange(6, *parts))
    recording.gather()
    found = recording.summary()["warnings"]
    assert isinstance(found, list)
    return found


def test_an_answer_in_two_deliveries_is_told() -> None:
    end = event({"choices": [{"text": "", "finish_reason": "length"}]})
    (told,) = warnings(word() * 3, word() * 3 + end)
    assert "came in deliveries of several chunks" in told
    assert warnings(*[word()] * 5, word() + end) == []
    # Several tokens a chunk are no sign of a proxy.
    assert warnings(word(" a b c"), word(" d e f") + end + last(6)) == []


def test_an_answer_without_a_finish_reason_is_told() -> None:
    (told,) = warnings(word(), word(), DONE)
    assert told.startswith("1 of 1 finished answer gave no finish reason: ")


def test_a_server_that_takes_no_connection_is_given_up_in_time() -> None:
    """Its queue is full: what the client sends to open one is dropped."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        fill = [socket.socket() for _ in range(4)]
        for one in fill:
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        ended: list[Exchange] = []
        over = threading.Event()

        def end(exchange: Exchange) -> None:
            ended.append(exchange)
            over.set()

        address = parse_address(f"http://127.0.0.1:{server.getsockname()[1]}")
        receiver = Receiver(address, None, time.perf_counter_ns, end, 3 * 10**8, Words())
        thread = threading.Thread(target=receiver.run, daemon=True)
        thread.start()
        began = time.monotonic()
        receiver.launch(Exchange(Request("a", 0, 0, 9, 5, 14), b"GET / HTTP/1.1\r\n\r\n"))
        assert over.wait(8), "not given up"
        assert time.monotonic() - began < 8
        receiver.stop()
        thread.join()
        for one in fill:
            one.close()
    assert [(each.outcome, each.reason) for each in ended] == [(FAILED, "connection timed out")]
