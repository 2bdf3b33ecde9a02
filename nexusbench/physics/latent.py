"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): all heads share one
latent key and value per token.

A prompt's keys and values are expanded for every head, and attention runs over keys of ``nope +
rope`` values and values of ``v``: ``ExpandedAttention``. A decode step absorbs the expansion into
queries and outputs, and all query heads read the one latent head, ``rank + rope`` values a token of
which ``rank`` are the value as well: ``AbsorbedAttention``. Engines run short chunks so too:
``LatentKernels`` is both.

The products of such a layer (projections; expansion and absorption: ``latent_products.py``) are
GEMMs and not in here; all its
small kernels are: norms of the latents, rotation, concatenation, the write to the cache, a thread
block a token. They are ten or so, and vLLM's benchmark of them waits some 50 us for the host that
launches them; a decode step runs from a CUDA graph, and a prompt's kernels are longer than their
launches. How far it is from measurements: docs/fidelity.md.
"""

from __future__ import annotations

from nexusbench.core.mixers import LatentAttention
from nexusbench.core.specs import GpuSpec
from nexusbench.core.units import MIB
from nexusbench.physics.attention import Attention, spread
from nexusbench.physics.operators import L2, NOTHING, OperatorClass, in_layers, later, scaled_sum
from nexusbench.physics.precisions import architecture, latent_constants

# Query heads of a tile: FlashMLA and FlashAttention-3; TensorRT-LLM's on Blackwell, whose tensor
# cores take 128 rows; vLLM's Triton kernel elsewhere. Keys of a block. Parts that a tile's keys are
# split into, at most: vLLM's limit for CUDA graphs.
ROWS, PAIR_ROWS, TRITON_ROWS, KEYS, SPLITS = 64, 128, 16, 64, 32

# Tokens of a chunk that vLLM runs as it runs decodes: flashattn_mla.py's reorder_batch_threshold on
# Hopper; its backends for other architectures take one.
ABSORBED_TOKENS = {"hopper": 512}

_Chunks = tuple[tuple[int, int], ...]


class ExpandedAttention(Attention):
    """Times of attention over expanded keys of ``key_dim`` values and values of ``value_dim``, of
    ``num_heads`` heads that share none. Tokens before a chunk have to be expanded again, which is a
    product that the caller counts. ``eager``: kernels wait for their launches, one by one.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        activation_bytes: float = 2.0,
        layers: int = 1,
        *,
        eager: bool = False,
    ) -> None:
        own, mean = latent_constants(gpu), (key_dim + value_dim) // 2  # as many FLOPs and bytes
        super().__init__(
            gpu, num_heads, num_heads, mean, activation_bytes, activation_bytes, layers
        )
        self._block *= own.prefill_block
        self._new_bytes *= own.prefill_passes
        self._launch = (own.prefill_launch_us if eager else own.prefill_graph_us) * 1e3
        self._token = own.token_us * 1e3

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
        """As ``Attention.time``."""
        made = super().time(chunks, num_decodes, decode_context, sms, bandwidth, copies=copies)
        tokens = num_decodes
        for count, _ in chunks:
            tokens += count
        more = tokens * self._token / sms * self._layers
        return later(made, more)


