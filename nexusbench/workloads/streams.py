"""Random numbers: one independent stream per purpose, so that one more draw disturbs no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def stream(seed: int, *purpose: str) -> np.random.Generator:
    """The PCG64 stream of ``seed`` (0 or more) for a purpose, named from general to special."""
    import numpy as np

    key = "/".join(purpose).encode()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=tuple(key))))
