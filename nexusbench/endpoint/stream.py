"""What a server streams back: server-sent events, and how many tokens each delivery carried."""

from __future__ import annotations

import msgspec

NO_STREAM = "answered without a stream of events"
# A line longer than this is no event of any server.
_LONGEST_LINE = 16 << 20
_SHOWN = 80


_NOTHING = msgspec.Raw(b"")


class StreamError(Exception):
    """The stream cannot be read, or says that the server failed; the text is the reason."""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    role: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = _NOTHING
    object: str | None = None
    message: str | None = None


class Delivery(msgspec.Struct, gc=False):
    """What came in one read: its time, chunks with something in them, their characters, and the
    tokens of the whole answer that the server had counted by then (-1 where it did not say).
    """

    time: int
    chunks: int
    size: int
    counted: int


_decode = msgspec.json.Decoder(_Chunk).decode


class Answer:
    """One answer as it arrives.

    Two chunks in one read came at the same moment, as far as a client can tell: they are one
    delivery. ``done`` is set by ``[DONE]``; ``stopped`` is why it
    ended ("length", or "stop" at an end token) once a chunk has said so.
    """

    __slots__ = (
        "_after_cr", "_buffer", "_event", "_heard", "cached_tokens", "completion_tokens",
        "deliveries", "done", "last_empty", "prompt_tokens", "stopped",
    )  # fmt: skip

    def __init__(self) -> None:
        self._buffer = b""
        self._event: list[bytes] = []
        self._after_cr = self._heard = False
        self.deliveries: list[Delivery] = []
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = -1
        self.done = False
        self.stopped = ""
        # The chunk with the finish reason held no text: some servers send the last token so,
        # others send it before.
        self.last_empty = False

    def feed(self, data: bytes, now: int) -> None:
        """Take in bytes that came at ``now``. Raises StreamError."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _LONGEST_LINE:
            raise StreamError("garbage in the stream: a line without an end")
        for line in lines:
            if line.startswith(b"data:"):
                self._heard = True
                self._event.append(line[5:].removeprefix(b" "))
            elif not line:
                self._dispatch(now)
            elif not line.startswith((b":", b"event:", b"id:", b"retry:")):
                what = f"garbage in the stream: {_brief(line)}"
                raise StreamError(what if self._heard else NO_STREAM)

    def close(self, now: int) -> None:
        """The stream has ended; an event without its blank line counts. Raises StreamError."""
        if self._buffer:
            self.feed(b"\n", now)
        self._dispatch(now)

    def _dispatch(self, now: int) -> None:
        if not self._event:
            return
        data = b"\n".join(self._event)
        self._event.clear()
        if data == b"[DONE]":
            self.done = True
            return
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise StreamError(f"garbage in the stream: {_brief(data)}") from None
        error = bytes(chunk.error)
        if error not in (b"", b"null") or chunk.object == "error":
            said = chunk.message or _message(error)
            raise StreamError(f"error in the stream: {said}")
        if chunk.usage is not None:
            self._count(chunk.usage)
        choice = chunk.choices[0] if chunk.choices else None
        size = _text_size(choice) if choice is not None else 0
        if choice is not None and choice.finish_reason is not None:
            self.stopped = "stop" if choice.finish_reason == "stop" else "length"
            self.last_empty = size == 0
        if size or (choice is not None and not self.stopped and _is_token(choice)):
            self._deliver(now, size)
        elif self.deliveries and self.deliveries[-1].counted >= 0:
            # It has no text of its own, so what it counts is what is here.
            self.deliveries[-1].counted = self.completion_tokens

    def _count(self, usage: _Usage) -> None:
        if usage.prompt_tokens is not None:
            self.prompt_tokens = usage.prompt_tokens
        if usage.completion_tokens is not None:
            self.completion_tokens = usage.completion_tokens
        details = usage.prompt_tokens_details
        if details is not None and details.cached_tokens is not None:
            self.cached_tokens = details.cached_tokens

    def _deliver(self, now: int, size: int) -> None:
        counted = self.completion_tokens
        if self.deliveries and self.deliveries[-1].time == now:
            last = self.deliveries[-1]
            last.chunks += 1
            last.size += size
            last.counted = counted
        else:
            self.deliveries.append(Delivery(now, 1, size, counted))

    def tokens(self) -> tuple[list[tuple[int, int]], str]:
        """(time, tokens) of every delivery with tokens, and how they were counted: a key of
        COUNTING.
        """
        found = self.deliveries
        total = self.completion_tokens
        if not found:
            return [], "none"
        if total > 0 and all(delivery.counted >= 0 for delivery in found):
            marks = [delivery.counted for delivery in found[:-1]] + [total]
            return _steps(found, marks), "each"
        chunks = [delivery.chunks for delivery in found]
        if total == sum(chunks) + 1 and self.last_empty:
            chunks[-1] += 1
        if total <= 0 or total == sum(chunks):
            pairs = zip(found, chunks, strict=True)
            return [(d.time, count) for d, count in pairs], "none" if total <= 0 else "end"
        sizes = [delivery.size for delivery in found]
        weights = sizes if sum(sizes) else chunks
        marks, whole, sofar = [], sum(weights), 0
        for weight in weights:
            sofar += weight
            marks.append(max(1, total * sofar // whole))
        return _steps(found, marks), "spread"


# How the tokens of an answer were counted, in words.
COUNTING = {
    "each": "by the usage that came with each chunk",
    "end": "one a chunk, and the usage at the end agrees",
    "spread": "by the usage at the end, spread over the chunks by their text",
    "none": "one a chunk, for want of usage",
}


def _steps(found: list[Delivery], marks: list[int]) -> list[tuple[int, int]]:
    """Tokens of each delivery from how many there were after it; one that adds none is left out."""
    steps, before = [], 0
    for delivery, mark in zip(found, marks, strict=True):
        if mark > before:
            steps.append((delivery.time, mark - before))
            before = mark
    return steps


def _text_size(choice: _Choice) -> int:
    """Characters of whatever the model has generated in a chunk."""
    size = len(choice.text or "")
    delta = choice.delta
    if delta is not None:
        size += len(delta.content or "") + len(delta.reasoning_content or "")
        size += len(delta.reasoning or "") + sum(len(bytes(c)) for c in delta.tool_calls or [])
    return size


def _is_token(choice: _Choice) -> bool:
    """A chunk without text may still be a token (half a letter); a role is none."""
    if choice.delta is not None:
        return choice.delta.content == "" and choice.delta.role is None
    return choice.text == ""


def _brief(data: bytes) -> str:
    text = data[:_SHOWN].decode(errors="replace")
    return repr(text) + ("..." if len(data) > _SHOWN else "")


class _Error(msgspec.Struct):
    message: str


class _Wrapped(msgspec.Struct):
    error: _Error | str | None = None
    message: str | None = None
    detail: msgspec.Raw = _NOTHING


def _message(data: bytes) -> str:
    """What an error's JSON says, in whichever of the usual shapes; else its first words."""
    try:
        found = msgspec.json.decode(data, type=_Wrapped | str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return data[:_SHOWN].decode(errors="replace").strip()
    if isinstance(found, str):
        return found[:_SHOWN]
    error = found.error.message if isinstance(found.error, _Error) else found.error
    said = error or found.message or bytes(found.detail).decode(errors="replace")
    return (said or data.decode(errors="replace"))[:_SHOWN]


def error_reason(status: int, body: bytes) -> str:
    """Why a request failed that was not answered with 200."""
    said = " ".join(_message(body).split())
    return f"HTTP {status}" + (f": {said}" if said else "")
