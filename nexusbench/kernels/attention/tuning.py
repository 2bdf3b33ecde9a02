"""Block sizes, warps and pipeline stages of the Triton kernels, as plain tables.

Chosen for Hopper by what a compiler reports without a GPU (``tests/cpu/test_attention.py``
compiles rows for sm_90: no spilled registers, and all programs meant to share an SM fit on it);
which of several sound rows is fastest only ``python -m tests.benchmarks.gpu_kernels --tune`` can
say. No autotuner: it would time candidates in the middle of a run, on SMs that another
partition is using.
"""

from __future__ import annotations

from dataclasses import dataclass

# Bytes of shared memory that the programs on one SM may use together: 228 KiB on sm_90, of which
# each program costs 1 KiB (CUDA C++ programming guide, compute capabilities).
SHARED_PER_SM = 228 * 1024
SHARED_PER_PROGRAM = 1024


@dataclass(frozen=True, slots=True)
class DecodeTile:
    """One inner step takes ``keys`` keys; ``programs_per_sm`` are resident at a time.

    Decode waits for memory, so what counts is bytes in flight: by Little's law 4.8 TB/s at 700 ns
    (our guess of the loaded latency) need 26 KB on each of 132 SMs; every row has twice that.
    """

    keys: int
    warps: int
    stages: int
    programs_per_sm: int


@dataclass(frozen=True, slots=True)
class PrefillTile:
    """A program computes ``rows`` query rows against ``keys`` keys at a time."""

    rows: int
    keys: int
    warps: int
    stages: int


# (largest padded head size, bytes of a value) -> tile; the first row that is large enough.
# Five stages, since a key's address comes from the block table: its load and the key's own take two
# each, and with three or four there is one block of keys in shared memory, loaded while nothing is
# computed. With five there are two.
_DECODE = (
    ((64, 2), DecodeTile(128, 4, 5, 3)),
    ((128, 2), DecodeTile(64, 4, 5, 3)),
    ((256, 2), DecodeTile(32, 4, 5, 3)),
    ((64, 4), DecodeTile(64, 4, 5, 3)),
    ((128, 4), DecodeTile(32, 4, 5, 3)),
    ((256, 4), DecodeTile(16, 4, 5, 2)),
)
# Large tiles for long chunks, small ones for those that would leave SMs of the partition idle.
_PREFILL = (
    ((64, 2), PrefillTile(128, 128, 8, 5), PrefillTile(64, 64, 4, 5)),
    ((128, 2), PrefillTile(128, 64, 8, 5), PrefillTile(64, 64, 4, 3)),
    ((256, 2), PrefillTile(128, 32, 8, 3), PrefillTile(64, 32, 4, 3)),
    # fp32 is for comparisons with a reference: its dot products run on no tensor core.
    ((64, 4), PrefillTile(64, 32, 8, 2), PrefillTile(32, 32, 4, 2)),
    ((128, 4), PrefillTile(32, 16, 8, 2), PrefillTile(16, 16, 4, 2)),
    ((256, 4), PrefillTile(32, 16, 8, 2), PrefillTile(16, 16, 4, 2)),
)
LARGEST_HEAD = 256


def decode_tile(padded_head: int, itemsize: int) -> DecodeTile:
    """The decode kernel's for heads of ``padded_head`` values (a power of two up to 256)."""
    for (size, width), tile in _DECODE:
        if padded_head <= size and itemsize == width:
            return tile
    raise ValueError(f"no tile for heads of {padded_head} values of {itemsize} bytes")


def prefill_tiles(padded_head: int, itemsize: int) -> tuple[PrefillTile, PrefillTile]:
    """The prefill kernel's large and small tile for such heads."""
    for (size, width), large, small in _PREFILL:
        if padded_head <= size and itemsize == width:
            return large, small
    raise ValueError(f"no tile for heads of {padded_head} values of {itemsize} bytes")


def choose_prefill(
    tiles: tuple[PrefillTile, PrefillTile], rows: int, num_heads: int, num_sms: int
) -> PrefillTile:
    """The large tile if ``rows`` query rows make one for each of the partition's SMs."""
    large, small = tiles
    return large if -(-rows // large.rows) * num_heads >= num_sms else small
