"""Ways in which a server misbehaves, by name; what each leads to stands in misbehaviours.py.

A function gets the call that it answers, and returns whether the connection lives on.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import quote

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"
DEEP = "[" * 100_000 + "]" * 100_000
LATE_S = 0.3  # how much later an end comes, or a whole answer at once
_FILL = 1 << 14

Document = dict[str, Any]


def piece(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


class Call(NamedTuple):
    """What is to be answered: ``chunks`` is how a good server would, the usage last."""

    writer: asyncio.StreamWriter
    chunks: list[Document]
    headers: dict[str, str]
    delay: float  # between tokens

    @property
    def words(self) -> list[Document]:
        """The chunks with text."""
        return [chunk for chunk in self.chunks if chunk["choices"]]

    @property
    def key(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    async def stream(self, *parts: bytes) -> bool:
        """A whole stream of these parts, a moment between any two, and [DONE]."""
        self.writer.write(HEAD)
        for part in [*parts, DONE]:
            self.writer.write(piece(part))
            await asyncio.sleep(self.delay)
        self.writer.write(END)
        return True

    async def flood(self, data: bytes) -> bool:
        """The same over and over, as fast as it is taken, until the client has had enough."""
        while not self.writer.is_closing():
            self.writer.write(data)
            await self.writer.drain()
            await asyncio.sleep(0)
        return False

    async def drip(self, data: bytes, every: float = 0.02) -> bool:
        """The same over and over, slowly."""
        while not self.writer.is_closing():
            self.writer.write(data)
            await self.writer.drain()
            await asyncio.sleep(every)
        return False


Way = Callable[[Call], Awaitable[bool]]
WAYS: dict[str, Way] = {}


def way(function: Way) -> Way:
    WAYS[function.__name__] = function
    return function


def plain(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# -- how answers end ------------------------------------------------------------------------------


def _ending(reason: str) -> Way:
    async def end(call: Call) -> bool:
        """After half of the tokens, for a reason of the server's own."""
        words = call.words[: max(1, len(call.words) // 2)]
        words[-1]["choices"][0]["finish_reason"] = reason
        return await call.stream(*map(event, words))

    return end


for _reason in ("abort", "error", "content_filter", "timeout", "STOP", "stop", "tool_calls",
                "function_call"):  # fmt: skip
    WAYS[f"ends_{_reason}"] = _ending(_reason)


@way
async def empty_reasons(call: Call) -> bool:
    """Every chunk but the last with the finish reason ``""``, which is none."""
    for chunk in call.words[:-1]:
        chunk["choices"][0]["finish_reason"] = ""
    return await call.stream(*map(event, call.chunks))


@way
async def empty_reason_at_last(call: Call) -> bool:
    """No finish reason but ``""``, and no [DONE] either: it says nothing of its end."""
    for chunk in call.words:
        chunk["choices"][0]["finish_reason"] = ""
    call.writer.write(HEAD + piece(b"".join(map(event, call.words))) + END)
    return True


@way
async def done_only(call: Call) -> bool:
    return await call.stream()


@way
async def done_after_empty_chunks(call: Call) -> bool:
    """Chunks without text, each counted as no token."""
    usage = {"prompt_tokens": 3, "completion_tokens": 0}
    return await call.stream(
        *(event({"choices": [{"text": "", "finish_reason": None}], "usage": usage}) for _ in "abc")
    )


@way
async def stops_without_a_token(call: Call) -> bool:
    last = {"choices": [{"text": "", "finish_reason": "stop"}]}
    return await call.stream(event(last))


@way
async def late_end(call: Call) -> bool:
    """The last chunk of text, and after a while finish reason, usage and [DONE]."""
    last = call.words[-1]["choices"][0]
    reason, last["finish_reason"] = last["finish_reason"], None
    call.writer.write(HEAD)
    for chunk in call.words:
        call.writer.write(piece(event(chunk)))
        await asyncio.sleep(call.delay)
    await asyncio.sleep(LATE_S)
    end = {"choices": [{"text": "", "finish_reason": reason}]}
    call.writer.write(piece(event(end) + event(call.chunks[-1]) + DONE) + END)
    return True


# -- what counts tokens ---------------------------------------------------------------------------


def _counting(count: Callable[[int, int], object], *, last: object = None) -> Way:
    async def stream(call: Call) -> bool:
        """``usage`` with every chunk: ``count`` of its number and of all; ``last`` at the end."""
        words = call.words
        for number, chunk in enumerate(words):
            chunk["usage"] = {
                "prompt_tokens": 9,
                "completion_tokens": count(number + 1, len(words)),
            }
        if last is not None:
            call.chunks[-1]["usage"]["completion_tokens"] = last
            return await call.stream(*map(event, [*words, call.chunks[-1]]))
        return await call.stream(*map(event, words))

    return stream


async def _zero_until_the_end(call: Call) -> bool:
    for chunk in call.words:
        chunk["usage"] = {"prompt_tokens": 0, "completion_tokens": 0}
    return await call.stream(*map(event, call.chunks))


WAYS |= {
    "zero_usage": _counting(lambda number, all: 0, last=0),
    "zero_usage_until_the_end": _zero_until_the_end,
    "falling_usage": _counting(lambda number, all: all - number + 1),
    "constant_usage": _counting(lambda number, all: 1),
    "whole_usage_at_once": _counting(lambda number, all: all),
    "leaping_usage": _counting(lambda number, all: 1 if number < all // 2 else 1000 + number),
    "rare_usage": _counting(lambda number, all: all // 2 if number <= all // 2 else all),
    "huge_usage": _counting(lambda number, all: 10**15),
    "negative_usage": _counting(lambda number, all: -number),
    "text_usage": _counting(lambda number, all: str(number)),
    "broken_usage": _counting(lambda number, all: number + 0.5),
    "nested_usage": _counting(lambda number, all: {"tokens": number}),
}


@way
async def usage_is_a_list(call: Call) -> bool:
    for chunk in call.words:
        chunk["usage"] = [1, 2]
    return await call.stream(*map(event, call.words))


def _caching(cached: object) -> Way:
    async def stream(call: Call) -> bool:
        call.chunks[-1]["usage"]["prompt_tokens_details"] = {"cached_tokens": cached}
        return await call.stream(*map(event, call.chunks))

    return stream


WAYS |= {
    "cached_beyond_the_prompt": _caching(10**6),
    "cached_negative": _caching(-5),
    "cached_text": _caching("all"),
    "cached_broken": _caching(2.5),
    "cached_true": _caching(True),
}


@way
async def details_are_a_text(call: Call) -> bool:
    call.chunks[-1]["usage"]["prompt_tokens_details"] = "none"
    return await call.stream(*map(event, call.chunks))


@way
async def hides_reasoning(call: Call) -> bool:
    """Half of the tokens that it counts never come."""
    words = call.words[len(call.words) // 2 :]
    usage = call.chunks[-1]["usage"]
    usage["completion_tokens_details"] = {"reasoning_tokens": len(call.words) - len(words)}
    await asyncio.sleep(call.delay)
    return await call.stream(*map(event, [*words, call.chunks[-1]]))


@way
async def shows_reasoning(call: Call) -> bool:
    words, half = call.words, len(call.words) // 2
    for chunk in words[:half]:
        chunk["choices"][0]["delta"] = {"reasoning_content": chunk["choices"][0].pop("text", "x")}
    call.chunks[-1]["usage"]["completion_tokens_details"] = {"reasoning_tokens": half}
    return await call.stream(*map(event, call.chunks))


@way
async def only_reasons_in_secret(call: Call) -> bool:
    usage = call.chunks[-1]["usage"]
    usage["completion_tokens_details"] = {"reasoning_tokens": usage["completion_tokens"]}
    last = {"choices": [{"text": "", "finish_reason": "length"}]}
    return await call.stream(event(last), event(call.chunks[-1]))


# -- streams that are held back -------------------------------------------------------------------


@way
async def held_back(call: Call) -> bool:
    """A proxy that lets go of the whole stream in one piece."""
    await asyncio.sleep(LATE_S)
    call.writer.write(HEAD + piece(b"".join(map(event, call.chunks)) + DONE) + END)
    return True


@way
async def held_back_in_pieces(call: Call) -> bool:
    """The same, in one segment for each chunk."""
    await asyncio.sleep(LATE_S)
    for data in [HEAD, *map(piece, map(event, call.chunks)), piece(DONE), END]:
        call.writer.write(data)
        await call.writer.drain()
    return True


@way
async def one_chunk(call: Call) -> bool:
    """No stream at all, put into the form of one, and without a usage."""
    await asyncio.sleep(LATE_S)
    choice = {"text": " word" * len(call.words), "finish_reason": "length"}
    return await call.stream(event({"choices": [choice]}))


# -- errors and what is none of HTTP, JSON or events ----------------------------------------------


def _saying(*parts: bytes, after: int = 1) -> Way:
    async def stream(call: Call) -> bool:
        return await call.stream(*map(event, call.words[:after]), *parts)

    return stream


def _erring(*documents: Document) -> Way:
    return _saying(*map(event, documents))


WAYS |= {
    "event_error": _saying(b'event: error\ndata: {"message": "out of memory"}\n\n'),
    "event_error_in_words": _saying(b"event: error\ndata: out of memory\n\n"),
    "event_error_alone": _saying(b"event: error\n\n"),
    "error_object": _erring({"error": {"message": "out of memory", "code": 500}}),
    "error_text": _erring({"error": "out of memory"}),
    "error_number": _erring({"error": 500, "message": "out of memory"}),
    "error_nested": _erring({"error": {"error": {"detail": ["out of memory"]}}}),
    "error_flat": _erring({"message": "out of memory", "code": 500}),
    "error_flat_in_words": _erring({"message": "out of memory"}),
    "error_detail": _erring({"detail": "out of memory"}),
    "error_code": _erring({"code": 503}),
    "error_object_field": _erring({"object": "error", "message": "out of memory"}),
    "error_type": _erring({"type": "error", "message": "out of memory", "choices": []}),
    "garbage_utf8": _saying(b'data: {"choices": [[\xff\n\n'),
    "garbage_html": _saying(b"<html>\n"),
    "wrong_types": _erring({"choices": 5}),
    "wrong_choice": _erring({"choices": [7]}),
    "deep": _saying(b'data: {"choices": ' + DEEP.encode() + b"}\n\n"),
    "deep_error": _saying(b'data: {"error": ' + DEEP.encode() + b"}\n\n"),
    "deep_usage": _saying(b'data: {"usage": ' + DEEP.encode() + b"}\n\n"),
    "deep_elsewhere": _saying(b'data: {"x": ' + DEEP.encode() + b"}\n\n"),
}


@way
async def falsy_errors(call: Call) -> bool:
    """An ``error`` that is none, with every chunk."""
    nothing: Iterable[object] = (None, False, "", {"code": 0, "message": ""}, {}, [], 0)
    for chunk, error in zip(call.words, nothing, strict=False):
        chunk["error"] = error
    return await call.stream(*map(event, call.chunks))


def _answering(status: int, body: bytes, *headers: str) -> Way:
    async def answer(call: Call) -> bool:
        call.writer.write(plain(status, body, *headers))
        return True

    return answer


WAYS |= {
    "flat_500": _answering(500, b'{"message": "out of memory", "code": 500}'),
    "deep_500": _answering(500, b'{"error": ' + DEEP.encode() + b"}"),
    "html_502": _answering(502, b"<html>\n<title>Bad gateway</title>"),
    "bytes_500": _answering(500, bytes(range(256))),
    "empty_503": _answering(503, b""),
    "redirect": _answering(302, b"", "Location: http://127.0.0.1:1/"),
    "no_content": _answering(204, b""),
    "json_200": _answering(200, b'{"choices": [{"text": "all", "finish_reason": "length"}]}'),
    "error_200": _answering(200, b'{"message": "out of memory", "code": 500}'),
    "steers_500": _answering(
        500,
        b'{"error": {"message": "\\u001b[2J\\u001b]0;title\\u0007red\\u202e\\u0000 '
        b'\\u009b31m[bold]\\r\\nok"}}',
    ),
    "packed": _answering(200, gzip.compress(b"data: x\n\n"), "Content-Encoding: gzip"),
    "bomb": _answering(200, gzip.compress(bytes(1 << 24)), "Content-Encoding: gzip"),
}


def _listing(*models: object) -> Way:
    return _answering(200, json.dumps({"data": models}).encode())


WAYS |= {
    "lists_deep": _answering(200, b'{"data": ' + DEEP.encode() + b"}"),
    "lists_nothing": _listing(),
    "lists_numbers": _listing(1, 2),
    "lists_many": _listing(*({"id": f"m{number}\x1b[31m"} for number in range(5000))),
    "lists_text_length": _listing({"id": "m", "max_model_len": "4096"}),
    "lists_no_length": _listing({"id": "m", "max_model_len": 0}),
    "lists_negative_length": _listing({"id": "m", "max_model_len": -1}),
    "lists_endless_length": _listing({"id": "m", "max_model_len": 10**30}),
    "lists_long_name": _listing({"id": "m" * 3000}),
}


async def _garbled(call: Call, head: bytes) -> bool:
    call.writer.write(head)
    await asyncio.sleep(0.01)
    return False


@way
async def not_http(call: Call) -> bool:
    return await _garbled(call, b"SSH-2.0-OpenSSH_9.6\r\n")


@way
async def too_short(call: Call) -> bool:
    return await _garbled(call, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ndata: {}\n\n")


@way
async def bad_length(call: Call) -> bool:
    return await _garbled(call, b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n")


@way
async def bad_chunk(call: Call) -> bool:
    return await _garbled(call, HEAD + b"zz\r\n")


@way
async def upgrade(call: Call) -> bool:
    head = b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    return await _garbled(call, head)


@way
async def announced(call: Call) -> bool:
    """Two answers that are none yet, before the one that is."""
    call.writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n")
    return await call.stream(*map(event, call.chunks))


@way
async def two_answers(call: Call) -> bool:
    """A second answer in the same breath, to a question that was not asked."""
    body = b"".join(map(event, call.chunks)) + DONE
    call.writer.write(HEAD + piece(body) + END + plain(500, b"no"))
    await asyncio.sleep(0.01)
    return False


# -- the key --------------------------------------------------------------------------------------


def _telling(tell: Callable[[str], str], status: int = 500) -> Way:
    async def answer(call: Call) -> bool:
        call.writer.write(plain(status, tell(call.key).encode()))
        return True

    return answer


def _wrapped(text: str) -> str:
    return json.dumps({"error": {"message": text}})


WAYS |= {
    "tells_key": _telling(lambda key: _wrapped(f"wrong key {key}")),
    "tells_key_at_the_cut": _telling(lambda key: _wrapped("x" * 112 + key)),
    "tells_key_at_the_old_cut": _telling(lambda key: _wrapped("x" * 72 + key)),
    "tells_key_far": _telling(lambda key: " " * ((1 << 14) - 8) + key),
    "tells_key_behind_a_body": _telling(lambda key: " " * ((1 << 16) - 8) + key),
    "tells_key_shortened": _telling(lambda key: _wrapped(f"wrong key {key[:-4]}...")),
    "tells_key_quoted": _telling(lambda key: _wrapped(quote(key, safe=""))),
    "tells_key_escaped": _telling(lambda key: "".join(f"\\u{ord(sign):04x}" for sign in key)),
    "tells_key_in_html": _telling(lambda key: "".join(f"&#{ord(sign)};" for sign in key)),
    "tells_key_as_base64": _telling(lambda key: base64.b64encode(f"user:{key}".encode()).decode()),
    "tells_key_as_hex": _telling(lambda key: key.encode().hex()),
    "tells_key_in_capitals": _telling(lambda key: key.upper()),
    "tells_key_broken_up": _telling(lambda key: "\x1b[1m".join(key)),
    "tells_key_on_lines": _telling(lambda key: "\n".join(key)),
}


@way
async def tells_key_in_the_stream(call: Call) -> bool:
    return await call.stream(event(call.words[0]), event({"error": {"message": call.key}}))


@way
async def tells_key_as_garbage(call: Call) -> bool:
    return await call.stream(event(call.words[0]), f"data: nonsense {call.key}\n\n".encode())


@way
async def tells_key_as_a_reason(call: Call) -> bool:
    choice = {"text": "", "finish_reason": f"key {call.key} \x1b[31m expired"}
    return await call.stream(event(call.words[0]), event({"choices": [choice]}))


# -- without an end -------------------------------------------------------------------------------


def _flooding(head: bytes, data: bytes) -> Way:
    async def flood(call: Call) -> bool:
        call.writer.write(head)
        return await call.flood(data)

    return flood


def _dripping(head: bytes, data: bytes) -> Way:
    async def drip(call: Call) -> bool:
        call.writer.write(head)
        return await call.drip(data)

    return drip


_OK = b"HTTP/1.1 200 OK\r\n"
_ERROR = b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n"
WAYS |= {
    "endless_comments": _flooding(HEAD, piece(b": ping\n" * (_FILL // 7))),
    "endless_blank_lines": _flooding(HEAD, piece(b"\n" * _FILL)),
    "endless_event": _flooding(HEAD, piece(b"data: x\n" * (_FILL // 8))),
    "endless_empty_data": _flooding(HEAD, piece(b"data:\n" * (_FILL // 6))),
    "endless_line": _flooding(HEAD, piece(b"data: " + b"x" * _FILL)),
    "endless_tokens": _flooding(
        HEAD, piece(event({"choices": [{"text": "a", "finish_reason": None}]}) * 200)
    ),
    "endless_extension": _flooding(HEAD + b"1;", b"x" * _FILL),
    "endless_headers": _flooding(_OK, b"X-Much: " + b"x" * 1000 + b"\r\n"),
    "endless_header": _flooding(_OK + b"X-Much: ", b"x" * _FILL),
    "endless_status": _flooding(b"HTTP/1.1 200 ", b"x" * _FILL),
    "endless_interim": _flooding(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
    "endless_error": _flooding(_ERROR, piece(b"x" * _FILL)),
    "dripping_comments": _dripping(HEAD, piece(b": ping\n")),
    "dripping_tokens": _dripping(
        HEAD, piece(event({"choices": [{"text": "a", "finish_reason": None}]}))
    ),
    "dripping_line": _dripping(HEAD + piece(b"data: "), piece(b"x")),
    "dripping_headers": _dripping(_OK, b"X-Much: x\r\n"),
    "dripping_extension": _dripping(HEAD + b"1;", b"x"),
    "dripping_error": _dripping(_ERROR, piece(b"x")),
    "silent": _dripping(b"", b""),
}


@way
async def endless_trailers(call: Call) -> bool:
    """[DONE], and a body that goes on for ever: what was asked for is there."""
    call.writer.write(HEAD + piece(b"".join(map(event, call.chunks)) + DONE))
    return await call.flood(piece(b": ping\n" * (_FILL // 7)))


@way
async def dripping_after_the_end(call: Call) -> bool:
    call.writer.write(HEAD + piece(b"".join(map(event, call.chunks)) + DONE))
    return await call.drip(piece(b": ping\n"))
