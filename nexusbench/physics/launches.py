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
from nexusbench.core.specs import DTYPE_BYTES, GpuSpec, ModelSpec
from nexusbench.core.work import ModelWork, model_work
from nexusbench.physics.attention import Attention
from nexusbench.physics.collectives import Collectives
from nexusbench.physics.covered import check_covered
from nexusbench.physics.experts import Experts, ExpertShape, uniform
from nexusbench.physics.operators import L2, NOTHING, OperatorClass, attainable, scaled_sum, total
from nexusbench.physics.precisions import (
    expert_constants,
    experts_kernel,
    small_kv_constants,
)
from nexusbench.physics.products import Products
from nexusbench.physics.sharing import LaunchLoad, Sharing
from nexusbench.physics.small_kv import SmallKvAttention

ROW_GRANULE = 16  # rows of one tensor-core instruction: fewer rows cost as much
LOGIT_BYTES = 4.0  # logits are sampled from in float32, in two passes
SAMPLER_PASSES = 2


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
    ) -> None:
        """``part`` is one layer group and its work, whose layers alone are timed; None: all.

        Raises UsageError for a layer that there is no kernel for.
        """
        check_covered(model)
        self.gpu, self.model, self.tensor_parallel = gpu, model, tensor_parallel
        self._host = host  # in place of the GPU file's step_overhead_us
        work, group = part or (model_work(model, tensor_parallel), model.groups[0])
        self._work = work
        self._groups = tuple(
            Physics(gpu, model, tensor_parallel, expert_skew, each)
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
        self._experts = _experts_of(gpu, model, group, tensor_parallel)
        self._expert_skew = expert_skew
        if tensor_parallel > 1:
            self._collectives = Collectives(gpu, tensor_parallel)
        self._wide = work.wide  # of this GPU's share, in values
        self._beside = 0.0  # of what every token uses beside routed experts
        if isinstance(group.mlp, ExpertsMlp):
            self._beside = (group.mlp.shared_size + group.mlp.dense_size) / tensor_parallel
        self._attention = _attention_of(gpu, work)

    def load(self, shape: BatchShape, sms: int) -> LaunchLoad:
        """One repetition of ``shape`` on ``sms`` SMs, alone (``shape.repeat`` is not applied)."""
        tokens = shape.num_decodes
        for count, _ in shape.chunks:
            tokens += count
        sequences = shape.num_decodes + len(shape.chunks)
        dense = self.dense(tokens, sms)
        attention = self.attention(shape, sms)
        layers = self._work.num_layers
        if shape.layers is None:
            share, head = 1.0, self.head(sequences, sms)
            dense = scaled_sum(head, 1.0, dense)
        else:
            share = (shape.layers[1] - shape.layers[0]) / layers
            head = self.head(sequences, sms) if shape.layers[1] == layers else NOTHING
            dense = scaled_sum(dense, share, head)
            attention = scaled_sum(attention, share, NOTHING)
            if self._groups:
                dense, attention = self._layers(shape, tokens, sms, head)
        solo = self._overhead + dense.time + attention.time
        if self.tensor_parallel > 1:
            solo += share * self._all_reduce(tokens)
        if self._host is not None:
            solo = self._host.step_ns(solo, sequences)
        return LaunchLoad(solo, sms, dense, attention)

    def _layers(
        self, shape: BatchShape, tokens: int, sms: int, head: OperatorClass
    ) -> tuple[OperatorClass, OperatorClass]:
        """Dense and attention of a range of layers that are not all alike, and of the head."""
        assert self.model.stack is not UNSET
        dense, attention = head, NOTHING
        counts = self.model.stack.within(shape.layers)
        for group, count in zip(self._groups, counts, strict=True):
            share = count / group._work.num_layers
            dense = scaled_sum(group.dense(tokens, sms), share, dense)
            attention = scaled_sum(group.attention(shape, sms), share, attention)
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
        if self._groups:
            return total([group.attention(shape, sms) for group in self._groups])
        if self._attention is None:
            return NOTHING
        decodes = shape.num_decodes
        return self._attention.time(
            shape.chunks, decodes, shape.decode_context + decodes, sms, self._bandwidth[sms]
        )

    def message_bytes(self, rows: int) -> float:
        """Bytes between GPUs for the attention of ``rows`` tokens in one layer: queries, keys and
        values one way, outputs back. Of one GPU of a group: each has a link of its own. The mean
        of layers that are not alike.
        """
        work = self._work
        if self._groups:
            total_bytes = 0.0
            for group in self._groups:
                total_bytes += group.message_bytes(rows) * group._work.num_layers
            return total_bytes / work.num_layers
        heads = 2 * work.num_heads + 2 * work.num_kv_heads
        return rows * heads * work.head_dim * work.activation_bytes

    def _stack(self, tokens: int, rows: int, sms: int) -> OperatorClass:
        """The decoder stack without attention, not memoised, for tokens padded to ``rows``."""
        work = self._work
        if self._groups:
            return total([group.dense(tokens, sms) for group in self._groups])
        made = NOTHING
        for linear in work.linears:
            if linear.name.startswith("expert"):
                continue  # the products of all experts are timed together, below
            product = self._products[linear.dtype].time(
                linear.name, rows, linear.inputs, linear.outputs, sms,
                self._weights[sms], self._bandwidth[sms],
            )  # fmt: skip
            made = scaled_sum(product, linear.count, made)
        # Values read and written per token: two norms with residual (two read, two written each),
        # rotary embedding in place, and an activation that reads two wide rows and writes one.
        hidden, activated = work.hidden_size, 3 if work.gated else 2
        rotated = (work.num_heads + work.num_kv_heads) * work.head_dim
        touched: list[float] = []
        if rotated:
            touched.append(4 * hidden)
        if self._wide:
            touched.append(4 * hidden)
        if rotated:
            touched.append(2 * rotated)
        if self._experts is not None:
            routing = uniform(
                tokens, work.num_experts, work.experts_per_token, skew=self._expert_skew
            )
            layer = self._experts.time(routing, sms, self._weights[sms])
            made = scaled_sum(layer, work.num_layers, made)
            touched.append(work.num_experts)  # the top k of the router's logits
            if self._beside:
                touched.append(activated * self._beside)
        elif self._wide:
            touched.append(activated * self._wide)
        for values in touched:
            kernel = self.streamed(rows * values * work.activation_bytes, sms)
            made = scaled_sum(kernel, work.num_layers, made)
        return made

    def streamed(self, size: float, sms: int, kernels: int = 1) -> OperatorClass:
        """Element-wise kernels that move ``size`` bytes, from L2 if they fit."""
        moving = size * self._l2.per_byte(size / kernels, sms, 1.0 / self._bandwidth[sms])
        kernel = self.gpu.sim.kernel_us * 1e3
        time = max(kernels * kernel, moving)
        return OperatorClass(time, 0.0, moving, 0.0, size, kernels, kernels, moving)

    def _all_reduce(self, tokens: int) -> float:
        """Ns of two all-reduces a layer (after attention and the MLP, where it has both), not
        overlapped with compute.
        """
        size = tokens * self._work.hidden_size * self._work.activation_bytes
        times = 0
        for work in self._work.groups or (self._work,):
            times += ((work.num_heads > 0) + (work.wide > 0)) * work.num_layers
        return times * self._collectives.all_reduce(size)

    def slowdown(self, side: LaunchLoad, other: LaunchLoad) -> float:
        """How many times slower ``side`` runs while ``other`` does (at least 1)."""
        return self._sharing.slowdown(side, other)


def _attention_of(gpu: GpuSpec, work: ModelWork) -> Attention | SmallKvAttention | None:
    """The attention of equal layers; None of layers without it, and of several groups."""
    if not work.num_heads or work.groups:
        return None
    kv_bytes = work.kv_bytes_per_token / (2 * work.num_layers * work.num_kv_heads * work.head_dim)

    def made(on: GpuSpec) -> Attention:
        return Attention(
            on,
            work.num_heads,
            work.num_kv_heads,
            work.head_dim,
            kv_bytes,
            work.activation_bytes,
            work.num_layers,
        )

    if kv_bytes == work.activation_bytes:
        return made(gpu)
    own = small_kv_constants(gpu)
    return SmallKvAttention(gpu, own, made, work.num_heads, work.head_dim, work.num_layers)


def _experts_of(
    gpu: GpuSpec, model: ModelSpec, group: LayerGroup, tensor_parallel: int
) -> Experts | None:
    """The routed experts of a layer on one of ``tensor_parallel`` GPUs, which have a share of each
    expert's width; None without experts.
    """
    mlp = group.mlp
    if not isinstance(mlp, ExpertsMlp):
        return None
    weights = group.dtypes.experts
    kernel = experts_kernel(gpu, weights, model.dtypes.activations)
    width = -(-mlp.intermediate_size // tensor_parallel)
    shape = ExpertShape(
        mlp.latent or model.hidden_size, width, mlp.gated, DTYPE_BYTES[weights],
        kernel.activation_bytes,
    )  # fmt: skip
    return Experts(gpu, expert_constants(gpu, kernel.kind), shape)
