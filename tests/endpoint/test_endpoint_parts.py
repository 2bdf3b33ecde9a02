"""Prompts, addresses, and the recording, without a server."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest

from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.request import Request
from nexusbench.core.units import NS_PER_MS as MS
from nexusbench.endpoint.address import parse_address
from nexusbench.endpoint.exchange import Exchange
from nexusbench.endpoint.held import UnderWay, deliveries
from nexusbench.endpoint.prompts import WORDS, ReplayPrompts, TextMeasure
from nexusbench.endpoint.recording import ReplayRecording


def request(index: int, tokens: int, prefix: tuple[int, ...] = (), output: int = 4) -> Request:
    return Request(
        str(index), index, index * 10, tokens, output, tokens + output, prefix_ids=prefix
    )


def ids(prompt: bytes) -> list[int]:
    return msgspec.json.decode(b"[" + prompt + b"]")


@pytest.mark.parametrize("length", [1, 15, 16, 17, 100])
def test_prompts_of_ids_have_their_length_and_stay_in_the_vocabulary(length: int) -> None:
    found = ids(ReplayPrompts(0, 16, 500).of(request(0, length, (3, 4))))
    assert len(found) == length
    assert all(0 < token < 500 for token in found)


def test_prompts_share_what_their_ids_share() -> None:
    prompts = ReplayPrompts(0, 16, 32_000)
    one, two = (ids(prompts.of(request(i, 40 + i, (7, 8, 9 + i)))) for i in range(2))
    assert one[:32] == two[:32]
    assert one[32:] != two[32:40]
    # A block that is cut short begins as the whole one.
    assert ids(prompts.of(request(5, 24, (7, 8)))) == one[:24]
    assert ids(prompts.of(request(6, 32))) != ids(prompts.of(request(7, 32)))


def test_prompts_depend_on_nothing_but_the_seed() -> None:
    texts = {
        seed: [ReplayPrompts(seed, 16, 32_000).of(request(i, 30, (1,))) for i in range(3)]
        for seed in (0, 1)
    }
    assert texts[0] == [ReplayPrompts(0, 16, 32_000).of(request(i, 30, (1,))) for i in range(3)]
    assert not set(texts[0]) & set(texts[1])


def test_prompts_that_the_trace_holds_are_sent_as_they_are() -> None:
    given = {1: [5, 6, 7]}
    assert ids(ReplayPrompts(0, 16, 99, given=given).of(request(1, 3))) == [5, 6, 7]
    assert len(ids(ReplayPrompts(0, 16, 99, given=given).of(request(0, 3)))) == 3
    assert ReplayPrompts(0, 16, 99, TextMeasure(), given).of(request(1, 3)).count(b" ") == 2


def test_text_comes_as_near_as_a_measure_allows() -> None:
    text = ReplayPrompts(0, 16, 32_000, TextMeasure(per_word=2.0, fixed=5)).of(
        request(0, 45, (1, 2))
    )
    words = text.decode().split(" ")
    assert len(words) == 20
    assert set(words) <= set(WORDS)
    assert TextMeasure(fixed=50).words(3) == 1


@pytest.mark.parametrize(
    ("url", "base", "api"),
    [
        ("http://127.0.0.1:8000", "/v1", None),
        ("http://127.0.0.1:8000/v1/", "/v1", None),
        ("http://127.0.0.1:8000/v1/completions", "/v1", "completions"),
        ("http://127.0.0.1:8000/x/v1/chat/completions", "/x/v1", "chat"),
    ],
)
def test_urls_in_all_their_forms(url: str, base: str, api: str | None) -> None:
    address = parse_address(url)
    assert (address.base, address.api) == (base, api)
    assert address.netloc == "127.0.0.1:8000"


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000", "ftp://host/", "http://", "http://host:port/", "http://me:secret@host/",
        "http://host/v1?key=secret", "http://[::1/", "http://127.0.0.1/a b", "",
    ],
)  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(url)
    assert "secret" not in str(caught.value)


def test_a_host_that_is_not_there() -> None:
    with pytest.raises(NexusbenchError, match=r"cannot find the host 'nowhere\.invalid'"):
        parse_address("http://nowhere.invalid/v1")


def recorded(index: int, times: tuple[int, ...], *, ended: bool = True) -> Exchange:
    """An exchange with a token at each of ``times``, in ms."""
    exchange = Exchange(request(index, 9), b"")
    exchange.sent_ns = exchange.request.arrival_ns + 1
    for time in times:
        exchange.answer.feed(b'data: {"choices": [{"text": "a"}]}\n\n', time * MS)
    if ended:
        exchange.outcome, exchange.end_ns, exchange.reason = 0, times[-1] * MS, "length"
    return exchange


def in_ms(times: Iterable[int]) -> list[float]:
    return [time / MS for time in times]


def test_rows_are_written_in_the_order_of_time() -> None:
    recording = ReplayRecording()
    for index, times in ((0, (5, 30)), (1, (15, 20)), (2, (26, 27))):
        recording.add(recorded(index, times))
        if index == 1:
            recording.gather()
            recording.write(before=16 * MS)
            assert in_ms(recording.log.tables["step_done"].columns["time"]) == [5, 15]
    recording.gather()
    recording.write()
    tables = recording.log.tables
    assert in_ms(tables["step_done"].columns["time"]) == [5, 15, 20, 26, 27, 30]
    assert list(tables["step_done"].columns["step"]) == list(range(6))
    assert list(tables["token"].columns["request"]) == [0, 1, 1, 2, 2, 0]
    assert recording.tally.short == 3


def test_what_is_not_written_yet_is_in_the_tail_and_stays_there() -> None:
    recording = ReplayRecording()
    recording.add(recorded(0, (5, 30)))
    recording.gather()
    recording.write(before=16 * MS)
    flying, taken = recorded(1, (12, 40), ended=False), recorded(0, (5, 30))
    for _ in range(2):
        tail = recording.tail([flying, taken])
        assert in_ms(tail["step_done"].columns["time"]) == [12, 30, 40]
        assert list(tail["step_done"].columns["step"]) == [1, 2, 3]
        assert list(tail["token"].columns["request"]) == [1, 0, 1]
        assert list(tail["arrived"].columns["request"]) == [1]
        assert list(tail["ended"].columns["request"]) == [0]
    assert len(recording.log.tables["step_done"]) == 1


def test_of_what_is_under_way_a_count_is_believed_as_far_as_it_can_be() -> None:
    seen, answer = UnderWay(), Exchange(request(0, 9), b"").answer
    said = [(5.0, 1), (15.0, 4), (15.1, 5), (25.0, 900), (25.1, 901)]
    for number, (time, counted) in enumerate(said):
        usage = b'"usage": {"completion_tokens": %d}' % counted
        answer.feed(b'data: {"choices": [{"text": "ab"}], %b}\n\n' % usage, round(time * MS))
        if number % 2:
            seen.take(answer)
    for _ in range(2):
        seen.take(answer)
        assert (in_ms(seen.times), list(seen.tokens)) == ([5, 15, 25], [1, 4, 2])


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        # Nearer than any server makes tokens: held back, and let go together.
        ((10.0, 10.1, 10.2, 12.0), [(10.0, 3), (12.0, 1)]),
        ((10.0, 10.25), [(10.0, 1), (10.25, 1)]),
        # A whole answer in a moment, after a long wait.
        ((500.0, 502.0, 504.9), [(500.0, 3)]),
        ((500.0, 502.0, 505.1), [(500.0, 1), (502.0, 1), (505.1, 1)]),
        ((100.0, 101.0, 102.1), [(100.0, 1), (101.0, 1), (102.1, 1)]),
        ((), []),
    ],
)
def test_a_burst_is_one_delivery(
    times: tuple[float, ...], expected: list[tuple[float, int]]
) -> None:
    found = deliveries([(round(time * MS), 1) for time in times], 0)
    assert [(time / MS, tokens) for time, tokens in found] == expected


def test_reasons_without_end_are_cut() -> None:
    recording = ReplayRecording()
    for index in range(60):
        exchange = Exchange(request(index, 9), b"")
        exchange.outcome, exchange.end_ns, exchange.reason = 2, 1, f"HTTP 500: number {index}"
        recording.add(exchange)
    recording.gather()
    assert len(recording.log.strings) == 51
    assert recording.log.strings[-1] == "HTTP 500"
