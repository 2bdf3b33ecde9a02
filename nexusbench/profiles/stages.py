"""FLOPs and bytes of a batch by operator class, in the form that fitted beliefs use."""

from __future__ import annotations

from typing import Any

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.core.work import model_work, prefill_pairs


class StageWork(msgspec.Struct, frozen=True, gc=False):
    """What a batch computes and moves, per GPU. Values are floats, or arrays over batches in a fit.

    ``dense`` holds (FLOPs, bytes) of each dense layer over all decoder layers, the head last;
    ``chunk_*`` is the chunks' attention, ``decode_bytes`` what the decodes' attention reads.
    """

    dense: tuple[tuple[Any, Any], ...]
    chunk_flops: Any
    chunk_bytes: Any
    decode_bytes: Any
    flops_per_ns: float
    bytes_per_ns: float


class Stages:
    """Counts work for one model on one GPU as published (Nexus sections 2.2, 2.3, footnote 3)."""

    def __init__(self, gpu: GpuSpec, model: ModelSpec, tensor_parallel: int = 1) -> None:
        work = model_work(model, tensor_parallel)
        self._work = work
        self.flops_per_ns, self.bytes_per_ns = gpu.peak_tflops * 1e3, gpu.hbm_gbps
        head = work.head
        self._head_flops = 2.0 * head.inputs * head.outputs
        self._head_bytes = head.inputs * head.outputs * work.head_bytes_each
        self._chunk_flops = work.attention_flops * work.num_layers
        self.decode_flops_per_key = self._chunk_flops  # a decode is one query over its keys
        self._query_bytes = work.query_bytes_per_token * work.num_layers

    def work(self, shape: BatchShape) -> StageWork:
        """The work of one repetition of ``shape``, all layers."""
        pairs = keys = queries = 0.0
        for count, before in shape.chunks:
            pairs += prefill_pairs(count, before)
            keys += count + before
            queries += count
        tokens = queries + shape.num_decodes
        dense = self._work.dense_work(tokens)
        rows = shape.num_decodes + len(shape.chunks)
        dense.append((self._head_flops * rows, self._head_bytes))
        per_key = self._work.kv_bytes_per_token
        return StageWork(
            dense=tuple(dense),
            chunk_flops=pairs * self._chunk_flops,
            chunk_bytes=keys * per_key + queries * self._query_bytes,
            decode_bytes=(shape.decode_context + shape.num_decodes) * per_key,
            flops_per_ns=self.flops_per_ns,
            bytes_per_ns=self.bytes_per_ns,
        )
