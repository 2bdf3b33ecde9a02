"""The simulated GPU's truth: how long a batch takes on some SMs, and what two batches do to each
other.

Richer than any belief on purpose: tiles and waves, split-K, kernel and host overheads, a
measured-like bandwidth curve, fair sharing of HBM per pair of operator classes, interference and
noise. Only + - * / and comparisons are used, so every IEEE-754 machine computes the same numbers
(invariant I6).
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.specs import GpuSpec, Linear, ModelSpec
from nexusbench.costs._work import ModelWork, model_work, prefill_pairs

# (rows, columns, share of the attainable rate) of GEMM tiles; small ones reuse less and run slower.
# Shapes are those that cuBLAS kernels are named after; the shares are simulator constants.
TILES = ((256, 128, 1.0), (128, 128, 0.95), (64, 128, 0.80), (16, 128, 0.40))
SPLIT_K = (1, 2, 4, 8)
ROW_GRANULE = 16  # rows of one tensor-core instruction: fewer rows cost as much
QUERY_TILE = 128  # query rows of a prefill-attention thread block (FlashAttention-2)
KERNELS_PER_LAYER = 9  # 4 GEMMs, attention, 2 norms, rotary, activation


class OperatorClass(msgspec.Struct, frozen=True, gc=False):
    """One side's dense layers, or its attention, alone on its SMs.

    ``compute`` and ``memory`` are the ns in operators bound by tensor cores or by HBM (the rest of
    ``time`` is launches); ``busy`` is all tensor-core time, ``traffic`` all HBM bytes.
    """

    time: float
    compute: float
    memory: float
    busy: float
    traffic: float


class Load(msgspec.Struct, frozen=True, gc=False):
    """A batch on some SMs: ns without a neighbour, and the classes that one can slow down."""

    solo: float
    sms: int
    dense: OperatorClass
    attention: OperatorClass


class Physics:
    """Times of one model on one GPU (or on ``tensor_parallel`` of them in lockstep)."""

    def __init__(self, gpu: GpuSpec, model: ModelSpec, tensor_parallel: int = 1) -> None:
        self.gpu, self.model, self.tensor_parallel = gpu, model, tensor_parallel
        self._work: ModelWork = model_work(model, tensor_parallel)
        self._sm_flops = gpu.peak_tflops * 1e3 / gpu.num_sms  # per ns
        self._dense_rate = self._sm_flops * gpu.sim.dense_efficiency
        self._attention_rate = self._sm_flops * gpu.sim.attention_efficiency
        self.bandwidth_all = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency  # bytes per ns
        self._bandwidth = [self._bandwidth_of(sms) for sms in range(gpu.num_sms + 1)]
        self._dense_memo: dict[tuple[int, int], OperatorClass] = {}
        self._head_memo: dict[tuple[int, int], OperatorClass] = {}
        self._overhead = gpu.sim.step_overhead_us * 1e3
        # Decode packs a KV head's query heads into one tile of 16 rows; unused rows are wasted
        # work.
        group = max(1, self._work.num_heads // self._work.num_kv_heads)
        self._decode_padding = max(1.0, ROW_GRANULE / group)

    def _bandwidth_of(self, sms: int) -> float:
        """Bytes per ns that ``sms`` SMs draw alone, on the GPU's piecewise-linear curve."""
        share = sms / self.gpu.num_sms
        curve = self.gpu.sim.bandwidth_curve
        for (x0, y0), (x1, y1) in pairwise(curve):
            if share <= x1:
                return self.bandwidth_all * (y0 + (y1 - y0) * (share - x0) / (x1 - x0))
        return self.bandwidth_all

    def load(self, shape: BatchShape, sms: int) -> Load:
        """``shape`` on ``sms`` SMs, alone. ``repeat`` is not applied: this is one repetition."""
        tokens = shape.num_decodes
        for count, _ in shape.chunks:
            tokens += count
        granules = (tokens + ROW_GRANULE - 1) // ROW_GRANULE
        dense = self._dense_memo.get((granules, sms))
        if dense is None:
            dense = self._dense_memo[granules, sms] = self._stack(granules * ROW_GRANULE, sms)
        attention = self._attention(shape, sms)
        if shape.layers is None:
            share, head = 1.0, self._head(shape.num_decodes + len(shape.chunks), sms)
        else:
            share = (shape.layers[1] - shape.layers[0]) / self._work.num_layers
            last = shape.layers[1] == self._work.num_layers
            head = self._head(shape.num_decodes + len(shape.chunks), sms) if last else _NOTHING
        dense = _scaled_sum(dense, share, head)
        if share < 1.0:
            attention = _scaled_sum(attention, share, _NOTHING)
        solo = self._overhead + dense.time + attention.time + share * self._all_reduce(tokens)
        return Load(solo, sms, dense, attention)

    # -- dense -------------------------------------------------------------------------------------

    def _stack(self, rows: int, sms: int) -> OperatorClass:
        """All dense layers, element-wise kernels and launches of the decoder stack."""
        work, bandwidth = self._work, self._bandwidth[sms]
        parts = []
        for linear, share in zip(work.linears, work.token_share, strict=True):
            used = max(1, round(rows * share))
            busy = self._gemm(used, linear, sms) * linear.count
            moved = linear.count * self._gemm_bytes(used, linear, work.weight_bytes_each)
            parts.append(_bound(busy, moved, bandwidth))
        # Norms and residuals touch the hidden state about 8 times a layer, the activation its wide
        # one 3 times.
        wide = 8 * work.hidden_size + 3 * self.model.intermediate_size / self.tensor_parallel
        moved = rows * wide * work.activation_bytes * work.num_layers
        parts.append(_bound(0.0, moved, bandwidth))
        launches = KERNELS_PER_LAYER * work.num_layers * self.gpu.sim.kernel_us * 1e3
        return _total(parts, launches)

    def _head(self, rows: int, sms: int) -> OperatorClass:
        """The output head on the last token of each sequence."""
        granules = (rows + ROW_GRANULE - 1) // ROW_GRANULE
        known = self._head_memo.get((granules, sms))
        if known is None:
            head = self._work.head
            busy = self._gemm(granules * ROW_GRANULE, head, sms)
            moved = self._gemm_bytes(granules * ROW_GRANULE, head, self._work.head_bytes_each)
            known = _bound(busy, moved, self._bandwidth[sms])
            self._head_memo[granules, sms] = known
        return known

    def _gemm_bytes(self, rows: int, linear: Linear, weight_bytes: float) -> float:
        activations = rows * (linear.inputs + linear.outputs) * self._work.activation_bytes
        return linear.inputs * linear.outputs * weight_bytes + activations

    def _gemm(self, rows: int, linear: Linear, sms: int) -> float:
        """Compute ns of one GEMM: the best tile and split of K, in whole waves over ``sms`` SMs."""
        best = 0.0
        for height, width, share in TILES:
            tiles = -(-rows // height) * -(-linear.outputs // width)
            tile_time = 2.0 * height * width * linear.inputs / (self._dense_rate * share)
            for parts in SPLIT_K:
                waves = -(-tiles * parts // sms)
                time = waves * tile_time / parts
                if best == 0.0 or time < best:
                    best = time
        return best

    # -- attention and communication ---------------------------------------------------------------

    def _attention(self, shape: BatchShape, sms: int) -> OperatorClass:
        """Prefill chunks and decodes, one after the other."""
        work, bandwidth = self._work, self._bandwidth[sms]
        rate = self._attention_rate * sms
        prefill = decode = _NOTHING
        if shape.chunks:
            pairs = queries = context = blocks = 0.0
            for count, before in shape.chunks:
                pairs += prefill_pairs(count, before)
                queries += count
                context += count + before
                blocks += -(-count // QUERY_TILE) * work.num_heads
            idle_tail = -(-blocks // sms) * sms / blocks
            busy = pairs * work.attention_flops * work.num_layers / rate * idle_tail
            moved = context * work.kv_bytes_per_token + (
                queries * work.query_bytes_per_token * work.num_layers
            )
            prefill = _bound(busy, moved, bandwidth)
        if shape.num_decodes:
            context = shape.decode_context + shape.num_decodes
            flops = context * work.attention_flops * work.num_layers
            moved = context * work.kv_bytes_per_token
            decode = _bound(flops * self._decode_padding / rate, moved, bandwidth)
        if decode is _NOTHING:
            return prefill
        return decode if prefill is _NOTHING else _scaled_sum(prefill, 1.0, decode)

    def _all_reduce(self, tokens: int) -> float:
        """Two ring all-reduces a layer: 2 (p-1)/p of the data over the link, 2 (p-1) hops of
        latency.
        """
        p = self.tensor_parallel
        if p == 1:
            return 0.0
        size = tokens * self._work.hidden_size * self._work.activation_bytes
        once = 2 * (p - 1) / p * size / self.gpu.link_gbps + 2 * (p - 1) * (
            self.gpu.link_latency_us * 1e3
        )
        return 2 * self._work.num_layers * once

    # -- two at once -------------------------------------------------------------------------------

    def slowdown(self, side: Load, other: Load) -> float:
        """How many times slower ``side`` runs while ``other`` does (at least 1).

        Each operator class of one side meets each class of the other for the product of their
        shares of time. Host and launch gaps of either side meet nobody.
        """
        constants = self.gpu.sim
        shared = side.sms + other.sms - self.gpu.num_sms
        on_shared = shared / side.sms if shared > 0 else 0.0
        reach = other.sms / self.gpu.num_sms
        extra = 0.0
        for mine in (side.dense, side.attention):
            if mine.time <= 0.0:
                continue
            for theirs, disturbs in (
                (other.dense, constants.dense_interference * reach),
                (other.attention, constants.attention_interference * reach),
            ):
                if theirs.time > 0.0:
                    extra += self._delay(mine, theirs, disturbs, on_shared) * theirs.time
        return 1.0 + extra / (side.solo * other.solo)

    def _delay(
        self, mine: OperatorClass, theirs: OperatorClass, disturbs: float, on_shared: float
    ) -> float:
        """Extra ns that ``mine`` takes if ``theirs`` runs beside it all the time.

        HBM is shared fairly (each may draw half, and what the other leaves); a busy neighbour also
        disturbs memory-bound operators through L2, a streaming one compute-bound operators; on SMs
        that both claim they overlap as far as their tensor-core demands allow, or take turns.
        """
        total = self.bandwidth_all
        wanted, beside = mine.traffic / mine.time, theirs.traffic / theirs.time
        busy = theirs.busy / theirs.time
        starved = 0.0
        if wanted + beside > total and wanted > 0.5 * total:
            starved = wanted / max(0.5 * total, total - beside) - 1.0
        delay = mine.memory * (starved + disturbs * busy)
        delay += mine.compute * self.gpu.sim.stream_interference * min(1.0, beside / total)
        if on_shared > 0.0:
            overlap = max(0.0, mine.busy / mine.time + busy - 1.0) * mine.compute
            turns = mine.time
            share = self.gpu.sim.turn_taking
            delay += on_shared * (share * turns + (1.0 - share) * overlap)
        return delay


_NOTHING = OperatorClass(0.0, 0.0, 0.0, 0.0, 0.0)


def _bound(busy: float, traffic: float, bandwidth: float) -> OperatorClass:
    """One operator: the longer of tensor-core ns and ns to move ``traffic`` bytes."""
    moving = traffic / bandwidth
    if busy >= moving:
        return OperatorClass(busy, busy, 0.0, busy, traffic)
    return OperatorClass(moving, 0.0, moving, busy, traffic)


def _total(parts: list[OperatorClass], launches: float) -> OperatorClass:
    # Not sum(): from Python 3.12 on it compensates the rounding of floats, which gives other times
    # than 3.11 (I6).
    time = compute = memory = busy = traffic = 0.0
    for part in parts:
        time += part.time
        compute += part.compute
        memory += part.memory
        busy += part.busy
        traffic += part.traffic
    return OperatorClass(time + launches, compute, memory, busy, traffic)


def _scaled_sum(a: OperatorClass, scale: float, b: OperatorClass) -> OperatorClass:
    return OperatorClass(
        a.time * scale + b.time,
        a.compute * scale + b.compute,
        a.memory * scale + b.memory,
        a.busy * scale + b.busy,
        a.traffic * scale + b.traffic,
    )
