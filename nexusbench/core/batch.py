"""The values that policies, engine and devices exchange: batches, plans, splits and what a step
gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import mul
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from nexusbench.core.request import Request

PreemptionKind = Literal["recompute", "swap"]


class Chunk(msgspec.Struct, gc=False, eq=False):
    """``num_tokens`` consecutive tokens of one request, after ``context`` computed ones."""

    request: Request
    num_tokens: int
    context: int


class BatchShape(msgspec.Struct, frozen=True, gc=False):
    """What a cost model is given of a batch: sizes, no requests.

    ``decode_context`` is the sum over decodes of the tokens already in the KV cache; ``chunks``
    holds ``(num_tokens, context)`` pairs; ``layers`` is a half-open range, ``repeat`` the decode
    steps in one launch. ``remote`` counts ``(decodes, context)`` among them whose attention runs
    where their KV is, on another GPU (Adrenaline). ``unequal`` holds (the longest, the sum of the
    squares) of the other decodes' contexts; UNSET: not known, and they count as equally long.
    """

    num_decodes: int
    decode_context: int
    chunks: tuple[tuple[int, int], ...] = ()
    layers: tuple[int, int] | None = None
    repeat: int = 1
    remote: tuple[int, int] | None = None
    unequal: tuple[int, int] | UnsetType = UNSET  # left out of files where it is not known

    @property
    def num_tokens(self) -> int:
        """Rows of the dense layers."""
        total = self.num_decodes
        for count, _ in self.chunks:
            total += count
        return total

    @property
    def at_home(self) -> BatchShape:
        """What its own GPU computes of it: all rows, less the keys that are read elsewhere, the
        rest taken as equally many for each row.
        """
        if self.remote is None:
            return self
        context = self.decode_context - self.remote[1]
        return BatchShape(self.num_decodes, context, self.chunks, self.layers, self.repeat)


def spread_of(contexts: Sequence[int]) -> tuple[int, int] | UnsetType:
    """What :class:`BatchShape` says of unequal contexts; UNSET for none."""
    if not contexts:
        return UNSET
    return max(contexts), sum(map(mul, contexts, contexts))


class Batch(msgspec.Struct, gc=False, eq=False):
    """What one partition computes in one launch.

    ``decodes`` compute one token each (the last known one), ``chunks`` several. ``layers``
    restricts the launch to a half-open range of layers (layer-wise prefill), ``repeat`` > 1 asks
    for that many decode steps at once. ``remote_sms`` are the SMs of another GPU that compute
    ``shape.remote``.
    """

    partition: str
    decodes: list[Request]
    chunks: list[Chunk]
    shape: BatchShape
    layers: tuple[int, int] | None = None
    repeat: int = 1
    remote_sms: int = 0

    @property
    def items(self) -> Iterator[tuple[Request, int]]:
        """Every (request, tokens to compute) of the batch."""
        for request in self.decodes:
            yield request, 1
        for chunk in self.chunks:
            yield chunk.request, chunk.num_tokens


class Preemption(msgspec.Struct, frozen=True, gc=False):
    """Take a request's KV blocks away; ``recompute`` drops them, ``swap`` moves them to host
    memory.
    """

    request: Request
    kind: PreemptionKind = "recompute"
    lost_tokens: int = 0  # computed tokens given up, before any are found again in the cache


class Transfer(msgspec.Struct, frozen=True, gc=False):
    """Move a request's KV blocks to another pool: of another GPU, or of the host (swap).

    Pools are numbers of ``DeviceSpec.pools``. The request is in flight until the copy has ended and
    holds its blocks on both sides till then; ``blocks`` are those on the far side.
    """

    request: Request
    source: int
    target: int
    blocks: list[int]


class Plan(msgspec.Struct, gc=False):
    """What a policy proposes at one instant: a value, nothing has happened yet on the device.

    ``wake_at`` (ns) asks to be called again at that time even if nothing happens before.
    """

    batches: list[Batch] = []
    preemptions: list[Preemption] = []
    transfers: list[Transfer] = []
    wake_at: int | None = None

    @property
    def empty(self) -> bool:
        """Nothing to launch, preempt or move."""
        return not (self.batches or self.preemptions or self.transfers)


class Split(msgspec.Struct, frozen=True, gc=False):
    """How many SMs each partition has. ``overlapping`` splits share SMs, e.g. (100 %, 100 %)."""

    partitions: tuple[str, ...]
    sms: tuple[int, ...]
    overlapping: bool = False

    def of(self, partition: str) -> int:
        """SMs of ``partition``."""
        return self.sms[self.partitions.index(partition)]

    def __str__(self) -> str:
        return "/".join(map(str, self.sms)) + ("*" if self.overlapping else "")


class TransferOutput(msgspec.Struct, gc=False):
    """A copy of KV blocks that has ended, by the number it was submitted under."""

    transfer: int
    end_ns: int


class StepOutput(msgspec.Struct, gc=False):
    """A launch, or one repetition of it, that has ended.

    ``end_ns`` is on the device's clock; ``solo_ns`` is what it would have taken with no neighbour
    on the same SMs (-1 where the device cannot tell); ``last`` is False for all but the last
    repetition; ``tokens`` are the sampled token ids, one for each decode and then one for each
    chunk that reaches the end of its request's tokens, or None on a device that only keeps time;
    ``operators_ns`` splits the time by operator class (``dense``, ``attention``), None unless the
    device was opened to report it and can.
    """

    step: int
    end_ns: int
    solo_ns: int = -1
    last: bool = True
    tokens: list[int] | None = None
    operators_ns: dict[str, float] | None = None
