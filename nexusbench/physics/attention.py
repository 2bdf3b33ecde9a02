"""Attention of the simulated GPU: tiles of query rows over blocks of keys, as in FlashAttention.

A thread block takes one tile of query rows of one head through its keys, block by block. The two
kernel generations differ in what a tile is, and that explains most of what was measured (sources in
docs/fidelity.md). FlashAttention-2 with a paged cache has tiles of 64 rows of one head; only a
batch of single-token rows packs the query heads that share a KV head into one tile, and splits long
keys over idle SMs. So decodes beside a prefill chunk cost a whole tile per query head each, and
read their keys once per query head unless heads that share them run at the same time.
FlashAttention-3 packs heads always. TensorRT-LLM's kernels for Blackwell pack them in decodes
alone: a prompt's tile is 256 rows of one query head.
"""

from __future__ import annotations

from msgspec import UNSET

from nexusbench.core.specs import GpuSpec
from nexusbench.core.units import MIB
from nexusbench.physics.operators import L2, NOTHING, OperatorClass, in_layers, later

_Chunks = tuple[tuple[int, int], ...]
# Threads of a block that writes a token's keys and values, one each; SM time of it as a share of
# that of a full block, by the square of its threads: fitted on an H200 for 64 to 512 values.
_THREADS, _ONE_WARP = 512, 0.15


def write_ns(full_us: float, values: int) -> float:
    """SM time of writing the keys of one token, and its values: ``values`` each in ``full_us`` if
    they fill a thread block. In ns.
    """
    threads = min(1.0, values / _THREADS)
    return full_us * 1e3 * (_ONE_WARP + (1.0 - _ONE_WARP) * threads * threads)


def spread(tiles: int, work: float, longest: float, sms: int, tail: float) -> float:
    """Ns until the last of ``tiles`` tiles on ``sms`` SMs ends: ``work`` ns over the SMs, and the
    share ``tail`` of what the last wave and the longest tile add.
    """
    if tiles <= sms:
        return longest
    mean = work / tiles
    last = longest - mean + mean * (-(-tiles // sms) - tiles / sms)
    return max(longest, work / sms + tail * last)


class Attention:
    """Times of the attention of ``layers`` layers of equal shape on one GPU, KV write included.

    ``kv_bytes`` and ``activation_bytes`` are those of one value. ``writes`` is False where keys and
    values are those of an earlier layer.
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
        *,
        writes: bool = True,
    ) -> None:
        sim = gpu.sim
        self._layers = layers
        kernel = sim.attention_kernel
        self._packs = kernel in ("fa3", "trtllm")
        self._kv_heads, self._heads = num_kv_heads, num_heads
        self._group = max(1, num_heads // num_kv_heads)
        self.decode_tiles = num_kv_heads * -(-self._group // 64)  # of a decode without chunks
        # Of a prefill tile: rows, and query heads of a KV head that share it.
        self._rows = 256 if kernel == "trtllm" else 128 if self._packs else 64
        self._packed = self._group if kernel == "fa3" else 1
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
        self._contiguous = kernel == "contiguous"
        # Thread blocks that the kernel's choice of key splits counts on: of the GPU, also where its
        # launch is confined to fewer SMs. FlashAttention-2 counts on two for each SM.
        self._slots = gpu.num_sms * (1 if self._packs else 2)
        self._tile, self._empty = sim.attention_tile_us * 1e3, sim.attention_empty_us * 1e3
        self._launch, self._tail = sim.attention_launch_us * 1e3, sim.attention_tail
        self._combine, self._swap = sim.attention_combine_us * 1e3, sim.attention_swap_us * 1e3
        self._exposed = sim.attention_overlap
        # Tensor-core ns of one key in a decode: a KV head's query heads, in at least 16 rows.
        self._key_ns = 4.0 * head_dim * num_kv_heads * max(16.0, self._group) / rate
        self._token_bytes = 2.0 * num_kv_heads * head_dim * kv_bytes  # of keys and values
        # Q read, output written; the new keys and values read and written to the cache.
        self._new_bytes = 2.0 * num_heads * head_dim * activation_bytes
        if writes:
            self._new_bytes += 2.0 * num_kv_heads * head_dim * (activation_bytes + kv_bytes)
        self._hidden_bytes = 0.0  # of a token, moved while tiles compute
        self._cache_bytes = 2.0 * num_kv_heads * head_dim * (activation_bytes + kv_bytes)
        # SM time of a token in the kernel that writes keys and values; 0: within the launch.
        own = 0.0 if sim.attention_write_us is UNSET else sim.attention_write_us
        self._write = write_ns(own * writes, num_kv_heads * head_dim)
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
            busy, streamed = spread(tiles, work, longest, sms, self._tail), streamed / work
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
        # What the kernel before wrote is in L2 if it fits; ends of tiles read it: no overlap.
        warm = min(cold, self._l2.per_byte(new, sms, warm))
        hidden = tokens * self._hidden_bytes
        moving = read * cold + hidden * warm
        longer, memory, tensor = busy + self._exposed * moving, 0.0, busy
        if busy < moving:
            longer = memory = moving + self._exposed * busy
        if num_decodes:
            # Decode tiles wait for keys: the streamed share of the time counts as memory-bound.
            memory += (longer - memory) * streamed
            tensor = busy * (1.0 - streamed) + decode_context * self._key_ns / sms
        made = in_layers(
            self._layers, fixed + new * warm, longer, memory, tensor, new + read + hidden,
            tiles / sms,
        )  # fmt: skip
        if self._write:
            writing = tokens * (self._write / sms - self._cache_bytes / bandwidth)
            made = later(made, writing * self._layers) if writing > 0.0 else made
        return made

    def _prefill(self, chunks: _Chunks) -> tuple[int, int, int, float, float]:
        """(tokens, keys read, tiles, ns of all tiles together, ns of the longest) of the chunks."""
        rows, block = self._rows, self._keys
        packed = self._packed
        heads = self._kv_heads if packed > 1 else self._heads
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

    def key_splits(self, count: int, context: int) -> int:
        """Parts that the keys of each of ``count`` decodes without chunks are split into.

        FlashAttention's num_splits_heuristic splits keys below 80 % of the slots in use.
        """
        tiles = count * self.decode_tiles
        if tiles >= 0.8 * self._slots or not (self._packs or self._contiguous or self._group > 1):
            return 1
        return max(1, min(-(-context // (count * self._keys)), self._slots // tiles))

    @property
    def balances(self) -> bool:
        """Whether the kernel hands tiles of unequal lengths out as SMs become free."""
        return self._packs

    def key_ns(self, *, beside: bool) -> float:
        """Ns that a thread block takes for a key of a decode whose keys are not split: alone, or
        ``beside`` chunks.
        """
        if beside:
            return self._block / self._keys
        return (self._unsplit_block if self._contiguous else self._small_block) / self._keys

    def _decode(self, count: int, context: int, sms: int) -> tuple[float, float, int, float]:
        """(compute, fixed) ns of decodes without chunks, tiles, how many times a key is read."""
        tiles = count * self.decode_tiles
        blocks = -(-context // (count * self._keys))
        fixed, splits = self._launch, self.key_splits(count, context)
        if splits > 1:
            fixed += self._combine
        block = self._unsplit_block if self._contiguous and splits == 1 else self._small_block
        if self._group > 1 and self._kv_heads > 1 and count > 1 and not self._packs:
            fixed += self._swap
        single = self._tile + -(-blocks // splits) * block
        tiles *= splits
        busy = spread(tiles, tiles * single, single, sms, self._tail)
        return busy, fixed, tiles, 1.0