class AbsorbedAttention:
    """Times of absorbed attention of ``layers`` layers: ``num_heads`` query heads over one latent
    head of ``rank + rope`` values. ``kv_bytes`` and ``activation_bytes`` are those of one value;
    ``eager``: kernels wait for their launches, one by one.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        num_heads: int,
        rank: int,
        rope: int,
        kv_bytes: float = 2.0,
        activation_bytes: float = 2.0,
        layers: int = 1,
        *,
        eager: bool = False,
    ) -> None:
        own = latent_constants(gpu)
        self._triton = gpu.sim.attention_kernel not in ("fa3", "trtllm")
        pair = architecture(gpu) == "blackwell"
        self._rows = TRITON_ROWS if self._triton else PAIR_ROWS if pair else ROWS
        self._heads, self._layers, self._slots = num_heads, layers, gpu.num_sms
        self._bands = -(-num_heads // self._rows)  # tiles of a token's heads
        rate = gpu.peak_tflops * 1e3 / gpu.num_sms * own.efficiency
        self._flop_ns = 2.0 * (2 * rank + rope) / rate  # of one row and one key
        self._token_bytes = (rank + rope) * kv_bytes
        compute, taken = self._flop_ns * self._rows, self._token_bytes / own.sm_gbps
        self._block = KEYS * max(compute, taken)
        self._tile = own.tile_us * 1e3
        self._launch = (own.launch_us if eager else own.graph_us) * 1e3
        self._combine, self._token = own.combine_us * 1e3, own.token_us * 1e3
        self._exposed, self._tail = own.overlap, gpu.sim.attention_tail
        # Queries read and outputs written, for every pass over them; the latent read and written.
        wide = num_heads * (2 * rank + rope) * activation_bytes
        self._new_bytes = own.passes * wide + (rank + rope) * (activation_bytes + kv_bytes)
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
        """As ``Attention.time``: all layers on ``sms`` SMs, in ns."""
        tokens, keys, tiles, blocks, longest, pairs = self._prompts(chunks)
        if num_decodes:
            # The last block of a decode counts as whole: its mean context stands for all.
            last = -(-decode_context // (num_decodes * KEYS))
            each = num_decodes * self._bands
            tokens, tiles = tokens + num_decodes, tiles + each
            keys, pairs = keys + decode_context, pairs + decode_context
            blocks, longest = blocks + each * last, max(longest, last)
        if not tokens:
            return NOTHING
        fixed, splits = self._launch + tokens * self._token / sms, 1
        if tiles < 0.8 * self._slots:
            splits = max(1, min(int(longest), self._slots // tiles, SPLITS))
            if splits > 1:
                fixed += self._combine
        work = tiles * splits * self._tile + blocks * self._block
        tiles *= splits
        single = self._tile + -(-longest // splits) * self._block
        busy = spread(tiles, work, single, sms, self._tail)
        new, read = tokens * self._new_bytes, keys * self._token_bytes
        if self._triton and num_decodes and read > self._l2_bytes:
            # Tiles of one sequence run far apart: keys are evicted before the next tile reads them,
            # unless enough SMs are left to run the tiles that share them at the same time.
            sharing = float(self._bands)
            read *= sharing / max(1.0, min(sharing, sms / num_decodes))
        cold = 1.0 / bandwidth
        warm = min(cold, self._l2.per_byte(new, sms, cold))
        if copies:
            cold = self._l2.per_byte(copies * (new + read), sms, cold)
            warm = min(warm, cold)
        moving = read * cold
        longer, memory = busy + self._exposed * moving, 0.0
        if busy < moving:
            longer = memory = moving + self._exposed * busy
        busy = min(busy, pairs * self._heads * self._flop_ns / sms)
        return in_layers(
            self._layers, fixed + new * warm, longer, memory, busy, new + read, tiles / sms
        )

    def _prompts(self, chunks: _Chunks) -> tuple[int, float, int, float, float, float]:
        """(tokens, keys read, tiles, their blocks together, blocks of the longest, pairs of a token
        and a key) of chunks.
        """
        tokens = tiles = 0
        keys = blocks = longest = pairs = 0.0
        for count, before in chunks:
            each = -(-count * self._heads // self._rows)
            last = -(-(before + count) // KEYS)
            mean = float(last)
            if count > 1 and each > 1:
                mean = min(last, (before + (count + 1) / 2) / KEYS + 0.5)
            tokens += count
            keys += before + count
            tiles += each
            blocks += each * mean
            longest = max(longest, last)
            pairs += count * (before + (count + 1) / 2)
        return tokens, keys, tiles, blocks, longest, pairs


class LatentKernels:
    """Latent attention of a launch: decodes and short chunks absorbed, longer chunks expanded, in
    kernels one after the other. ``mixer`` is one GPU's part of it.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        mixer: LatentAttention,
        kv_bytes: float = 2.0,
        activation_bytes: float = 2.0,
        layers: int = 1,
    ) -> None:
        heads, rope = mixer.num_heads, mixer.rope_dim
        self._expanded = ExpandedAttention(
            gpu, heads, mixer.nope_dim + rope, mixer.value_dim, activation_bytes, layers
        )
        self._absorbed = AbsorbedAttention(
            gpu, heads, mixer.kv_rank, rope, kv_bytes, activation_bytes, layers
        )
        self._most = ABSORBED_TOKENS.get(architecture(gpu), 1)

    def split(self, chunks: _Chunks) -> tuple[_Chunks, _Chunks]:
        """(chunks that run absorbed, chunks whose keys are expanded)."""
        most, first = self._most, chunks[0][0] <= self._most
        for count, _ in chunks[1:]:
            if (count <= most) != first:
                short = tuple([chunk for chunk in chunks if chunk[0] <= most])
                return short, tuple([chunk for chunk in chunks if chunk[0] > most])
        return (chunks, ()) if first else ((), chunks)

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
        """As ``Attention.time``."""
        short, long = self.split(chunks) if chunks else ((), ())
        made = self._absorbed.time(
            short, num_decodes, decode_context, sms, bandwidth, copies=copies
        )
        if not long:
            return made
        more = self._expanded.time(long, 0, 0, sms, bandwidth, copies=copies)
        return more if made is NOTHING else scaled_sum(made, 1.0, more)
