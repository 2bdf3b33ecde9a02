"""Prompts of a given length, made up: the same request gets the same one in every run of a seed.

Requests whose hash ids name the same blocks share these blocks word for word, so that a server's
prefix cache finds what the engine's would. An answer that a later turn repeats is made up too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from random import Random

import msgspec

from nexusbench.core.request import Request
from nexusbench.core.units import ceil_div

# Short, frequent words: most vocabularies have each of them, with a blank before it, as one token.
_TEXT = """
the of and to in is that for it as was with be by on not he his but at are this have from or had
an they which one you were all her she there would their we him been has when who will no more if
out so up said what its about than into them can only other time new some could these two may
first then do any like my now over such our man me even most made after also well did many must
through years where much your way down should because long each just state people those too how
little good make world still see own work men day get here old life both between
"""
WORDS = tuple(_TEXT.split())
_CACHED = 4096  # blocks that are kept for the next request that shares them


class TextMeasure(msgspec.Struct, frozen=True):
    """What a server counts for a text: ``fixed`` tokens for any (a template, a first token), and
    ``per_word`` for each word.
    """

    per_word: float = 1.0
    fixed: float = 0.0

    def words(self, tokens: int) -> int:
        """The number of words nearest to ``tokens``; at least one."""
        return max(1, round((tokens - self.fixed) / self.per_word))


class ReplayPrompts:
    """Makes prompts as token ids below ``vocab_size``, or as text if a ``measure`` is given.

    ``hash_block`` is how many tokens each of a request's prefix ids names. ``given`` holds the
    prompts that are known, by index of the request: as ids they are not made up.
    """

    def __init__(
        self,
        seed: int,
        hash_block: int,
        vocab_size: int,
        measure: TextMeasure | None = None,
        given: Mapping[int, Iterable[int]] | None = None,
    ) -> None:
        self._seed, self._measure, self._given = seed, measure, given or {}
        # Low ids are often special tokens or single bytes.
        self._low = min(1000, vocab_size // 4)
        self._span = vocab_size - self._low
        self._block = hash_block
        if measure is not None:
            self._block = max(1, round(hash_block / measure.per_word))
        self._piece = lru_cache(_CACHED)(self._make)

    def of(self, request: Request) -> bytes:
        """The prompt of ``request``, ready to stand in JSON."""
        length = request.num_prompt_tokens
        if self._measure is not None:
            length = self._measure.words(length)
        elif request.index in self._given:
            return ",".join(map(str, self._given[request.index])).encode()
        named = request.prefix_ids
        pieces = []
        for number in range(ceil_div(length, self._block)):
            size = min(self._block, length - number * self._block)
            if number < len(named):
                pieces.append(self._piece(f"p{named[number]}", size))
            else:
                pieces.append(self._make(f"r{request.index}.{number}", size))
        return (b"," if self._measure is None else b" ").join(pieces)

    def _make(self, name: str, size: int) -> bytes:
        """``size`` ids or words; a longer piece of the same name begins with them."""
        draw = Random(f"{self._seed}/{name}").random
        if self._measure is None:
            low, span = self._low, self._span
            return b",".join([b"%d" % (low + int(draw() * span)) for _ in range(size)])
        count = len(WORDS)
        return " ".join([WORDS[int(draw() * count)] for _ in range(size)]).encode()
