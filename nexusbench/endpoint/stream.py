"""What a server streams back: server-sent events, and the chunks of an answer that they hold."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from nexusbench.core.units import MIB
from nexusbench.endpoint.counting import Counted, Delivery, Usage, count_tokens
from nexusbench.endpoint.sayings import UNREADABLE, message_in, message_of

NO_STREAM = "answered without a stream of events"
# An event longer than this is none of any server; neither is a line.
EVENT_BYTES = MIB
# Why an answer may end, and whether the model ended it or its bound; other reasons are failures.
_REASONS = {
    "stop": "stop",
    "tool_calls": "stop",
    "function_call": "stop",
    "length": "length",
}
_UNTOLD = "no finish reason given"
_FIELDS = (b":", b"event:", b"id:", b"retry:")
# Escapes of half a surrogate pair, which JSON for Unicode text does not have.
_HALF_A_LETTER = re.compile(
    rb"\\u[dD][89aAbB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|"
    rb"(?<!\\u[dD][89aAbB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_NOTHING = msgspec.Raw(b"")
_EMPTY = (b"", b"null")
_ALIVE = (b"ping", b"heartbeat", b"keepalive", b"keep-alive")
_LEAST_CODE = 400  # of an error; others are no news


class StreamError(Exception):
    """The answer cannot be read, or says that the server failed; the text is the reason, with the
    server's own words as they were sent: to be shown it goes through Words.
    """


class BadEnd(StreamError):
    """The answer ended as none should: for a reason that is a failure, or without a token."""


class Endless(StreamError):
    """More was sent than an answer can hold."""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    role: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: msgspec.Raw = _NOTHING


class _Choice(msgspec.Struct):
    index: Any = None
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    error: msgspec.Raw = _NOTHING


class _StreamChunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING
    object: msgspec.Raw = _NOTHING
    type: msgspec.Raw = _NOTHING
    message: msgspec.Raw = _NOTHING
    detail: msgspec.Raw = _NOTHING
    code: msgspec.Raw = _NOTHING


_decode = msgspec.json.Decoder(_StreamChunk).decode


class Answer:
    """One answer as it arrives.

    Two chunks in one read arrived at the same moment, as far as a client can tell: they are one
    delivery. ``done`` is set by ``[DONE]``; ``stopped`` is why it
    ended ("length", or "stop" where the model ended it) once a chunk has said so.
    ``reasoned`` counts the chunks in which the model's reasoning was sent.
    """

    __slots__ = (
        "_after_cr", "_aside", "_event", "_event_size", "_heard", "_index", "_name", "_rest",
        "_rest_size",
        "deliveries", "done", "last_empty", "reasoned", "stopped", "usage",
    )  # fmt: skip

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # the line that has no end yet
        self._event: list[bytes] = []
        self._rest_size = self._event_size = 0
        self._name = b""
        self._after_cr = self._heard = False
        self._aside = b""  # a document that is no chunk, and no error that is known
        self._index: Any = None  # of the choice
        self.deliveries: list[Delivery] = []
        self.usage = Usage()
        self.reasoned = 0
        self.done = False
        self.stopped = ""
        # The chunk with the finish reason held no text: some servers send the last token so,
        # others send it before.
        self.last_empty = False

    def feed(self, data: bytes, now: int) -> None:
        """Take in bytes that were read at ``now`` (ns). Raises StreamError."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._rest, lines[0]])
            self._rest, self._rest_size = [], 0
        if rest:
            self._rest.append(rest)
            self._rest_size += len(rest)
            self._check_size(self._rest_size)
        for line in lines:
            if not (line or self._event or self._name):
                continue
            if self.done:  # nothing that matters follows
                return
            self._take(line, now)

    def _take(self, line: bytes, now: int) -> None:
        if not self._heard:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.startswith(b"data:"):
            self._heard = True
            self._event.append(line[5:].removeprefix(b" "))
            self._event_size += len(line)
            self._check_size(self._event_size)
        elif not line:
            self._dispatch(now)
        elif line.startswith(b"event:"):
            self._name = line[6:].strip().lower()
        elif not line.startswith(_FIELDS):
            if self._heard:
                raise StreamError(_garbage(line))
            said = message_in(line)
            raise StreamError(f"{NO_STREAM}: {said}" if said else NO_STREAM)

    def _check_size(self, size: int) -> None:
        if size > EVENT_BYTES:
            raise Endless(f"an event without an end, longer than {EVENT_BYTES:,} bytes")

    def close(self, now: int) -> None:
        """The stream has ended; an event without its blank line counts. Raises StreamError."""
        if self._rest:
            self.feed(b"\n", now)
        if not self.done:
            self._dispatch(now)

    def _dispatch(self, now: int) -> None:
        name, lines = self._name, self._event
        self._name, self._event, self._event_size = b"", [], 0
        data = b"\n".join(lines)
        if name == b"error":
            raise StreamError(f"error in the stream: {message_of(data) or 'it says no more'}")
        if not data.strip():  # no event at all, as the standard has it
            return
        if data.strip() == b"[DONE]":
            self.done = True
            return
        chunk = _chunk_of(data)
        if _is_error(chunk):
            raise StreamError(f"error in the stream: {message_of(data)}")
        if bytes(chunk.usage) not in _EMPTY:
            self.usage.take(chunk.usage)
        choices = chunk.choices or []
        self._check_single(choices)
        alive = name in _ALIVE or bytes(chunk.type).strip(b'"') in _ALIVE
        if chunk.choices is None and bytes(chunk.usage) in _EMPTY and not alive:
            self._aside = data
        self._read(choices[0] if choices else _Choice(), now)

    def _check_single(self, choices: list[_Choice]) -> None:
        """One answer was asked for: tokens of several, counted as one's, would be too many."""
        for choice in choices:
            if choice.index is not None and self._index is None:
                self._index = choice.index
            if len(choices) > 1 or choice.index not in (None, self._index):
                raise BadEnd("several answers (choices), where one was asked for")

    def _read(self, choice: _Choice, now: int) -> None:
        size, reason = _text_size(choice), choice.finish_reason or ""
        if reason:
            self.stopped, self.last_empty = _REASONS.get(reason, ""), size == 0
        if size or (not reason and not self.stopped and self._is_token(choice)):
            self.reasoned += _reasons(choice.delta)
            self._deliver(now, size)
        else:
            self.usage.mark(0)
            if self.deliveries and self.deliveries[-1].counted >= 0:
                # It has no text of its own, so what it counts is what is here.
                self.deliveries[-1].counted = self.usage.completion
        if reason and not self.stopped:
            raise BadEnd(f"ended by the server: {reason}")

    def _is_token(self, choice: _Choice) -> bool:
        """A chunk without text may still be a token (half a letter), unless the server's own count
        says that it is none; a role is none.
        """
        if self.usage.completion >= 0 and not self.usage.rises:
            return False
        if choice.delta is not None:
            return choice.delta.content == "" and choice.delta.role is None
        return choice.text == ""

    def _deliver(self, now: int, size: int) -> None:
        self.usage.mark()
        counted = self.usage.completion
        if self.deliveries and self.deliveries[-1].time == now:
            last = self.deliveries[-1]
            last.chunks += 1
            last.empty += not size
            last.size += size
            last.counted = counted
        else:
            self.deliveries.append(Delivery(now, 1, size, counted, int(not size)))

    def tokens(self, bound: int = 0) -> Counted:
        """The tokens that were read, where ``bound`` were asked for."""
        return count_tokens(
            self.deliveries,
            self.usage,
            bound=bound,
            last_empty=self.last_empty,
            reasoned=self.reasoned > 0,
        )

    def end(self, *, whole: bool = True) -> str:
        """Why it ended; to be asked once it has, ``whole`` as far as HTTP says. Raises StreamError
        for what is no answer.
        """
        if not (self.done or self.stopped):
            never = whole and not self._heard
            raise StreamError(NO_STREAM if never else "the stream ended early")
        if self._aside and not self.stopped:
            raise BadEnd(f"ended without a finish reason, after: {message_of(self._aside)}")
        if not any(delivery.size for delivery in self.deliveries) and (
            not self.deliveries or self.usage.completion <= 0
        ):
            hidden = max(0, self.usage.reasoning)
            after = f", after {hidden:,} tokens of hidden reasoning" if hidden else ""
            raise BadEnd(f"ended without a token{after}")
        return self.stopped or _UNTOLD


