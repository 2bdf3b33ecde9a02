"""Measured points: what a sweep gives and a fit reads."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from nexusbench.core.batch import BatchShape

# "streams": two launches that both claim all SMs, of any phases; "pair": disjoint SMs
Kind = Literal["prefill", "decode", "mixed", "pair", "streams"]


class PointSetting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is measured: ``shape`` on ``sms`` SMs, alone or beside ``neighbour`` on its SMs.

    ``contexts`` are the decodes' context lengths where they differ (() for all alike): a real
    device's time depends on them, a :class:`BatchShape` only holds their sum. ``held_out`` points
    judge fits and are never fitted.
    """

    kind: Kind
    shape: BatchShape
    sms: int
    neighbour: BatchShape | None = None
    neighbour_sms: int = 0
    contexts: tuple[int, ...] = ()
    held_out: bool = False

    @property
    def key(self) -> str:
        """A name that is equal only for equal settings; what was measured is found by it."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]

    @property
    def phase(self) -> str:
        """``prefill``, ``decode`` or ``mixed``: what the measured side computes."""
        if self.shape.chunks and self.shape.num_decodes:
            return "mixed"
        return "prefill" if self.shape.chunks else "decode"


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A setting and what was measured.

    ``samples_ns`` are all samples, ``outliers`` the positions of those left out of ``ns`` (their
    median). ``interval`` is the 95 % half-width of ``ns`` as a share of it. ``operators_ns`` splits
    a step by operator class where the device can. ``alone_ns`` is the same shape on the same SMs
    without the neighbour (pairs), ``discarded`` the samples in which the neighbour was not busy
    throughout. ``warnings`` say what to distrust: throttling, a busy machine, a wide interval.
    """

    setting: PointSetting
    ns: float
    interval: float
    samples_ns: tuple[float, ...]
    outliers: tuple[int, ...] = ()
    operators_ns: dict[str, float] = {}
    alone_ns: float | None = None
    discarded: int = 0
    counters: dict[str, float | None] = {}
    warnings: tuple[str, ...] = ()

    @property
    def slowdown(self) -> float | None:
        """How many times longer than alone on the same SMs; None without a neighbour."""
        return None if self.alone_ns is None else self.ns / self.alone_ns
