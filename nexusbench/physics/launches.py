"""The truth of the simulated GPU: how long a batch takes on some SMs, and how much two batches slow
each other down.

Richer than any belief on purpose: tiles and waves, split-K, attention tile by tile, kernel and host
overheads, measured curves of bandwidth over SMs for streams and for weights, a rate at which an SM
takes keys and values, a clock that rises while SMs are idle, what a neighbour does, and
noise. Only + - * / and comparisons are used, so every IEEE-754 machine computes the same numbers
(invariant I6). How far it is from measurements: docs/fidelity.md.
"""

from __future__ import annotations

from msgspec import UNSET

from nexusbench.core.batch import BatchShape
from nexusbench.core.host import EngineHost
from nexusbench.core.layers import ExpertsMlp, LayerGroup
from nexusbench.core.mixer_work import MixerWork
from nexusbench.core.mixers import FullAttention
from nexusbench.core.parallelism import Parallelism
from nexusbench.core.specs import DTYPE_BYTES, GpuSpec, ModelSpec
from nexusbench.core.work import ModelWork, model_work
from nexusbench.physics.collectives import Collectives
from nexusbench.physics.experts import Experts, ExpertShape
from nexusbench.physics.imbalance import busiest
from nexusbench.physics.latent_products import EXPANSION, fused
from nexusbench.physics.mixing import Mixing, mixings_of
from nexusbench.physics.operators import (
    L2,
    NOTHING,
    OperatorClass,
    attainable,
    beside,
    scaled_sum,
    total,
)
from nexusbench.physics.precisions import expert_constants, served_experts
from nexusbench.physics.products import Products
from nexusbench.physics.sharing import LaunchLoad, Sharing

ROW_GRANULE = 16  # rows of one tensor-core instruction: fewer rows cost as much
HYPER_CONNECTION = "hyper_connection"  # a matrix of LayerGroup.others
LOGIT_BYTES = 4.0  # logits are sampled from in float32, in two passes
SAMPLER_PASSES = 2
_SQUARES_BYTES = 8.0  # the sums of squares of a token's queries and of its keys, in float32
# Shared experts run beside the routed ones in batches of up to so many tokens: in a stream of their
# own (vLLM's VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD, TensorRT-LLM's maybe_execute_in_parallel),
# or as one expert more in the same kernels (SGLang's shared experts fusion).
SHARED, SHARED_BESIDE = ("gate_up", "up", "down"), 256


