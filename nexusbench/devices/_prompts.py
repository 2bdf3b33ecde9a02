"""Token ids of every request: from the trace, or made so that equal prefixes are equal tokens."""

from __future__ import annotations

import numpy as np

from nexusbench.core.request import Request
from nexusbench.devices.base import Serving

# Streams of the generator, so that blocks with a name and tokens without one never coincide.
_NAMED, _OWN = 1, 2


class Prompts:
    """Known tokens of each request: its prompt, then what was generated.

    A block that the trace names (``prefix_ids``) has tokens that follow from the seed and its name
    alone, whoever asks for it; what has no name follows from the request's index. Lengths are exact
    and nothing depends on the order of asking.
    """

    def __init__(self, serving: Serving, vocab_size: int) -> None:
        self._serving, self._vocab = serving, vocab_size
        self._known: dict[int, list[int]] = {}
        self._blocks: dict[int, list[int]] = {}

    def known(self, request: Request) -> list[int]:
        """All tokens known of it; the list grows as tokens are generated."""
        tokens = self._known.get(request.index)
        if tokens is None:
            given = self._serving.prompts.get(request.index)
            tokens = list(given) if given is not None else self._made(request)
            self._known[request.index] = tokens
        return tokens

    def forget(self, request: Request) -> list[int]:
        """Drop a request that ended; returns what it generated."""
        tokens = self._known.pop(request.index, None)
        return [] if tokens is None else tokens[request.num_prompt_tokens :]

    def _made(self, request: Request) -> list[int]:
        count, size = request.num_prompt_tokens, self._serving.hash_block
        tokens: list[int] = []
        for name in request.prefix_ids:
            if len(tokens) >= count:
                break
            tokens += self._block(name, size)
        if len(tokens) < count:
            tokens += self._draw(_OWN, request.index, count - len(tokens))
        del tokens[count:]
        return tokens

    def _block(self, name: int, size: int) -> list[int]:
        known = self._blocks.get(name)
        if known is None:
            known = self._blocks[name] = self._draw(_NAMED, name, size)
        return known

    def _draw(self, stream: int, name: int, count: int) -> list[int]:
        random = np.random.default_rng((self._serving.seed, stream, name))
        drawn: list[int] = random.integers(0, self._vocab, count).tolist()
        return drawn
