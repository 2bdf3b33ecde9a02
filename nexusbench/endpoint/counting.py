"""How many tokens each delivery of an answer carried, by what the server says it has counted.

A server's usage may be zero, constant, falling or leaping. It moves tokens only where it is a
running count: one that rises with every chunk, by no more than the chunk's text can hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from nexusbench.endpoint.sayings import UNREADABLE

UNKNOWN = -1
_MOST_COUNTED = 2**53
# Tokens that a chunk may hold beyond one for each sign of its text: special ones have none.
_SILENT = 8
# A chunk in so many may add no token to a running count: one token can be cut in two.
_STALLING = 10
# More signs a token on average has no text; whitespace and runs of one sign are near it.
_LONGEST_TOKENS = 16

# How the tokens of an answer were counted, in words.
COUNTING = {
    "each": "by the usage that came with each chunk",
    "end": "one a chunk, and the usage at the end agrees",
    "spread": "by the usage at the end, spread over the chunks by their text",
    "none": "one a chunk, for want of usage",
    "refused": "one a chunk, for the usage cannot be a count of them",
}


class Delivery(msgspec.Struct, gc=False):
    """The content of one read: its time, chunks with something in them, their characters, and the
    tokens of the whole answer that the server had counted by then (-1 where it did not say).
    ``empty``: how many of the chunks had no character.
    """

    time: int
    chunks: int
    size: int
    counted: int
    empty: int = 0


class Counted(NamedTuple):
    """(time, tokens) of every delivery with tokens; a key of COUNTING; and how many tokens were
    counted that were never sent: a server may keep the model's reasoning to itself.
    """

    steps: list[tuple[int, int]]
    how: str
    hidden: int


class _Details(msgspec.Struct):
    cached_tokens: Any = None
    reasoning_tokens: Any = None


class _Said(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None


_decode = msgspec.json.Decoder(_Said).decode


class Usage:
    """What a server has counted of one answer so far; UNKNOWN for what it does not say.

    ``odd`` names the fields that held no number of tokens: they are left out, not believed.
    """

    __slots__ = (
        "_chunks", "_marked", "_stalls", "cached", "completion", "fell", "odd", "prompt",
        "reasoning",
    )  # fmt: skip

    def __init__(self) -> None:
        self.prompt = self.completion = self.cached = self.reasoning = UNKNOWN
        self.odd: set[str] = set()
        self.fell = False
        self._marked = self._chunks = self._stalls = 0

    def take(self, data: msgspec.Raw) -> None:
        """Take in a chunk's ``usage``."""
        try:
            said = _decode(data)
        except UNREADABLE:
            self.odd.add("usage")
            return
        of_prompt = self._details("prompt_tokens_details", said.prompt_tokens_details)
        of_answer = self._details("completion_tokens_details", said.completion_tokens_details)
        # Nothing is prompted with no token: a 0 there says that nothing was counted.
        self.prompt = self._number("prompt_tokens", said.prompt_tokens, self.prompt, 1)
        self.cached = self._number("cached_tokens", of_prompt.cached_tokens, self.cached)
        self.reasoning = self._number(
            "reasoning_tokens", of_answer.reasoning_tokens, self.reasoning
        )
        before = self.completion
        self.completion = self._number("completion_tokens", said.completion_tokens, before)
        self.fell = self.fell or self.completion < before

    def _number(self, name: str, value: Any, before: int, least: int = 0) -> int:
        if value is None or (value == 0 and least):
            return before
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is int and least <= value <= _MOST_COUNTED:
            return value
        self.odd.add(name)
        return before

    def _details(self, name: str, found: Any) -> _Details:
        try:
            return msgspec.convert({} if found is None else found, _Details)
        except msgspec.ValidationError:
            self.odd.add(name)
            return _Details()

    @property
    def rises(self) -> bool:
        """There is a count, and it is higher than at the last chunk with something in it."""
        return self.completion > self._marked

    def mark(self, chunk: int = 1) -> None:
        """A chunk with content was read (or, with 0, one that only counts)."""
        self._chunks += chunk
        self._stalls += chunk and not self.rises
        self._marked = max(self._marked, self.completion)

    @property
    def runs(self) -> bool:
        """It rose with every chunk so far, as far as a count can."""
        return self.completion > 0 and not self.fell and self._stalls * _STALLING <= self._chunks


