"""Token ids of every request: from the trace, or made so that equal prefixes are equal tokens."""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from nexusbench.core.request import Request
from nexusbench.devices.base import Serving

Words = npt.NDArray[np.uint64]
# Streams of made tokens, so that blocks with a name and tokens without one never coincide.
_NAMED, _OWN = 1, 2


class Prompts:
    """Known tokens of each request: its prompt, then what was generated.

    A block that the trace names (``prefix_ids``) has tokens that follow from the seed and its name
    alone, whoever asks for it; what has no name follows from the request's index. Lengths are exact
    and nothing depends on the order of asking. Only requests that were scheduled and have not ended
    take memory, 4 bytes a token.
    """

    def __init__(self, serving: Serving, vocab_size: int) -> None:
        self._serving, self._vocab = serving, vocab_size
        self._known: dict[int, array[int]] = {}

    def known(self, request: Request) -> array[int]:
        """All tokens known of it; the array grows as tokens are generated."""
        tokens = self._known.get(request.index)
        if tokens is None:
            given = self._serving.prompts.get(request.index)
            tokens = array("i", given) if given is not None else self._made(request)
            self._known[request.index] = tokens
        return tokens

    def generated(self, request: Request) -> array[int]:
        """What ``request`` has been given, less what was computed beyond its end."""
        tokens = self._known.get(request.index)
        if tokens is None:
            return array("i")
        return tokens[request.num_prompt_tokens : request.num_tokens]

    def forget(self, request: Request) -> None:
        """Drop a request that ended."""
        self._known.pop(request.index, None)

    def _made(self, request: Request) -> array[int]:
        count, size = request.num_prompt_tokens, self._serving.hash_block
        names = np.asarray(request.prefix_ids[: -(-count // size)], dtype=np.uint64)
        named = min(count, len(names) * size)
        words = np.empty(count, dtype=np.uint64)
        place = np.arange(count, dtype=np.uint64)
        named_words = _mix(_mix(names) ^ np.uint64(_NAMED)).repeat(size)[:named]
        words[:named] = named_words ^ _mix(place[:named] % np.uint64(size))
        own = _mix(_mix(np.asarray([request.index], dtype=np.uint64)) ^ np.uint64(_OWN))
        words[named:] = own ^ _mix(place[named:])
        seed = _mix(np.asarray([self._serving.seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
        tokens = array("i")
        tokens.frombytes((_mix(words ^ seed) % np.uint64(self._vocab)).astype(np.int32).tobytes())
        return tokens


def _mix(x: Words) -> Words:
    """splitmix64's output function (Steele et al., OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