class Physics:
    """Times of one model on one GPU (or on ``tensor_parallel`` of them in lockstep).

    ``expert_skew`` is how many times as often as the least popular expert the most popular one is
    chosen (experts.py, uniform).
    """

    def __init__(
        self,
        gpu: GpuSpec,
        model: ModelSpec,
        tensor_parallel: int = 1,
        expert_skew: float = 1.0,
        part: tuple[ModelWork, LayerGroup] | None = None,
        *,
        host: EngineHost | None = None,
        parallel: Parallelism | None = None,
    ) -> None:
        """``part`` is one layer group and its work, whose layers alone are timed; None: all.
        ``parallel`` says more than ``tensor_parallel``, where there is more to say. The routed
        experts of ranks in lockstep are left out: :meth:`routed` (lockstep.py).
        """
        self.gpu, self.model, self.tensor_parallel = gpu, model, tensor_parallel
        self._parallel = parallel = parallel or Parallelism(tensor_parallel)
        self._apart = parallel.in_lockstep(model)
        self._host = host  # in place of the GPU file's step_overhead_us
        work, group = part or (model_work(model, tensor_parallel), model.groups[0])
        self._work, self.activation_bytes = work, work.activation_bytes
        self._groups = tuple(
            Physics(gpu, model, tensor_parallel, expert_skew, each, parallel=parallel)
            for each in zip(work.groups, model.groups, strict=False)
        )
        self.bandwidth_all = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency  # bytes per ns
        self._bandwidth = [attainable(gpu, sms) for sms in range(gpu.num_sms + 1)]
        self._weights = [attainable(gpu, sms, weights=True) for sms in range(gpu.num_sms + 1)]
        self._sharing = Sharing(gpu)
        self._dense_memo: dict[tuple[int, int], OperatorClass] = {}
        self._head_memo: dict[tuple[int, int], OperatorClass] = {}
        self._overhead = gpu.sim.step_overhead_us * 1e3 if host is None else 0.0
        self._l2, activations = L2(gpu), model.dtypes.activations
        self._products = {
            linear.dtype: Products(
                gpu, linear.dtype, linear.bytes_each, activations, work.activation_bytes
            )
            for linear in work.linears
            if not linear.name.startswith("expert")
        }  # fmt: skip
        self._head = Products(
            gpu, model.head_dtype, work.head_bytes_each, activations, work.activation_bytes
        )
        self._linears = tuple(
            linear
            for linear in fused(work.linears)
            if linear.name != EXPANSION and not linear.name.startswith("expert")
        )
        self._experts = _experts_of(gpu, model, group, parallel.sharded)
        self._expert_skew = expert_skew
        if tensor_parallel > 1:
            self._collectives = Collectives(gpu, tensor_parallel)
        self._wide_norms = _wide_norms(model)
        self._wide = work.wide  # of this GPU's share, in values
        self._beside = _beside(group) / tensor_parallel
        self._shared = _shares_alone(group) and not self._apart
        self._hyper = _streams_of(group, model.hidden_size)
        self.mixing = () if part else mixings_of(gpu, work, self._products)
        self._attention = self.mixing[0] if len(self.mixing) == 1 else None
        self._by_context = tuple(one for one in self.mixing if one.products is not None)

    @property
    def times_lengths(self) -> bool:
        """Whether decodes of unequal lengths take longer than equal ones."""
        return any(one.unequal is not None for one in self.mixing)

    def load(self, shape: BatchShape, sms: int) -> LaunchLoad:
        """One repetition of ``shape`` on ``sms`` SMs, alone (``shape.repeat`` is not applied)."""
        tokens = shape.num_decodes
        for count, _ in shape.chunks:
            tokens += count
        sequences = shape.num_decodes + len(shape.chunks)
        layers = self._work.num_layers
        if shape.layers is None:
            share, head = 1.0, self.head(sequences, sms)
            dense = scaled_sum(head, 1.0, self.dense(tokens, sms))
            attention = self.attention(shape, sms)
            if self._by_context:
                dense = scaled_sum(self._with_contexts(shape, sms), 1.0, dense)
        else:
            share = (shape.layers[1] - shape.layers[0]) / layers
            head = self.head(sequences, sms) if shape.layers[1] == layers else NOTHING
            dense, attention = self._within(shape, tokens, sms, share, head)
        solo = self._overhead + dense.time + attention.time
        if self.tensor_parallel > 1:
            solo += share * self._all_reduce(tokens)
        if self._host is not None:
            first, last = shape.layers or (0, layers)
            solo = self._host.step_ns(solo, sequences, last - first if shape.chunks else 0)
        return LaunchLoad(solo, sms, dense, attention)

    def _within(
        self, shape: BatchShape, tokens: int, sms: int, share: float, head: OperatorClass
    ) -> tuple[OperatorClass, OperatorClass]:
        """Dense (with ``head``) and attention of a range of layers, which is that share of all."""
        if not self._groups:
            dense = scaled_sum(self.dense(tokens, sms), share, head)
            if self._by_context:
                dense = scaled_sum(self._with_contexts(shape, sms), share, dense)
            return dense, scaled_sum(self.attention(shape, sms), share, NOTHING)
        assert self.model.stack is not UNSET
        dense, attention = head, NOTHING
        mixed: dict[MixerWork, int] = {}
        counts = self.model.stack.within(shape.layers)
        for group, count in zip(self._groups, counts, strict=True):
            dense = scaled_sum(group.dense(tokens, sms), count / group._work.num_layers, dense)
            for work, _ in group._work.mixing:
                mixed[work] = mixed.get(work, 0) + count
        for one in self.mixing:
            part = mixed[one.work] / one.layers
            attention = scaled_sum(one.time(shape, sms, self._bandwidth[sms]), part, attention)
            if one.products is not None:
                dense = scaled_sum(self._with_context(one, shape, sms), part, dense)
        return dense, attention

    # -- operators of one launch -------------------------------------------------------------------

    def dense(self, tokens: int, sms: int) -> OperatorClass:
        """All dense layers and element-wise kernels of the decoder stack."""
        rows = (tokens + ROW_GRANULE - 1) // ROW_GRANULE * ROW_GRANULE
        # The number of experts that a batch reads follows from its tokens, not from padded rows.
        different = tokens if self._work.routed else rows
        known = self._dense_memo.get((different, sms))
        if known is None:
            known = self._dense_memo[different, sms] = self._stack(tokens, rows, sms)
        return known

    def head(self, sequences: int, sms: int) -> OperatorClass:
        """The output head on the last token of each sequence, and sampling from its logits."""
        granules = (sequences + ROW_GRANULE - 1) // ROW_GRANULE
        known = self._head_memo.get((granules, sms))
        if known is None:
            rows, head = granules * ROW_GRANULE, self._work.head
            product = self._head.time(
                head.name, rows, head.inputs, head.outputs, sms,
                self._weights[sms], self._bandwidth[sms],
            )  # fmt: skip
            logits = rows * head.outputs * LOGIT_BYTES * SAMPLER_PASSES
            known = total([product, self.streamed(logits, sms, SAMPLER_PASSES)])
            self._head_memo[granules, sms] = known
        return known

    def attention(self, shape: BatchShape, sms: int) -> OperatorClass:
        """Attention of all layers."""
        if self._attention is None:
            made = NOTHING
            for one in self.mixing:
                part = one.time(shape, sms, self._bandwidth[sms])
                made = part if made is NOTHING else scaled_sum(part, 1.0, made)
            return made
        return self._attention.time(shape, sms, self._bandwidth[sms])

    def attention_by_kind(self, shape: BatchShape, sms: int) -> list[OperatorClass]:
        """The same for each kind of layers, in the order of ``mixing``."""
        if self._attention is not None:
            return [self.attention(shape, sms)]
        return [one.time(shape, sms, self._bandwidth[sms]) for one in self.mixing]

    def _with_contexts(self, shape: BatchShape, sms: int) -> OperatorClass:
        """Products that depend on more of a batch than its tokens, in all layers."""
        made = self._with_context(self._by_context[0], shape, sms)
        for one in self._by_context[1:]:
            made = scaled_sum(self._with_context(one, shape, sms), 1.0, made)
        return made

    def _with_context(self, one: Mixing, shape: BatchShape, sms: int) -> OperatorClass:
        assert one.products is not None
        weights, streams = self._weights[sms], self._bandwidth[sms]
        return one.products.time(shape.chunks, shape.num_decodes, sms, weights, streams)

    def _stack(self, tokens: int, rows: int, sms: int) -> OperatorClass:
        """The decoder stack without attention, not memoised, for tokens padded to ``rows``."""
        work = self._work
        if self._groups:
            return total([group.dense(tokens, sms) for group in self._groups])
        made = shared = NOTHING
        aside = SHARED if self._shared and tokens <= SHARED_BESIDE else ()
        for linear in self._linears:  # not of experts: theirs are timed together, below
            product = self._products[linear.dtype].time(
                linear.name, rows, linear.inputs, linear.outputs, sms,
                self._weights[sms], self._bandwidth[sms],
            )  # fmt: skip
            if linear.name in aside:
                shared = scaled_sum(product, 1.0, shared)
            else:
                made = scaled_sum(product, linear.count, made)
        # Values read and written per token: two norms with residual (two read, two written each),
        # rotary embedding in place, and an activation that reads two wide rows and writes one.
        hidden, activated = work.hidden_size, 3 if work.gated else 2
        mixers = [each for each, _ in work.mixing]
        touched: list[float] = [4 * hidden for _ in mixers]
        if self._wide:
            touched.append(4 * hidden)
        for each in mixers:
            touched += [values for values in (2 * each.rotated, each.gated) if values]
        if self._experts is not None:
            touched.append(work.num_experts)  # the top k of the router's logits
            if self._beside and not aside:
                touched.append(activated * self._beside)
            if not self._apart:
                layer = self._routed(tokens, sms)
                if aside:
                    layer = beside(layer, shared, self._weights[sms])
                made = scaled_sum(layer, work.num_layers, made)
        elif self._wide:
            touched.append(activated * self._wide)
        touched += self._hyper
        for values in touched:
            kernel = self.streamed(rows * values * work.activation_bytes, sms)
            made = scaled_sum(kernel, work.num_layers, made)
        return made

    def routed(self, tokens: int, sms: int) -> OperatorClass:
        """The routed experts of all layers that one GPU holds of them, for ``tokens`` tokens of all
        ranks together.
        """
        if self._groups:
            return total([group.routed(tokens, sms) for group in self._groups])
        if self._experts is None:
            return NOTHING
        return scaled_sum(self._routed(tokens, sms), self._work.num_layers, NOTHING)

    def _routed(self, tokens: int, sms: int) -> OperatorClass:
        """Those of one layer."""
        assert self._experts is not None
        work, gpus = self._work, self._parallel.spread
        routing = busiest(tokens, work.num_experts, work.experts_per_token, gpus, self._expert_skew)
        return self._experts.time(routing, sms, self._weights[sms])

    def streamed(self, size: float, sms: int, kernels: int = 1) -> OperatorClass:
        """Element-wise kernels that move ``size`` bytes, from L2 if they fit."""
        moving = size * self._l2.per_byte(size / kernels, sms, 1.0 / self._bandwidth[sms])
        kernel = self.gpu.sim.kernel_us * 1e3
        time = max(kernels * kernel, moving)
        return OperatorClass(time, 0.0, moving, 0.0, size, kernels, kernels, moving)

    def _all_reduce(self, tokens: int) -> float:
        """Ns of two all-reduces a layer (after attention and the MLP, where it has both), and one
        of two numbers a token where queries and keys are normalised over all heads; not
        overlapped with compute. Sums of ranks in lockstep come back otherwise (lockstep.py).
        """
        size = tokens * self._work.hidden_size * self._work.activation_bytes
        times = 0
        for work in self._work.groups or (self._work,):
            summed = work.wide > 0 and not (self._apart and work.routed)
            times += (len(work.mixing) + summed) * work.num_layers
        spent = times * self._collectives.all_reduce(size)
        if self._wide_norms:
            spent += self._wide_norms * self._collectives.all_reduce(tokens * _SQUARES_BYTES)
        return spent

    def slowdown(self, side: LaunchLoad, other: LaunchLoad) -> float:
        """How many times slower ``side`` runs while ``other`` does (at least 1)."""
        return self._sharing.slowdown(side, other)


