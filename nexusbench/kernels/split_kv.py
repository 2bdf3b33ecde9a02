"""Split-KV decoding in equal shares: LeanAttention's stream-K plan, in numpy; no torch here.

LeanAttention (arXiv 2405.10480, section 4): keys of all outputs (a sequence and a KV head) stand in
one line of tiles, and every program takes an equal stretch of it, across heads and sequences. Here
with the two-kernel fix-up: programs only write, a second launch merges the outputs that lie in more
than one stretch. The paper's single kernel waits for its neighbours in flight, which needs all
programs resident at a time; on a partition of unknown load that is not guaranteed.

Where a sequence is cut depends on its batch mates and on the partition's SMs, and so do the last
bits of its result, as with every split of keys that follows the load.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nexusbench.kernels.planner import Ints, IntsLike

Ints32 = npt.NDArray[np.int32]

# Below two tiles a program its start and the merge cost more than the keys (so ONNX Runtime's
# lean_attention, too).
LEAST_TILES = 2
SEGMENT_FIELDS = 5
MERGE_FIELDS = 4


@dataclass(frozen=True, slots=True)
class SplitKv:
    """The work of each program: p computes the rows ``starts[p]:starts[p + 1]`` of ``segments``.

    A segment [sequence, KV head, first key, last key + 1, slot] is a run of keys of one output;
    ``slot`` is where its partial result goes, or -1 if it is the whole output. A row of ``merges``
    [sequence, KV head, first slot, last slot + 1] is an output that lies in several.
    """

    starts: Ints32
    segments: Ints32
    merges: Ints32

    @property
    def num_slots(self) -> int:
        """Partial results."""
        return int(self.merges[-1, 3]) if len(self.merges) else 0


def most_slots(programs: int) -> int:
    """Partial results of any plan for so many programs: at either end of each one's stretch."""
    return 2 * programs


def most_merges(programs: int) -> int:
    """Outputs that are cut, at most one by each border between two programs."""
    return max(0, programs - 1)


def split_kv(lengths: IntsLike, num_kv_heads: int, tile: int, programs: int) -> SplitKv:
    """Share the keys of decodes, ``lengths`` [N] (each 1 or more), among up to ``programs``.

    Programs differ by at most one tile of ``tile`` keys. Fewer are used where each would get less
    than ``LEAST_TILES``; ``starts`` then has empty rows at its end, so that its size, and the grid
    of a captured launch, do not depend on the lengths.
    """
    keys = np.asarray(lengths, dtype=np.int64)
    tiles = np.repeat(-(-keys // tile), num_kv_heads)
    ends = np.cumsum(tiles)
    total = int(ends[-1])
    used = max(1, min(programs, total // LEAST_TILES))
    most = -(-total // used)
    longer = total - (most - 1) * used  # programs that take one tile more than the others
    number = np.arange(used + 1)
    borders = np.minimum(number, longer) * most + np.maximum(number - longer, 0) * (most - 1)
    # Both are sorted, so one merge gives every cut its output and its program: how many ends and
    # how many borders lie at or before it. Searching each would take half of the plan's time.
    both = np.concatenate([ends, borders])
    order = np.argsort(both, kind="stable")
    both = both[order]
    cuts = np.append(np.flatnonzero(both[1:] != both[:-1]), len(both) - 1)
    num_ends = np.cumsum(order < len(ends))[cuts[:-1]]
    first, last = both[cuts[:-1]], both[cuts[1:]]
    output, owner = num_ends, cuts[:-1] - num_ends  # of cut + 1 entries, less the border at 0
    pieces = np.bincount(output, minlength=len(tiles))
    split = pieces[output] > 1
    slot = np.where(split, np.cumsum(split) - 1, -1)
    sequence = output // num_kv_heads
    before = (ends - tiles)[output]
    segments = np.stack(
        [
            sequence,
            output % num_kv_heads,
            (first - before) * tile,
            np.minimum((last - before) * tile, keys[sequence]),
            slot,
        ],
        axis=1,
    )
    starts = np.searchsorted(owner, np.arange(programs + 1))
    return SplitKv(
        starts.astype(np.int32), segments.astype(np.int32), _merges(pieces, num_kv_heads)
    )


def _merges(pieces: Ints, num_kv_heads: int) -> Ints32:
    """The outputs of more than one piece; slots are numbered in the order of pieces."""
    cut = np.flatnonzero(pieces > 1)
    stop = np.cumsum(pieces[cut])
    rows = [cut // num_kv_heads, cut % num_kv_heads, stop - pieces[cut], stop]
    return np.stack(rows, axis=1).astype(np.int32)
