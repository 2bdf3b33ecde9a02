"""How much a sweep measures: ``quick``, ``default``, ``full``."""

from __future__ import annotations

import msgspec

from nexusbench.profiling.measure import SamplingRule


class Effort(msgspec.Struct, frozen=True):
    """The sizes of a sweep's grids and its patience.

    Axes are powers of ``ratio`` between a least value and what the device allows, which is always
    among them; ``longest`` bounds contexts (tokens), ``least_share`` the SMs of a partition (below
    it a launch takes seconds and no policy goes there willingly). ``coarse``, ``line_budget`` and
    ``reference_budget`` count SM positions of a line, ``sharing_sms`` those of the lines that tell
    what sharing costs, ``stream_sides`` the batches of a phase that are put beside others on all
    SMs; the rest counts values picked from the axes.
    """

    name: str
    sampling: SamplingRule
    ratio: int
    longest: int
    least_share: float
    coarse: int
    line_budget: int
    reference_budget: int
    skewed_sms: int
    mixed_each: int
    pair_chunks: int
    pair_contexts: int
    pair_batches: int
    pair_lengths: int
    pair_splits: int
    held_out_shapes: int
    held_out_sms: int
    held_out_pairs: int
    held_out_splits: int
    sharing_sms: int
    stream_sides: int

    def chunks_up_to(self, most: int) -> tuple[int, ...]:
        """Chunk sizes in tokens."""
        return self._axis(128 if self.ratio > 2 else 64, most)

    def contexts_up_to(self, most: int) -> tuple[int, ...]:
        """Tokens before a chunk, zero not among them."""
        return self._axis(1024 if self.ratio > 2 else 512, most)

    def batches_up_to(self, most: int) -> tuple[int, ...]:
        """Decodes in a batch."""
        return self._axis(1, most, min(self.ratio, 4) if self.ratio < 4 else 6)

    def lengths_up_to(self, most: int) -> tuple[int, ...]:
        """Contexts of decodes."""
        return self._axis(128, most)

    def _axis(self, least: int, most: int, ratio: int = 0) -> tuple[int, ...]:
        """``least``, times the ratio each, and ``most`` unless the last is close to it."""
        ratio = ratio or self.ratio
        values = []
        value = least
        while value < most:
            values.append(value)
            value *= ratio
        if len(values) > 1 and values[-1] * 1.4 > most:
            values.pop()
        return (*values, most)


QUICK = Effort(
    "quick", SamplingRule(5, 15, 0.02, 1.0), ratio=4, longest=32_768, least_share=0.12,
    coarse=4, line_budget=6, reference_budget=14, skewed_sms=2, mixed_each=2,
    pair_chunks=2, pair_contexts=3,
    pair_batches=2, pair_lengths=2, pair_splits=4, held_out_shapes=5, held_out_sms=4,
    held_out_pairs=2, held_out_splits=3, sharing_sms=12, stream_sides=2,
)  # fmt: skip
DEFAULT = Effort(
    "default", SamplingRule(8, 40, 0.01, 4.0), ratio=3, longest=32_768, least_share=0.08,
    coarse=5, line_budget=9, reference_budget=24, skewed_sms=4, mixed_each=3,
    pair_chunks=3, pair_contexts=3,
    pair_batches=3, pair_lengths=2, pair_splits=7, held_out_shapes=8, held_out_sms=6,
    held_out_pairs=3, held_out_splits=5, sharing_sms=16, stream_sides=3,
)  # fmt: skip
FULL = Effort(
    "full", SamplingRule(15, 100, 0.005, 60.0), ratio=2, longest=1 << 30, least_share=0.0,
    coarse=7, line_budget=16, reference_budget=200, skewed_sms=6, mixed_each=4,
    pair_chunks=4, pair_contexts=4,
    pair_batches=4, pair_lengths=3, pair_splits=12, held_out_shapes=8, held_out_sms=10,
    held_out_pairs=4, held_out_splits=8, sharing_sms=200, stream_sides=4,
)  # fmt: skip
EFFORTS = {effort.name: effort for effort in (QUICK, DEFAULT, FULL)}
