"""Whole decoder layers: all of them in one native call for a decode batch, else piece by piece."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag

import torch

from nexusbench.kernels import fused
from nexusbench.kernels.linear import LinearLayer
from nexusbench.kernels.native import bindings
from nexusbench.kernels.native.bindings import GROUP, check

_P, _I, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class LayerStage(IntFlag):
    """Parts of a layer, so that attention of another kind can be put between them."""

    PROJECT = 1  # norm, q/k/v, rope, KV write
    ATTEND = 2  # paged decode attention, one query per sequence
    FINISH = 4  # output projection, residual, MLP
    ALL = 7


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """One layer: ``qkv`` is the joint projection, ``gate_up`` gated; norms in fp32."""

    input_norm: torch.Tensor
    qkv: LinearLayer
    output: LinearLayer
    mlp_norm: torch.Tensor
    gate_up: LinearLayer
    down: LinearLayer
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Which tokens a call computes; shapes and dtypes as in ``nexusbench.kernels.fused``.

    ``tables`` and ``lengths`` are needed by ATTEND alone, which has one row per token.
    """

    positions: torch.Tensor
    slots: torch.Tensor
    tables: torch.Tensor | None = None
    lengths: torch.Tensor | None = None


class _Layer(ctypes.Structure):
    _fields_ = [
        (name, _P)
        for name in (
            "input_norm", "qkv", "qkv_bias", "q_norm", "k_norm", "output", "output_bias",
            "mlp_norm", "gate_up", "gate_up_bias", "down", "down_bias", "k_cache", "v_cache",
        )
    ]  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = [
        ("heads", bindings.Heads),
        *((name, _I) for name in ("size", "hidden", "inner", "stages", "M")),
        *((name, _D) for name in ("eps", "scale")),
        *((name, _P) for name in ("x", "positions", "slots", "cos_sin")),
        ("num_positions", _I),
        ("tables", _P),
        ("max_blocks", _I),
        *((name, _P) for name in ("lengths", "qkv", "attended", "normed", "activated")),
    ]


@dataclass(frozen=True, slots=True)
class Workspace:
    """Activations between the stages of a call, for up to ``qkv.shape[0]`` tokens.

    ``qkv`` holds rotated q, k and v after PROJECT; FINISH reads ``attended``. One per thread that
    computes at the same time.
    """

    qkv: torch.Tensor
    attended: torch.Tensor
    normed: torch.Tensor
    activated: torch.Tensor


