"""SGLang's PD multiplexing: the split follows the decode batch size and nothing else."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from nexusbench.core.batch import Plan, Split
from nexusbench.core.registry import AtLeastOne
from nexusbench.core.specs import DeviceSpec
from nexusbench.core.state import EngineState
from nexusbench.partitioners.base import (
    Partitioner,
    PartitionerOptions,
    disjoint_splits,
    shapes_to_run,
)

# SGLang's documentation for an H200: decode's SMs of 132, from this decode batch size on.
H200_TABLE = ((20, 1), (28, 5), (36, 10), (52, 15), (68, 20), (76, 25))
H200_SMS = 132
LEAST_DECODE_SMS = 16  # of the automatic splits


class PdmuxPartitionerOptions(PartitionerOptions, frozen=True, kw_only=True):
    """``divisions``: ``auto`` (SGLang's, if it is given no table): ``sm_group_num`` - 2 splits from
    even to all but 16 SMs for prefill, the i-th for a decode batch of i x ``decode_bs_divisor`` /
    (``sm_group_num`` - 2) or more; ``h200``: the table of its documentation, on other GPUs the
    same shares.
    """

    divisions: Literal["auto", "h200"] = "auto"
    sm_group_num: Annotated[int, msgspec.Meta(ge=3)] = 8
    decode_bs_divisor: AtLeastOne = 36


class PdmuxPartitioner(Partitioner[PdmuxPartitionerOptions]):
    """A row per decode batch size, chosen when a prefill batch begins and kept until it ends.

    On a GPU that has no such split the nearest legal one (the larger prefill share of two as near).
    Deviations: SGLang waits for both streams before it switches, here each switches at its next
    launch; its all-prefill and all-decode groups are ``idle=expand``.
    """

    advised: ClassVar[tuple[str, ...]] = ("", "divisions=h200")
    source: ClassVar[str] = "SGLang main, srt/multiplex and its documentation of PD multiplexing"

    def initial(self, spec: DeviceSpec) -> Split:
        """The row of the smallest decode batch."""
        options = self.options
        legal = disjoint_splits(spec, self.name)
        if options.divisions == "h200":
            self._rows = [(_nearest(legal, share / H200_SMS), least) for share, least in H200_TABLE]
        else:
            self._rows = _automatic(legal, options.sm_group_num - 2, options.decode_bs_divisor)
        return self._rows[0][0]

    def split(self, plan: Plan, state: EngineState) -> Split:
        """The row of the decode batch, if ``plan`` begins a prefill batch beside one."""
        layers = [batch.layers for batch in plan.batches if batch.partition == "prefill"]
        decode = shapes_to_run(plan, state).get("decode")
        if decode is None or not layers or (layers[0] is not None and layers[0][0]):
            return state.split
        row = 0
        for number, (_, least) in enumerate(self._rows):
            if decode.num_decodes >= least:
                row = number
        self.mode = f"row {row + 1}"
        return self.settle(self._rows[row][0], state, 1)


def _nearest(legal: list[Split], decode_share: float) -> Split:
    """The legal split whose decode share is nearest."""
    total = sum(legal[0].sms)
    return min(legal, key=lambda s: (abs(s.of("decode") - decode_share * total), s.of("decode")))


def _automatic(legal: list[Split], count: int, divisor: int) -> list[tuple[Split, int]]:
    """At most ``count`` splits, evenly spaced from the even one on, and their batch sizes."""
    usable = [s for s in legal if LEAST_DECODE_SMS <= s.of("decode") <= s.of("prefill")]
    usable = usable or [min(legal, key=lambda s: abs(s.of("prefill") - s.of("decode")))]
    step = max(1, len(usable) // count)
    chosen = usable[::step][:count][::-1]
    # Row i is in force from the first batch size b with b x rows // divisor >= i on.
    return [(split, -(-i * divisor // len(chosen))) for i, split in enumerate(chosen, 1)]
