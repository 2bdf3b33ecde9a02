"""Constants of the kernels that a GPU has beside bfloat16 products and full attention:
low-precision products, quantisation of activations, experts, windows, latent and sparse attention
and recurrent states. Each GPU file states where they come from.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from nexusbench.core.bounds import Efficiency, Fraction, Micros, NumberBounds, Throughput

# (rows above, rows up to, height, width, share of the attainable rate, SMs that share rows): a tile
# that a kernel takes for products of so many rows. The last two: a cluster of that many SMs works
# on as many tiles one above the other, and computes all of them. Rows up to 0: any number.
Tile = tuple[int, int, int, int, float, int]
# The same of a kernel that looks at columns too: (rows above, up to, columns above, up to, height,
# width, share of the attainable rate).
ColumnTile = tuple[int, int, int, int, int, int, float]
Nanos = Annotated[float, NumberBounds(most=1e6, zero=True)]
PeakRatio = Annotated[float, NumberBounds(least=0.01, most=64.0)]
L2Share = Annotated[float, NumberBounds(least=0.001, most=2.0)]
Factor = Annotated[float, NumberBounds(most=1e3, zero=True)]


class WaveConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a kernel that takes the tile of fewest waves (physics/wave_tiles.py)."""

    step_us: Micros  # latency of 1,000 of the inner dimension, in every wave
    sm_gbps: Throughput  # at which the tiles on one SM take their operands
    uneven: Factor  # tensor-core time of tiles that divide no block of scales, over that of others
    single_wave: Factor  # time of large tiles that are one full wave, over that of more


class ProductConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A low-precision matrix product (physics/gemm.py, ScaledGemm). Times are as in SimConstants'
    dense ones; ``rate`` is the peak over that of bfloat16.
    """

    rate: PeakRatio
    efficiency: Efficiency  # attainable share of that peak
    bandwidth_efficiency: Efficiency  # share of the HBM peak that its weights are read at
    launch_us: Micros
    wave_share: Fraction
    overlap: Fraction
    depth_us: Micros  # per 1,000 of the inner dimension
    epilogue_us: Micros  # of a tile of 256 x 128
    tiles: tuple[Tile, ...] = ()  # or, of a kernel that chooses otherwise, one of the next two
    column_tiles: tuple[ColumnTile, ...] = ()
    waves: WaveConstants | None = None
    l2_gbps: Throughput = 2000.0  # only for a benchmark that repeats itself on the same operands
    l2_share: L2Share = 0.5


class QuantiseConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Quantisation of activations as a kernel of its own (physics/gemm.py, Quantise)."""

    launch_us: Micros  # by scales that are known: one pass
    gbps: Throughput  # bytes read and written in it, where they do not fit into L2
    l2_gbps: Throughput  # where they do
    l2_share: L2Share  # of L2 that holds them
    depth_us: Micros  # per 1,000 values of a row
    scale_us: Micros  # what finding the scale of each row first adds to these
    scale_gbps: Throughput
    scale_depth_us: Micros
    tensor_row_ns: Nanos  # one scale of all rows: found row by row in one place in memory,
    tensor_block_ns: Nanos  # and for each 2,048 values of a row
    tensor_single_us: Micros = 0.0  # what a single row costs more then


class ExpertConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Experts of one layer (physics/experts.py): two grouped products and what stands around them.

    ``tile_shares`` are those of tiles of 8, 16, 32, 64 and 128 rows; 0: not built. Of these a
    kernel takes the ``fastest``, or by the ``mean`` of rows: all tokens' choices over the experts
    on this GPU, rounded up to a height.
    """

    rate: PeakRatio
    efficiency: Efficiency
    bandwidth_efficiency: Efficiency
    fixed_us: Micros  # all kernels of the layer: launches, sorting of tokens by expert
    remote_us: Micros  # more of it where other GPUs have some of the experts
    wave_share: Fraction
    overlap: Fraction
    depth_us: Micros
    epilogue_us: Micros
    tile_shares: tuple[float, float, float, float, float]
    sm_gbps: Throughput  # at which the tiles on one SM take their operands
    touched_ns: Nanos  # per expert that has tokens
    held_ns: Nanos  # per expert on this GPU
    assigned_ns: Nanos  # per token and expert it is sent to, wherever that is
    elementwise: Factor  # passes over rows in and out, over those counted
    l2_gbps: Throughput = 2000.0
    l2_share: L2Share = 0.5
    tile: Literal["fastest", "mean"] = "fastest"


class WindowConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Attention with a sliding window (physics/windows.py)."""

    tile_us: Micros  # what a tile of a prompt takes more than without
    write_us: Micros  # SM time of writing the keys and values of a token
    hidden: Fraction  # of queries and outputs, what moves while other tiles compute


class LatentConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Latent attention (physics/latent.py): absorbed, then what expanded prefill has of its own.

    The two ``graph`` times have defaults for files of before they were told apart: the medians of
    the GPUs that they were measured on.
    """

    efficiency: Efficiency  # attainable share of the peak
    sm_gbps: Throughput  # of latent keys that one SM takes
    tile_us: Micros
    launch_us: Micros  # fixed time of a layer, all of its small kernels launched one by one
    combine_us: Micros  # merging the parts of keys that were split
    passes: Factor  # how often queries and outputs are read and written
    overlap: Fraction
    token_us: Micros  # SM time of a token in the small kernels
    prefill_block: Factor  # time of a block over that of other attention
    prefill_passes: Factor
    prefill_launch_us: Micros
    # The same two where no kernel waits for its launch: from a CUDA graph, or behind long ones.
    graph_us: Micros = 6.3
    prefill_graph_us: Micros = 15.3


class SmallKvConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Attention over a KV cache of 8-bit values (physics/small_kv.py): of a block and of a tile
    over those of a 16-bit cache, and of quantising the queries.
    """

    prefill_block: PeakRatio
    prefill_tile: PeakRatio
    prefill_launch_us: Micros
    prefill_query_gbps: Throughput
    decode_block: PeakRatio
    decode_tile: PeakRatio
    decode_launch_us: Micros
    decode_query_gbps: Throughput
    sm_gbps: Throughput  # of keys and values that one SM takes
    wide_sm_gbps: Throughput  # the same of heads of more than 128 values
    combine_us: Micros  # merging the parts of a decode whose keys were split


class SparseConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Attention to chosen keys (physics/selection.py): the attention, then what chooses them."""

    efficiency: Efficiency  # attainable share of the peak
    narrow: Factor  # time of an 8-bit key in a decode over that of a 16-bit one
    padding: Fraction  # time of a 16-bit key that is only padding over that of another
    gather_gbps: Throughput  # at which one SM takes scattered keys in a decode
    tile_us: Micros
    launch_us: Micros  # fixed time of a layer, with all of its small kernels
    token_us: Micros  # SM time of a token in the small kernels
    passes: Factor  # how often queries and outputs are read and written
    overlap: Fraction
    index_efficiency: Efficiency  # of the index scores, of the peak of their type
    topk_us: Micros  # SM time of choosing for a decode
    prompt_topk_us: Micros  # and for a token of a prompt, which is another kernel
    topk_key_ns: Nanos  # and for each key that it chooses from
    prompt_us: Micros = 0.0  # fixed time that a launch with prompts has in addition
    # launch_us where no kernel waits for its launch: in a CUDA graph, or behind longer ones. None:
    # it was measured so.
    graph_us: Micros | None = None


class StateConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Recurrent states (physics/states.py): the scan of prompts, then a decode step."""

    efficiency: Efficiency  # attainable share of the peak, in chunks that follow one another
    prepared: Factor  # work of a chunk that does not wait for the one before, over the rest
    tile_us: Micros  # begin and end of one head of one sequence
    launch_us: Micros  # fixed time of the scan
    passes: Factor  # how often what a token reads and writes is moved
    overlap: Fraction
    conv_us: Micros  # fixed time of the short convolution
    conv_passes: Factor
    step_us: Micros  # fixed time of a decode's update of the states
    step_passes: Factor
    step_conv_us: Micros
    step_conv_passes: Factor
    l2_gbps: Throughput  # at which what is in L2 is moved
    l2_share: L2Share  # of L2 that holds what one kernel leaves to the next


# The chips of workstations and games of a generation differ from those of its data-centre GPUs.
Architecture = Literal[
    "volta", "turing", "ampere", "ampere-rtx", "ada", "hopper", "blackwell", "blackwell-rtx",
    "cdna3",
]  # fmt: skip


class KernelConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``products`` and the others in tables by kind of kernel: the keys of PRODUCTS, EXPERTS,
    SPARSE and STATES.
    """

    architecture: Architecture
    quantise: QuantiseConstants | None = None
    products: dict[str, ProductConstants] = {}
    experts: dict[str, ExpertConstants] = {}
    window: WindowConstants | None = None
    latent: LatentConstants | None = None
    small_kv: SmallKvConstants | None = None
    sparse: dict[str, SparseConstants] = {}
    states: dict[str, StateConstants] = {}


# Kinds of kernels. A product of these types (bfloat16 is Gemm):
PRODUCTS = {
    "fp8": "8-bit floats, one scale a tensor or row",
    "fp8_block": "8-bit floats, scales of blocks",
    "int8": "8-bit integers",
    "nvfp4": "4-bit floats, scales of 16 values, activations too",
    "w8a16": "8-bit weights, 16-bit activations: bfloat16 products that dequantise (MARLIN)",
    "w4a16": "4-bit weights, 16-bit activations: the same",
}
EXPERTS = {
    "bf16": "16-bit", **PRODUCTS, "mxfp4": "4-bit floats, scales of 32 values",
    "mxfp4_mxfp8": "the same, activations in 8-bit floats with such scales",
}  # fmt: skip
SPARSE = {
    "latent": "chosen tokens of latent attention (DSA)",
    "grouped": "chosen blocks of grouped-query attention",
    "entries": "a window over shared keys and all compressed entries before it (DeepSeek-V4)",
    "picks": "such a window and chosen entries",
}
STATES = {
    "delta": "gated delta rule, one decay a head",
    "channel-delta": "the same, one decay a channel (KDA)",
}