def count_tokens(
    deliveries: Sequence[Delivery],
    usage: Usage,
    *,
    bound: int = 0,
    last_empty: bool = False,
    reasoned: bool = False,
) -> Counted:
    """The tokens of ``deliveries``, of an answer that was asked for ``bound`` tokens.

    ``last_empty``: the chunk with the finish reason held no text; some servers send the last token
    so. ``reasoned``: the model's reasoning was among what was sent.
    """
    found = list(deliveries)  # the answer may still grow
    number = sum(delivery.chunks for delivery in found)
    hidden = 0 if reasoned else max(0, usage.reasoning)
    if not found:
        return Counted([], "none", hidden)
    texts = number - sum(delivery.empty for delivery in found)
    total = _visible(usage.completion, hidden, {number, texts}, last_empty=last_empty)
    if not hidden and usage.runs:
        marks = [delivery.counted for delivery in found[:-1]] + [total]
        if _plausible(found, marks):
            return Counted(_steps(found, marks), "each", 0)
    chunks = _of_tokens(found, total, last_empty=last_empty)
    if last_empty and total == sum(chunks) + 1:
        chunks[-1] += 1
    if total == sum(chunks):
        how = "end"
    elif total <= 0:
        how = "none"
    elif not _believable(found, usage, total, bound):
        how = "refused"
    else:
        return Counted(_steps(found, _spread(found, total)), "spread", hidden)
    pairs = zip(found, chunks, strict=True)
    return Counted([(d.time, count) for d, count in pairs if count], how, hidden)


def _visible(total: int, hidden: int, chunks: set[int], *, last_empty: bool) -> int:
    """The tokens sent of ``total``: some servers count hidden ones apart, others within."""
    apart = hidden > total or not chunks.isdisjoint((total, total - last_empty))
    return total if apart else total - hidden


def _of_tokens(found: list[Delivery], total: int, *, last_empty: bool) -> list[int]:
    """How many chunks of each delivery are taken for tokens, where ``total`` were counted.

    An empty one may be a token (half of a letter), or only say that the server is alive. Where the
    total does not tell, those before the first text are none: a first token is one that is there.
    """
    chunks = [delivery.chunks for delivery in found]
    texts = [delivery.chunks - delivery.empty for delivery in found]
    if not any(texts) or total in (sum(chunks), sum(chunks) + last_empty):
        return chunks
    if total in (sum(texts), sum(texts) + last_empty):
        return texts
    first = next(place for place, count in enumerate(texts) if count)
    return [0] * first + texts[first : first + 1] + chunks[first + 1 :]


def can_hold(delivery: Delivery, tokens: int) -> bool:
    """Whether one delivery can hold so many tokens."""
    return 0 <= tokens <= delivery.size + _SILENT * delivery.chunks


def _plausible(found: list[Delivery], marks: list[int]) -> bool:
    """No delivery adds more tokens than it can hold."""
    before = 0
    for delivery, mark in zip(found, marks, strict=True):
        if not can_hold(delivery, mark - before):
            return False
        before = mark
    return marks[0] > 0


def _believable(found: list[Delivery], usage: Usage, total: int, bound: int) -> bool:
    """Whether these deliveries can hold so many tokens."""
    number = sum(delivery.chunks for delivery in found)
    size = sum(delivery.size for delivery in found)
    if usage.fell or total > max(bound, size + number):
        return False
    stands = len(found) > 1 and 0 <= found[0].counted == found[-1].counted
    return total >= number or (size <= _LONGEST_TOKENS * total and not stands)


def _spread(found: list[Delivery], total: int) -> list[int]:
    """How many of ``total`` tokens were read by each delivery, by the length of their text."""
    sizes = [delivery.size for delivery in found]
    weights = sizes if sum(sizes) else [delivery.chunks for delivery in found]
    marks, whole, sofar = [], sum(weights), 0
    for weight in weights:
        sofar += weight
        marks.append(max(1, total * sofar // whole) if sofar else 0)
    return marks


def _steps(found: list[Delivery], marks: list[int]) -> list[tuple[int, int]]:
    """Tokens of each delivery from how many there were after it; one that adds none is left out."""
    steps, before = [], 0
    for delivery, mark in zip(found, marks, strict=True):
        if mark > before:
            steps.append((delivery.time, mark - before))
            before = mark
    return steps