def _wide_norms(model: ModelSpec) -> int:
    """Layers that norm all heads of queries and of keys as one."""
    layers = 0
    for group in model.groups:
        if isinstance(group.mixer, FullAttention) and group.mixer.wide_norm:
            layers += group.count
    return layers


def _beside(group: LayerGroup) -> float:
    """Values between the products that every token uses beside routed experts."""
    mlp = group.mlp
    return float(mlp.shared_size + mlp.dense_size) if isinstance(mlp, ExpertsMlp) else 0.0


def _shares_alone(group: LayerGroup) -> bool:
    """Whether shared experts, and nothing else, stand beside routed ones."""
    mlp = group.mlp
    return isinstance(mlp, ExpertsMlp) and mlp.shared_size > 0 == mlp.dense_size


def _experts_of(gpu: GpuSpec, model: ModelSpec, group: LayerGroup, sharded: int) -> Experts | None:
    """The routed experts of a layer on one of ``sharded`` GPUs, which have a share of each
    expert's width; None without experts.
    """
    mlp = group.mlp
    if not isinstance(mlp, ExpertsMlp):
        return None
    weights = group.dtypes.experts
    kernel = served_experts(gpu, weights, model.dtypes.activations)
    width = -(-mlp.intermediate_size // sharded)
    shape = ExpertShape(
        mlp.latent or model.hidden_size, width, mlp.gated, DTYPE_BYTES[weights],
        kernel.activation_bytes,
    )  # fmt: skip
    return Experts(gpu, expert_constants(gpu, kernel.kind), shape)


def _streams_of(group: LayerGroup, hidden: int) -> list[float]:
    """Values that the hyper-connections of a layer (DeepSeek-V4) read and write for a token, around
    each of its parts: all streams mixed to the part's input, and with its output to new streams.
    """
    found: list[float] = []
    for one in group.others:
        if one.name == HYPER_CONNECTION:
            found += [one.inputs + hidden, 2 * one.inputs + hidden] * one.copies
    return found
