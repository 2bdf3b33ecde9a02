"""How aiconfigurator's collector routed the tokens of its measurements of experts.

Either evenly, or with a number of tokens for each expert that follows a power law, drawn anew for
each repetition; the GPU that is measured has the most loaded share of the experts. A mean over a
few draws from a seed stands for the collector's own, which are not published.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from nexusbench.physics.experts import HEIGHTS, Routing

_DRAWS = 4
_MOST, _SPARSE = 0.8, (0.01, 2.0)  # of tokens, on one expert; where there are few tokens
_TURNS = 64  # through all experts; of more, all but the last are taken at once
Counts = npt.NDArray[np.int64]


@lru_cache(maxsize=1 << 15)
def routing(tokens: int, experts: int, chosen: int, gpus: int, exponent: float) -> Routing:
    """``tokens`` tokens that go to ``chosen`` of ``experts`` experts each, of which one in ``gpus``
    is on the measured GPU. ``exponent`` of the power law: 0 is evenly.
    """
    held = max(1, experts // gpus)
    assigned = float(tokens * chosen)
    if exponent == 0:
        rows = max(1.0, assigned / gpus)
        touched = min(float(held), rows)
        low, more = divmod(rows, touched)
        share = more / touched  # of the experts that have one row more
        tiles = [
            touched * ((1.0 - share) * -(-low // high) + share * -(-(low + 1.0) // high))
            for high in HEIGHTS
        ]
        return Routing(float(tokens), assigned, held, touched, rows, tuple(tiles))
    counts = _hottest(_drawn(tokens, experts, chosen, gpus, exponent), held, gpus)
    tiles = [float((-(-counts // high)).sum(axis=1).mean()) for high in HEIGHTS]
    touched = float((counts > 0).sum(axis=1).mean())
    rows = float(counts.sum(axis=1).mean())
    return Routing(float(tokens), assigned, held, touched, rows, tuple(tiles))


def _drawn(tokens: int, experts: int, chosen: int, gpus: int, exponent: float) -> Counts:
    """Tokens of each expert in _DRAWS draws: at most all of them, ``tokens * chosen`` in all."""
    generator = np.random.default_rng(tokens * 1000003 + experts * 1009 + chosen * 31 + gpus)
    low, high = (1.0, _MOST * tokens) if tokens * chosen > experts else _SPARSE
    power = 1.0 - exponent
    uniform = generator.random((_DRAWS, experts))
    weights = ((high**power - low**power) * uniform + low**power) ** (1.0 / power)
    made: Counts = np.rint(weights / weights.sum(axis=1, keepdims=True) * tokens * chosen).astype(
        np.int64
    )
    np.minimum(made, tokens, out=made)
    groups = gpus if experts % gpus == 0 else 1
    for draw in made:
        _settle(draw.reshape(groups, -1), tokens, tokens * chosen)
    return made


def _settle(counts: Counts, most: int, wanted: int) -> None:
    """What rounding left over or took too much, GPU by GPU in turn: one token at a time to (or
    from) its experts with the fewest (most) tokens. In place.
    """
    while (missing := wanted - int(counts.sum())) != 0:
        step = 1 if missing > 0 else -1
        many = abs(missing) // counts.size
        if many > _TURNS:
            counts += step * many
            np.clip(counts, 0, most, out=counts)
            continue
        open_ = counts < most if step > 0 else counts > 0
        groups = len(counts)
        turns = np.full(groups, abs(missing) // groups)
        turns[: abs(missing) % groups] += 1
        keys = np.where(open_, counts * step, np.iinfo(np.int64).max)
        ranks = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1, kind="stable")
        chosen = open_ & (ranks < turns[:, None])
        if not chosen.any():
            return
        counts += step * chosen


def _hottest(counts: Counts, held: int, gpus: int) -> Counts:
    """The experts of the GPU with the most tokens, in each draw."""
    if gpus == 1:
        return counts
    shares = counts[:, : held * gpus].reshape(len(counts), gpus, held)
    hottest: Counts = shares[np.arange(len(counts)), shares.sum(axis=2).argmax(axis=1)]
    return hottest
