"""FLOPs and bytes of a batch by operator class, in the form that fitted beliefs use."""

from __future__ import annotations

from typing import Any

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.core.work import model_work


class StageWork(msgspec.Struct, frozen=True, gc=False):
    """What a batch computes and moves, per GPU. Values are floats, or arrays over batches in a fit.

    ``dense`` holds (FLOPs, bytes) of each dense layer over all decoder layers, the head last;
    ``chunk_*`` is the chunks' attention, ``decode_*`` the decodes', which in these beliefs takes
    the time of its bytes.
    """

    dense: tuple[tuple[Any, Any], ...]
    chunk_flops: Any
    chunk_bytes: Any
    decode_flops: Any
    decode_bytes: Any
    flops_per_ns: float
    bytes_per_ns: float


class Stages:
    """Counts work for one model on one GPU as published (Nexus sections 2.2, 2.3, footnote 3)."""

    def __init__(self, gpu: GpuSpec, model: ModelSpec, tensor_parallel: int = 1) -> None:
        self._work = work = model_work(model, tensor_parallel)
        self.flops_per_ns, self.bytes_per_ns = gpu.peak_tflops * 1e3, gpu.hbm_gbps
        head = work.head
        self._head_flops = 2.0 * head.inputs * head.outputs
        self._head_bytes = head.inputs * head.outputs * work.head_bytes_each

    def work(self, shape: BatchShape) -> StageWork:
        """The work of one repetition of ``shape``, all layers."""
        decodes, rows = shape.num_decodes, shape.num_decodes + len(shape.chunks)
        dense = self._work.dense_work(float(shape.num_tokens))
        dense.append((self._head_flops * rows, self._head_bytes))
        chunk_flops, chunk_bytes = self._work.chunk_attention(shape.chunks)
        attention = self._work.decode_attention(decodes, shape.decode_context + decodes)
        return StageWork(
            dense=tuple(dense),
            chunk_flops=chunk_flops,
            chunk_bytes=chunk_bytes,
            decode_flops=attention[0],
            decode_bytes=attention[1],
            flops_per_ns=self.flops_per_ns,
            bytes_per_ns=self.bytes_per_ns,
        )
