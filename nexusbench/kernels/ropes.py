"""What a rotary position embedding is: its frequencies, and how they are scaled. No torch here."""

from __future__ import annotations

from typing import Literal

import msgspec

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]


class Rope(msgspec.Struct, frozen=True):
    """Rotary position embedding: base ``theta`` and how its frequencies are scaled.

    ``linear`` divides all by ``factor`` (Position Interpolation, arXiv 2306.15595); ``llama3``
    divides those of wavelengths beyond ``original_max_len / low_freq_factor`` and blends up to
    ``original_max_len / high_freq_factor`` (Llama 3.1's reference code); ``yarn`` blends between
    the pairs that turn ``beta_fast`` and ``beta_slow`` times within ``original_max_len``, counted
    in whole pairs with ``truncate`` (2309.00071, section 3.2); ``longrope`` divides each by one of
    ``divisors`` (2402.13753).

    Rotated values are multiplied by ``magnitude``. Positions from ``longest`` on have other
    frequencies, which are not computed (0: all are alike).
    """

    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_len: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    divisors: tuple[float, ...] = ()
    magnitude: float = 1.0
    longest: int = 0
