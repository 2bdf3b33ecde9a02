"""The layers of an ordinary decoder by native kernels on a CPU; those of all others are in
torch_layers.py.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterable
from typing import Protocol

import torch

from nexusbench.kernels import layers as native
from nexusbench.kernels.linear import LinearLayer
from nexusbench.kernels.native import bindings
from nexusbench.kernels.paged import HeadShape, PagedKV
from nexusbench.kernels.rotary import Rotary
from nexusbench.models.architecture import DecoderConfig
from nexusbench.models.step import Step
from nexusbench.models.weights import LayerWeights


class Layers(Protocol):
    """All layers of a decoder."""

    def run(
        self, hidden: torch.Tensor, step: Step, kv: PagedKV, first: int, stop: int
    ) -> torch.Tensor:
        """Layers ``first`` .. ``stop`` on fp32 ``hidden`` [T, hidden_size], which is overwritten.

        After the last layer, only the rows whose logits are wanted.
        """
        ...


def native_layers_fit(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this machine has native kernels for a decoder of this kind."""
    if not config.ordinary:
        return False
    spec = config.spec
    inputs = (spec.hidden_size, spec.num_heads * spec.head_dim, spec.intermediate_size)
    whole = dtype == torch.float32 or all(size % bindings.GROUP == 0 for size in inputs)
    computes = dtype in (torch.bfloat16, torch.float32) and device.type == "cpu"
    return whole and computes and bindings.functions() is not None


class NativeLayers:
    """Decodes run through all layers in one native call. A batch with chunks takes two calls and
    the backend's attention per layer, on the same weights.

    There is one packed copy of the weights, for every KV cache and every thread.
    """

    def __init__(
        self, weights: Iterable[LayerWeights], heads: HeadShape, rotary: Rotary, eps: float
    ) -> None:
        self.layers = [_packed(each, heads) for each in weights]
        self._rotary, self._eps, self._scale = rotary, eps, 1 / math.sqrt(heads.head_dim)
        self._bound: weakref.WeakKeyDictionary[PagedKV, native.DecoderLayers]
        self._bound = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._local = threading.local()  # each worker's activations

    def run(
        self, hidden: torch.Tensor, step: Step, kv: PagedKV, first: int, stop: int
    ) -> torch.Tensor:
        """As :meth:`Layers.run`."""
        layers = self._on(kv, step.longest)
        work = self._work(layers, len(hidden))
        rows = step.logit_rows if stop == len(self.layers) else None
        paged = step.paged
        if paged is not None:
            tokens = native.TokenBatch(step.positions, step.slots, paged.tables, paged.lengths)
            layers.run(hidden, tokens, work, first=first, count=stop - first)
            return hidden if rows is None else hidden.index_select(0, rows)
        tokens = native.TokenBatch(step.positions, step.slots)
        qkv = work.qkv[: len(hidden)]
        for index in range(first, stop):
            layers.run(hidden, tokens, work, first=index, count=1, stages=native.LayerStage.PROJECT)
            attended = step.attention.run(qkv, kv.layers[index])
            if rows is not None and index == stop - 1:
                # The outputs of the last layer for other tokens are not read: skip computing them.
                hidden, attended = hidden.index_select(0, rows), attended.index_select(0, rows)
                tokens = native.TokenBatch(step.positions[: len(rows)], step.slots[: len(rows)])
            after = native.Workspace(work.qkv, attended.contiguous(), work.normed, work.activated)
            layers.run(hidden, tokens, after, first=index, count=1, stages=native.LayerStage.FINISH)
        return hidden

    def _on(self, kv: PagedKV, longest: int) -> native.DecoderLayers:
        """The layers on this cache, with rotations up to position ``longest``."""
        layers = self._bound.get(kv)
        if layers is not None and longest < len(layers.cos_sin):
            return layers
        with self._lock:
            table = self._turns(longest)
            layers = self._bound.get(kv)
            if layers is None:
                caches = [(layer.keys, layer.values) for layer in kv.layers]
                self._bound[kv] = layers = native.DecoderLayers(
                    self.layers, caches, table, self._eps, self._scale, neighbours=True
                )
            elif len(table) > len(layers.cos_sin):
                layers.cos_sin = table
        return layers

    def _turns(self, longest: int) -> torch.Tensor:
        """Cosines and sines in turn, [positions, head_dim]."""
        return torch.view_as_real(self._rotary.table(longest)).flatten(1)

    def _work(self, layers: native.DecoderLayers, tokens: int) -> native.Workspace:
        work: native.Workspace | None = getattr(self._local, "work", None)
        if work is None or len(work.qkv) < tokens:
            # Fresh memory costs a page fault per 4 KiB; a worker's steps are much alike.
            self._local.work = work = layers.workspace(tokens)
        return work


def _packed(weights: LayerWeights, heads: HeadShape) -> native.PackedLayer:
    norms = weights.qk_norm
    return native.PackedLayer(
        input_norm=weights.input_norm,
        qkv=LinearLayer(weights.qkv, weights.qkv_bias),
        output=LinearLayer(weights.output, weights.output_bias),
        mlp_norm=weights.mlp_norm,
        gate_up=LinearLayer(weights.gate_up, weights.gate_up_bias, gated=True),
        down=LinearLayer(weights.down, weights.down_bias),
        q_norm=None if norms is None else norms[0].contiguous(),
        k_norm=None if norms is None else norms[heads.num_heads].contiguous(),
    )