def _chunk_of(data: bytes) -> _StreamChunk:
    """The chunk in an event. Raises StreamError for what is none."""
    try:
        return _decode(data)
    except UNREADABLE:
        pass
    try:
        # Servers that cut their text into 16-bit units send half a letter as an escape.
        return _decode(_HALF_A_LETTER.sub(b"\\\\ufffd", data))
    except UNREADABLE:
        raise StreamError(_garbage(data)) from None


def _is_error(chunk: _StreamChunk) -> bool:
    """It says that something failed, in one of the shapes in which servers do."""
    code = _value(chunk.code)
    if any(_fails(found.error) for found in (chunk, *(chunk.choices or ()))):
        return True
    if b'"error"' in (bytes(chunk.object), bytes(chunk.type)):
        return True
    if chunk.choices:
        return False
    if isinstance(code, int) and code >= _LEAST_CODE:
        return True
    if bytes(chunk.usage) not in _EMPTY:
        return False
    message = _value(chunk.message)
    said = message if isinstance(message, str) else ""
    return bool(said or _value(chunk.detail) or (isinstance(code, str) and code))


def _fails(data: msgspec.Raw) -> bool:
    """A field ``error`` says that there is one."""
    error = _value(data)
    return any(error.values()) if isinstance(error, dict) else bool(error)


def _value(data: msgspec.Raw) -> Any:
    """What a field holds; ``false``, 0 and empty ones say that there is nothing."""
    try:
        return msgspec.json.decode(data) if bytes(data) else None
    except UNREADABLE:
        return True


def _reasons(delta: _Delta | None) -> bool:
    return delta is not None and bool(delta.reasoning_content or delta.reasoning)


def _text_size(choice: _Choice) -> int:
    """Characters of whatever the model has generated in a chunk."""
    size = len(choice.text or "")
    delta = choice.delta
    if delta is not None:
        size += len(delta.content or "") + len(delta.reasoning_content or "")
        size += len(delta.reasoning or "") + len(delta.refusal or "")
        size += sum(len(bytes(call)) for call in delta.tool_calls or [])
        called = bytes(delta.function_call)
        size += 0 if called in _EMPTY else len(called)
    return size


def _garbage(data: bytes) -> str:
    return f"garbage in the stream: '{data.decode(errors='replace')}'"
