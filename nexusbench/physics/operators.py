"""Operators of the simulated GPU: dense layers, attention, and how groups of kernels add up.

A dense layer takes a launch, waves of tiles over the SMs (whole or with K split), and the time of
its HBM traffic, which overlaps with computing but for a share.

Attention is tiles of query rows over blocks of keys, as in FlashAttention. A thread block takes one
tile of query rows of one head through its keys, block by block. The two kernel generations differ
in what a tile is, and that explains most of what was measured (sources in docs/fidelity.md).
FlashAttention-2 with a paged cache has tiles of 64 rows of one head; only a batch of single-token
rows packs the query heads that share a KV head into one tile, and splits long keys over idle SMs.
So decodes beside a prefill chunk cost a whole tile per query head each, and read their keys once
per query head unless heads that share them run at the same time. FlashAttention-3 packs heads
always.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from nexusbench.core.specs import GpuSpec
from nexusbench.core.units import MIB

# (rows, columns, share of the attainable rate) of GEMM tiles. Shapes are those that cuBLAS kernels
# are named after; the shares were fitted once, for H200, H100 and L40S together (docs/fidelity.md).
TILES = ((256, 128, 1.0), (128, 128, 0.99), (64, 128, 1.0), (64, 64, 0.93), (16, 64, 0.34))
SPLIT_K = (1, 2, 4, 8)
_LARGEST = 256 * 128
_ACCUMULATOR_BYTES = 4.0

_Chunks = tuple[tuple[int, int], ...]


class OperatorClass(msgspec.Struct, frozen=True, gc=False):
    """The dense layers of a launch, or its attention, alone on its SMs.

    ``time`` is ns in all; ``compute`` and ``memory`` are the ns of it in operators bound by tensor
    cores or by HBM (the rest is launches). ``busy`` is all tensor-core ns, ``traffic`` HBM bytes.
    ``kernels`` counts them and ``turns`` their waves of tiles, at least one each: ``time / turns``
    is how long a kernel of a neighbour on the same SMs waits until a wave leaves them. ``held`` is
    ns times the share of the SMs that tiles hold: not launches, nor SMs that a kernel has no tile
    for.
    """

    time: float
    compute: float
    memory: float
    busy: float
    traffic: float
    kernels: float
    turns: float
    held: float


NOTHING = OperatorClass(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def overlapped(
    fixed: float, busy: float, moving: float, exposed: float, traffic: float, tiles: float
) -> OperatorClass:
    """A kernel of ``fixed`` ns, the longer of ``busy`` (compute) and ``moving`` (memory) ns, and
    the share ``exposed`` of the shorter, which overlap does not hide; of ``tiles`` tiles an SM.
    """
    if busy >= moving:
        longer = compute = busy + exposed * moving
        memory = 0.0
    else:
        longer = memory = moving + exposed * busy
        compute = 0.0
    time, turns = fixed + longer, max(1.0, tiles)
    held = longer * filled(tiles)
    return OperatorClass(time, compute, memory, busy, traffic, 1.0, turns, held)


def filled(tiles: float) -> float:
    """The share of SMs that have a tile, on average over whole waves of ``tiles`` tiles an SM."""
    return tiles / -(-tiles // 1)


def total(parts: list[OperatorClass]) -> OperatorClass:
    """Operators that run one after the other.

    Not by ``sum``: from Python 3.12 on it compensates the rounding of floats, so times would differ
    from those of 3.11 (I6).
    """
    made = NOTHING
    for part in parts:
        made = scaled_sum(part, 1.0, made)
    return made


def scaled_sum(a: OperatorClass, scale: float, b: OperatorClass) -> OperatorClass:
    """``a`` scaled by ``scale``, then ``b``. Products are rounded before sums: event logs depend on
    this order.
    """
    return OperatorClass(
        a.time * scale + b.time,
        a.compute * scale + b.compute,
        a.memory * scale + b.memory,
        a.busy * scale + b.busy,
        a.traffic * scale + b.traffic,
        a.kernels * scale + b.kernels,
        a.turns * scale + b.turns,
        a.held * scale + b.held,
    )


def attainable(gpu: GpuSpec, sms: int, *, weights: bool = False) -> float:
    """Bytes per ns that ``sms`` SMs draw from HBM: in a plain stream, or with ``weights`` in a
    GEMM.
    """
    curve = (weights and gpu.sim.weights_curve) or gpu.sim.bandwidth_curve
    share = sms / gpu.num_sms
    for (x0, y0), (x1, y1) in pairwise(curve):
        if share <= x1:
            part = y0 + (y1 - y0) * (share - x0) / (x1 - x0)
            return gpu.hbm_gbps * gpu.sim.bandwidth_efficiency * part
    return gpu.hbm_gbps * gpu.sim.bandwidth_efficiency


def clock(gain: float, share: float) -> float:
    """How much faster tensor cores run while ``share`` of the SMs compute than while all do.

    A GPU that computes on all SMs is held back by its power limit, one that computes on few is
    not. Measured on A100 and H100: the whole gain up to half of the SMs, and evenly less from there
    on (docs/fidelity.md).
    """
    return 1.0 + gain * min(1.0, max(0.0, 2.0 - 2.0 * share))


class L2:
    """Operands that a benchmark reads again and again stay in L2 if they fit its ``l2_share``."""

    def __init__(self, gpu: GpuSpec) -> None:
        self._bytes = gpu.sim.l2_share * gpu.l2_mib * MIB
        self._ns, self._sms = 1.0 / gpu.sim.l2_gbps, gpu.num_sms

    def per_byte(self, size: float, sms: int, cold: float) -> float:
        """Ns per byte of ``size`` bytes in all; ``cold`` is that of bytes read from HBM."""
        # All of it stays up to the capacity, nothing from 5/4 of it on, linear between. Assumed:
        # what is read in turn evicts what is read next.
        resident = min(1.0, max(0.0, 5.0 - 4.0 * size / self._bytes))
        warm = self._ns * self._sms / sms
        return cold + resident * (warm - cold) if warm < cold else cold


class Gemm:
    """Times of ``[rows, inputs] x [inputs, outputs]`` on one GPU."""

    def __init__(self, gpu: GpuSpec) -> None:
        sim = gpu.sim
        # FLOP per ns of one SM.
        self._rate = gpu.peak_tflops * 1e3 / gpu.num_sms * sim.dense_efficiency
        self._launch, self._exposed = sim.dense_launch_us * 1e3, sim.dense_overlap
        self._wave_share = sim.dense_wave_share
        self._num_sms, self._gain = gpu.num_sms, sim.clock_gain
        self._depth = sim.dense_depth_us  # ns per unit of the inner dimension
        self._epilogue, self._split = sim.dense_epilogue_us * 1e3, sim.dense_split_us * 1e3
        self._l2 = L2(gpu)

    def time(
        self,
        rows: float,
        inputs: int,
        outputs: int,
        weight_bytes: float,
        activation_bytes: float,
        sms: int,
        bandwidth: float,
        *,
        copies: int = 0,
        groups: float = 1,
    ) -> OperatorClass:
        """One product on ``sms`` SMs that draw ``bandwidth`` bytes per ns, in ns.

        ``weight_bytes`` and ``activation_bytes`` are those of one value. The best tile and split of
        K is taken, as a tuned library does. ``copies``: sets of weights that a benchmark reads in
        turn, so that small ones stay in L2; 0 in a serving step, where the other layers evict them.
        ``groups``: so many products of this shape, with weights of their own, in one kernel (the
        experts of a layer); such kernels do not split K.
        """
        weights = inputs * outputs * weight_bytes * groups
        activations = rows * (inputs + outputs) * activation_bytes * groups
        traffic = weights + activations
        per_byte = 1.0 / bandwidth
        if copies:
            per_byte = self._l2.per_byte(copies * weights + activations, sms, per_byte)
        moving = traffic * per_byte
        rate = self._rate * clock(self._gain, sms / self._num_sms)
        best = None
        for height, width, share in TILES:
            tiles = -(-rows // height) * -(-outputs // width) * groups
            tile = 2.0 * height * width * inputs / (rate * share)
            epilogue = self._epilogue * height * width / _LARGEST
            for parts in SPLIT_K if groups == 1 else (1,):
                if parts > 1 and tiles * parts > 2 * sms:
                    break  # K is split to fill SMs, not to make more waves
                # Between waves in fractions (share 0: no SM is ever idle) and whole ones (1).
                waves = max(1.0, tiles * parts / sms)
                waves += self._wave_share * (-(-tiles * parts // sms) - waves)
                busy = waves * (tile / parts + epilogue)
                fixed = self._launch + self._depth * inputs / parts
                if parts > 1:
                    fixed += self._split + parts * rows * outputs * _ACCUMULATOR_BYTES * per_byte
                made = overlapped(fixed, busy, moving, self._exposed, traffic, tiles * parts / sms)
                if best is None or made.time < best.time:
                    best = made
        assert best is not None
        return best


class Attention:
    """Times of the attention of ``layers`` layers of equal shape on one GPU, KV write included.

    ``kv_bytes`` and ``activation_bytes`` are those of one value.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        kv_bytes: float = 2.0,
        activation_bytes: float = 2.0,
        layers: int = 1,
    ) -> None:
        sim = gpu.sim
        self._layers = layers
        self._packs = sim.attention_kernel == "fa3"
        self._kv_heads, self._heads = num_kv_heads, num_heads
        self._group = max(1, num_heads // num_kv_heads)
        self._rows = 128 if self._packs else 64  # of a prefill tile
        # Keys of a block: csrc/flash_attn of FlashAttention-2, splitkv dispatch
        self._keys = (
            128 if self._packs else 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64
        )
        rate = gpu.peak_tflops * 1e3 / gpu.num_sms * sim.attention_efficiency
        block = 4.0 * self._rows * self._keys * head_dim / rate
        # The constant is of a tile of 128 rows and a block of 128 keys: 16,384 scores.
        softmax = sim.attention_block_us * 1e3 * self._rows * self._keys / 16384
        self._block = block + softmax
        block_bytes = 2.0 * self._keys * head_dim * kv_bytes
        # Decode tiles have 64 rows. One SM takes keys and values at a limited rate.
        small = self._block * 64 / self._rows
        self._small_block = max(small, block_bytes / sim.attention_sm_gbps)
        self._unsplit_block = max(self._small_block, block_bytes / sim.attention_unsplit_gbps)
        self._contiguous = sim.attention_kernel == "contiguous"
        # Thread blocks that the kernel's choice of key splits counts on: of the GPU, also where its
        # launch is confined to fewer SMs.
        self._slots = gpu.num_sms * (2 if self._contiguous else 1)
        self._tile, self._empty = sim.attention_tile_us * 1e3, sim.attention_empty_us * 1e3
        self._launch, self._tail = sim.attention_launch_us * 1e3, sim.attention_tail
        self._combine, self._swap = sim.attention_combine_us * 1e3, sim.attention_swap_us * 1e3
        self._exposed = sim.attention_overlap
        # Tensor-core ns of one key in a decode: a KV head's query heads, in at least 16 rows.
        self._key_ns = 4.0 * head_dim * num_kv_heads * max(16.0, self._group) / rate
        self._token_bytes = 2.0 * num_kv_heads * head_dim * kv_bytes  # of keys and values
        # Q read, output written; the new keys and values read and written to the cache.
        self._new_bytes = (
            2.0 * num_heads * head_dim * activation_bytes
            + 2.0 * num_kv_heads * head_dim * (activation_bytes + kv_bytes)
        )
        self._hidden_bytes = 0.0  # of a token, moved while tiles compute
        self._l2, self._l2_bytes = L2(gpu), gpu.l2_mib * MIB

    def time(
        self,
        chunks: _Chunks,
        num_decodes: int,
        decode_context: int,
        sms: int,
        bandwidth: float,
        *,
        copies: int = 0,
    ) -> OperatorClass:
        """Chunks and decodes of a launch in one kernel per layer, on ``sms`` SMs that draw
        ``bandwidth`` bytes per ns; all layers, in ns.

        ``chunks`` are (tokens, tokens before them); ``decode_context`` is the sum over decodes of
        the keys each reads, its own included. ``copies`` as in ``Gemm.time``.
        """
        if chunks:
            tokens, keys, tiles, work, longest = self._prefill(chunks)
            fixed, again, streamed = self._launch, 1.0, 0.0
            if num_decodes:
                tokens += num_decodes
                more, streamed, single, again = self._beside(num_decodes, decode_context, sms)
                tiles, work, longest = tiles + more, work + streamed, max(longest, single)
            if not self._packs:
                work += self._empty_blocks(chunks, num_decodes, tiles) * self._empty
            busy, streamed = self._spread(tiles, work, longest, sms), streamed / work
        elif num_decodes:
            busy, fixed, tiles, again = self._decode(num_decodes, decode_context, sms)
            tokens, keys, streamed = num_decodes, 0, 1.0
        else:
            return NOTHING
        new = tokens * self._new_bytes
        read = (keys + decode_context * again) * self._token_bytes
        cold = warm = 1.0 / bandwidth
        if copies:
            cold = self._l2.per_byte(copies * (new + read), sms, cold)
        # Queries and new keys were written by the kernel before, and are in L2 if they fit. They
        # are read at the ends of tiles, and the KV write is a kernel of its own: no overlap.
        warm = min(cold, self._l2.per_byte(new, sms, warm))
        hidden = tokens * self._hidden_bytes
        moving, layers = read * cold + hidden * warm, self._layers
        longer, memory, tensor = busy + self._exposed * moving, 0.0, busy
        if busy < moving:
            longer = memory = moving + self._exposed * busy
        if num_decodes:
            # Decode tiles wait for their keys, not for tensor cores: the streamed share of the time
            # counts as memory-bound, whatever bounds the kernel as a whole.
            memory += (longer - memory) * streamed
            tensor = busy * (1.0 - streamed) + decode_context * self._key_ns / sms
        return OperatorClass(
            (fixed + new * warm + longer) * layers,
            (longer - memory) * layers,
            memory * layers,
            tensor * layers,
            (new + read + hidden) * layers,
            layers,
            max(1.0, tiles / sms) * layers,
            longer * filled(tiles / sms) * layers,
        )

    def _prefill(self, chunks: _Chunks) -> tuple[int, int, int, float, float]:
        """(tokens, keys read, tiles, ns of all tiles together, ns of the longest) of the chunks."""
        rows, block = self._rows, self._keys
        packed = self._group if self._packs else 1
        heads = self._kv_heads if self._packs else self._heads
        span = rows / packed  # tokens of one tile
        ragged = max(0.0, block - span) / (2 * block)  # blocks that a causal edge leaves part-used
        tokens = keys = tiles = 0
        work = longest = 0.0
        for count, before in chunks:
            each = -(-count * packed // rows)
            last = -(-(before + count) // block)
            mean = float(last)
            if each > 1:
                mean = min(mean, (before + (count + span) / 2) / block + ragged)
            tokens += count
            keys += before + count
            tiles += each * heads
            work += each * heads * (self._tile + mean * self._block)
            longest = max(longest, self._tile + last * self._block)
        return tokens, keys, tiles, work, longest

    def _empty_blocks(self, chunks: _Chunks, num_decodes: int, tiles: int) -> int:
        """Thread blocks without rows: the launch grid has as many per sequence as the longest chunk
        needs.
        """
        longest = max([count for count, _ in chunks])
        return (len(chunks) + num_decodes) * self._heads * -(-longest // self._rows) - tiles

    def _beside(self, count: int, context: int, sms: int) -> tuple[int, float, float, float]:
        """Decodes in one kernel with chunks: (tiles, their ns together, ns of the longest, how many
        times each key is read).

        FlashAttention-3 balances split keys over the SMs (assumed: no table of such mixes exists).
        """
        blocks = -(-context // (count * self._keys))
        if self._packs:
            single = self._tile + blocks * self._small_block
            return count * self._kv_heads, count * self._kv_heads * single, self._tile, 1.0
        single = self._tile + blocks * self._block
        again = 1.0
        if context * self._token_bytes > self._l2_bytes * self._kv_heads:
            # The keys of one KV head are evicted from L2 before the next query head reads them,
            # unless enough SMs are left to run the heads that share them at the same time.
            again = self._group / max(1.0, min(float(self._group), sms / count))
        return count * self._heads, count * self._heads * single, single, again

    def _decode(self, count: int, context: int, sms: int) -> tuple[float, float, int, float]:
        """(compute, fixed) ns of decodes without chunks, tiles, how many times a key is read."""
        tiles = count * self._kv_heads * -(-self._group // 64)
        blocks = -(-context // (count * self._keys))
        fixed, splits = self._launch, 1
        # FlashAttention's num_splits_heuristic splits keys below 80 % of the slots in use.
        if tiles < 0.8 * self._slots and (self._packs or self._contiguous or self._group > 1):
            splits = max(1, min(blocks, self._slots // tiles))
            if splits > 1:
                fixed += self._combine
        block = self._unsplit_block if self._contiguous and splits == 1 else self._small_block
        if self._group > 1 and self._kv_heads > 1 and count > 1 and not self._packs:
            fixed += self._swap
        single = self._tile + -(-blocks // splits) * block
        tiles *= splits
        return self._spread(tiles, tiles * single, single, sms), fixed, tiles, 1.0

    def _spread(self, tiles: int, work: float, longest: float, sms: int) -> float:
        """Ns until the last of ``tiles`` tiles on ``sms`` SMs ends: ``work`` ns over the SMs, and
        the share ``attention_tail`` of what the last wave and the longest tile add.
        """
        if tiles <= sms:
            return longest
        mean = work / tiles
        last = longest - mean + mean * (-(-tiles // sms) - tiles / sms)
        return max(longest, work / sms + self._tail * last)