class DecoderLayers:
    """The layers of a decoder on one paged KV cache; weights and caches are kept alive here.

    ``caches`` are each layer's keys and values. cos_sin and ``neighbours``: see
    ``fused.rope_and_cache``; the table may be replaced by a longer one. The residual stream is
    fp32, all else of the weights' dtype. ``path`` is ``native`` where a call is one native call,
    else ``composed`` of Linear and the fused operations.
    """

    def __init__(
        self,
        layers: Sequence[PackedLayer],
        caches: Sequence[tuple[torch.Tensor, torch.Tensor]],
        cos_sin: torch.Tensor,
        eps: float,
        scale: float,
        *,
        neighbours: bool = False,
    ) -> None:
        if not layers:
            raise ValueError("a decoder has at least one layer")
        self.layers, self.caches = tuple(layers), tuple(caches)
        self.cos_sin, self.eps, self.scale = cos_sin, eps, scale
        first = layers[0]
        self.dtype, self.hidden = first.qkv.dtype, first.qkv.in_features
        self.inner, self.attended = first.down.in_features, first.output.in_features
        self.neighbours = neighbours
        self._heads = bindings.heads_of(0, *caches[0], neighbours=neighbours)
        self.kv_heads, self.head_dim = int(self._heads.kv), int(self._heads.dim)
        self._heads.query = self.heads = self.attended // self.head_dim
        for layer, cache in zip(layers, caches, strict=True):
            self._check(layer, cache)
        check("cos_sin", cos_sin, (int(cos_sin.shape[0]), self.head_dim), torch.float32)
        self._functions = bindings.functions() if self._native() else None
        self.path = "composed" if self._functions is None else "native"
        self._addresses = (_Layer * len(layers))(*map(_addresses, layers, caches))

    def workspace(self, tokens: int) -> Workspace:
        """Room for the activations of ``tokens`` tokens."""
        widths = (self.qkv_width, self.attended, self.hidden, self.inner)
        return Workspace(*(torch.empty(tokens, width, dtype=self.dtype) for width in widths))

    @property
    def qkv_width(self) -> int:
        """Columns of the joint projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def run(
        self,
        x: torch.Tensor,
        batch: TokenBatch,
        work: Workspace,
        *,
        first: int = 0,
        count: int | None = None,
        stages: LayerStage = LayerStage.ALL,
        threads: int | None = None,
    ) -> None:
        """Layers ``first`` .. ``first + count`` (default: all) on fp32 x [M, hidden], in place.

        With some ``stages`` only, ``work.qkv`` and ``work.attended`` carry what lies between them
        (their first M rows). Raises ValueError for shapes, dtypes or layers that do not fit, and
        IndexError for positions, slots and blocks that do not exist.
        """
        M = int(x.shape[0])
        count = len(self.layers) - first if count is None else count
        if first < 0 or count < 0 or first + count > len(self.layers):
            raise ValueError(f"layers {first}..{first + count} of {len(self.layers)}")
        self._check_batch(x, batch, work, stages)
        if M == 0 or count == 0:
            return
        threads = torch.get_num_threads() if threads is None else threads
        if self._functions is None:
            for index in range(first, first + count):
                self._compose(index, x, batch, work, stages, threads)
            return
        tables, turns = batch.tables, self.cos_sin  # held: another thread may replace the table
        step = _Step(
            self._heads,
            bindings.element_size(self.dtype), self.hidden, self.inner, int(stages), M,
            self.eps, self.scale,
            x.data_ptr(), batch.positions.data_ptr(), batch.slots.data_ptr(),
            turns.data_ptr(), int(turns.shape[0]), bindings.address(tables),
            0 if tables is None else int(tables.shape[1]), bindings.address(batch.lengths),
            work.qkv.data_ptr(), work.attended.data_ptr(), work.normed.data_ptr(),
            work.activated.data_ptr(),
        )  # fmt: skip
        at = ctypes.addressof(self._addresses) + first * ctypes.sizeof(_Layer)
        bindings.require_fit(self._functions.layers(at, count, ctypes.addressof(step), threads))

    def _compose(
        self,
        index: int,
        x: torch.Tensor,
        batch: TokenBatch,
        work: Workspace,
        stages: LayerStage,
        threads: int,
    ) -> None:
        """One layer from its pieces: the same sums in the same order."""
        M, layer, (k_cache, v_cache) = int(x.shape[0]), self.layers[index], self.caches[index]
        qkv, attended = work.qkv[:M], work.attended[:M]
        if stages & LayerStage.PROJECT:
            normed = fused.rms_norm(x, layer.input_norm, self.eps, self.dtype, threads=threads)
            layer.qkv(normed, out=qkv, threads=threads)
            fused.rope_and_cache(
                qkv, batch.positions, batch.slots, self.cos_sin, k_cache, v_cache,
                layer.q_norm, layer.k_norm, self.eps, neighbours=self.neighbours, threads=threads,
            )  # fmt: skip
        if stages & LayerStage.ATTEND:
            assert batch.tables is not None
            assert batch.lengths is not None
            query = qkv[:, : self.attended]
            attended.copy_(
                fused.decode_attention(
                    query, k_cache, v_cache, batch.tables, batch.lengths, self.scale,
                    threads=threads,
                )
            )  # fmt: skip
        if stages & LayerStage.FINISH:
            layer.output(attended, residual=x, out=x, out_dtype=torch.float32, threads=threads)
            normed = fused.rms_norm(x, layer.mlp_norm, self.eps, self.dtype, threads=threads)
            activated = layer.gate_up(normed, threads=threads)
            layer.down(activated, residual=x, out=x, out_dtype=torch.float32, threads=threads)

    def _native(self) -> bool:
        """Whether all layers fit one native call: packed weights, whole steps of 32 inputs."""
        linears = [
            linear
            for layer in self.layers
            for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)
        ]
        whole = self.dtype == torch.float32 or all(not lin.in_features % GROUP for lin in linears)
        return whole and all(linear.path == "native" for linear in linears)

    def _check(self, layer: PackedLayer, cache: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Raises ValueError for a layer unlike the first."""
        wanted = (
            (layer.qkv, self.hidden, self.qkv_width, False),
            (layer.output, self.attended, self.hidden, False),
            (layer.gate_up, self.hidden, self.inner, True),
            (layer.down, self.inner, self.hidden, False),
        )
        for linear, inputs, outputs, gated in wanted:
            have = (linear.in_features, linear.out_features, linear.gated, linear.dtype)
            if have != (inputs, outputs, gated, self.dtype):
                raise ValueError(f"a layer's product is {have}; wanted {inputs} -> {outputs}")
        for name in ("input_norm", "mlp_norm"):
            check(name, getattr(layer, name), (self.hidden,), torch.float32)
        heads = bindings.heads_of(self.heads, *cache, neighbours=self.neighbours)
        if bytes(heads) != bytes(self._heads) or cache[0].dtype != self.dtype:
            raise ValueError("all layers' caches must have one layout and the weights' dtype")
        for name, norm in (("q_norm", layer.q_norm), ("k_norm", layer.k_norm)):
            if norm is not None:
                check(name, norm, (self.head_dim,), torch.float32)

    def _check_batch(
        self, x: torch.Tensor, batch: TokenBatch, work: Workspace, stages: LayerStage
    ) -> None:
        """Raises ValueError unless the batch and the workspace have x's tokens."""
        M = int(x.shape[0])
        check("x", x, (M, self.hidden), torch.float32)
        check("positions", batch.positions, (M,), torch.int64)
        check("slots", batch.slots, (M,), torch.int64)
        if work.qkv.shape[0] < M:
            raise ValueError(f"the workspace has room for {work.qkv.shape[0]} tokens, not {M}")
        if stages & LayerStage.ATTEND:
            if batch.tables is None or batch.lengths is None:
                raise ValueError("attention needs tables and lengths")
            check("tables", batch.tables, (M, int(batch.tables.shape[1])), torch.int32)
            check("lengths", batch.lengths, (M,), torch.int32)


def _addresses(layer: PackedLayer, cache: tuple[torch.Tensor, torch.Tensor]) -> _Layer:
    """A layer as the C++ side reads it."""
    address = bindings.address
    return _Layer(
        address(layer.input_norm), address(layer.qkv.packed), address(layer.qkv.bias),
        address(layer.q_norm), address(layer.k_norm), address(layer.output.packed),
        address(layer.output.bias), address(layer.mlp_norm), address(layer.gate_up.packed),
        address(layer.gate_up.bias), address(layer.down.packed), address(layer.down.bias),
        address(cache[0]), address(cache[1]),
    )  # fmt: skip
