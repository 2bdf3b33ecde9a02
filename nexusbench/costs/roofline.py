"""The analytic belief: Nexus's cost model with published peaks instead of fitted constants."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.batch import BatchShape
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.costs._work import model_work, prefill_pairs
from nexusbench.costs.base import CostModel, CostModelOptions


class RooflineOptions(CostModelOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Assumptions that a data sheet does not settle.

    ``bandwidth_sms``: share of SMs that saturates HBM (Bullet's N_d/N, 30 of 108 on an A100,
    2504.19516 Eq. 1); 0 gives Nexus's form, in which memory time does not depend on SMs.
    ``contention``: Nexus section 4.1.1, with byte rates.
    """

    bandwidth_sms: float = 30 / 108
    contention: bool = True


class Roofline(CostModel):
    """Sum over operators of max(compute, memory), decode attention sharing HBM with the neighbour.

    Compute is c/(C r) for a share r of the SMs (Nexus section 4.1.1 with R_sat = 1: nothing was
    fitted). Decode attention's bandwidth beside a prefill is B (P_attn b_d/(b_d + b_p1) + P_dense
    b_d/(b_d + b_p2)), where the b are byte *rates* (bytes over the time in which they move) and
    P_attn is the share of prefill time in attention; the paper's plain byte counts compare one
    decode step with a whole chunk, which starves any decode.
    """

    Options: ClassVar[type[CostModelOptions]] = RooflineOptions
    works_unfitted: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Nexus section 4.1.1 (2507.06608); bandwidth over SMs after Bullet (2504.19516)"
    )

    def __init__(
        self,
        options: RooflineOptions | None = None,
        *,
        gpu: GpuSpec,
        model: ModelSpec,
        tensor_parallel: int = 1,
    ) -> None:
        super().__init__(options, gpu=gpu, model=model, tensor_parallel=tensor_parallel)
        own = options if options is not None else RooflineOptions()
        self._contention = own.contention
        self._bandwidth_sms = own.bandwidth_sms * gpu.num_sms
        self._num_sms = gpu.num_sms
        self._flops_per_ns = gpu.peak_tflops * 1e3
        self._bytes_per_ns = gpu.hbm_gbps
        work = model_work(model, tensor_parallel)
        self._work = work
        # Per linear: FLOPs per token, bytes of weights, bytes of activations per token.
        self._dense = [
            (
                2.0 * lin.inputs * lin.outputs * lin.count * share,
                lin.inputs * lin.outputs * lin.count * work.weight_bytes_each,
                (lin.inputs + lin.outputs) * lin.count * work.activation_bytes * share,
            )
            for lin, share in zip(work.linears, work.token_share, strict=True)
        ]
        head = work.head
        self._head_flops = 2.0 * head.inputs * head.outputs
        self._head_bytes = head.inputs * head.outputs * work.head_bytes_each

    def predict(
        self, shape: BatchShape, sms: int, neighbour: tuple[BatchShape, int] | None = None
    ) -> float:
        """Nanoseconds; see the class for the formula."""
        dense, _, chunk_attention, _ = self._alone(shape, sms)
        attention, attention_bytes = self._decode_attention(shape, sms)
        if self._contention and neighbour is not None and attention_bytes:
            bandwidth = self._shared_bandwidth(attention_bytes / attention, neighbour)
            attention = max(attention, attention_bytes / min(bandwidth, self._bandwidth(sms)))
        total = dense + chunk_attention + attention
        if shape.layers is not None:
            total *= (shape.layers[1] - shape.layers[0]) / self._work.num_layers
        return total * shape.repeat

    def _bandwidth(self, sms: int) -> float:
        """Bytes per ns that ``sms`` SMs can move."""
        return self._bytes_per_ns * min(
            1.0, sms / self._bandwidth_sms if self._bandwidth_sms else 1.0
        )

    def _alone(self, shape: BatchShape, sms: int) -> tuple[float, float, float, float]:
        """(dense ns, dense bytes, chunk attention ns, chunk attention bytes)."""
        tokens = shape.num_tokens
        flops, bandwidth = self._flops_per_ns * sms / self._num_sms, self._bandwidth(sms)
        time = moved = 0.0
        for per_token, weights, activations in self._dense:
            size = weights + activations * tokens
            moved += size
            time += max(per_token * tokens / flops, size / bandwidth)
        rows = shape.num_decodes + len(shape.chunks)
        time += max(self._head_flops * rows / flops, self._head_bytes / bandwidth)
        moved += self._head_bytes
        pairs = context = queries = 0.0
        for count, before in shape.chunks:
            pairs += prefill_pairs(count, before)
            context += count + before
            queries += count
        work = self._work
        size = context * work.kv_bytes_per_token + (
            queries * work.query_bytes_per_token * work.num_layers
        )
        attention = max(pairs * work.attention_flops * work.num_layers / flops, size / bandwidth)
        return time, moved, attention, size

    def _decode_attention(self, shape: BatchShape, sms: int) -> tuple[float, float]:
        """(ns, bytes) of the decodes' attention; it is never compute-bound in this belief."""
        size = (shape.decode_context + shape.num_decodes) * self._work.kv_bytes_per_token
        return size / self._bandwidth(sms), size

    def _shared_bandwidth(self, rate: float, neighbour: tuple[BatchShape, int]) -> float:
        """Bytes per ns left to decode attention that alone moves ``rate`` bytes per ns."""
        dense, dense_bytes, attention, attention_bytes = self._alone(*neighbour)
        if not neighbour[0].chunks:
            return self._bytes_per_ns
        in_attention = attention / (attention + dense)
        beside_attention = rate / (rate + attention_bytes / attention) if attention else 1.0
        beside_dense = rate / (rate + dense_bytes / dense)
        share = in_attention * beside_attention + (1.0 - in_attention) * beside_dense
        return self._bytes_per_ns * share
