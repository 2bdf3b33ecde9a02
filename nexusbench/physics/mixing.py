"""What mixes tokens in layers of one kind: its kernel, and products that depend on more of a batch
than how many tokens it has. A kind is a function here and a line of the table at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.mixer_work import MixerWork, pieces
from nexusbench.core.mixers import (
    CompressedAttention,
    FullAttention,
    LatentAttention,
    SparseAttention,
    StateMixer,
    WindowAttention,
)
from nexusbench.core.specs import GpuSpec
from nexusbench.core.work import ModelWork
from nexusbench.physics.attention import Attention
from nexusbench.physics.compressed import EntryAttention
from nexusbench.physics.latent import LatentKernels
from nexusbench.physics.latent_products import EXPANSION, LatentProducts, Split
from nexusbench.physics.operators import OperatorClass, later, scaled
from nexusbench.physics.precisions import small_kv_constants
from nexusbench.physics.products import Products
from nexusbench.physics.small_kv import SmallKvAttention
from nexusbench.physics.sparse import PickedAttention
from nexusbench.physics.states import StateScan
from nexusbench.physics.unequal import UnequalDecodes
from nexusbench.physics.windows import WindowedAttention

_Chunks = tuple[tuple[int, int], ...]


class MixerKernel(Protocol):
    """The kernels of a kind: as ``Attention.time``, all layers of it, in ns."""

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
        """``decode_context`` is the sum over decodes of the keys before and at each."""
        ...


class Mixing(msgspec.Struct, frozen=True):
    """``layers`` layers that mix tokens in the same way, with ``work`` in each."""

    kernel: MixerKernel
    work: MixerWork
    layers: int
    products: LatentProducts | None = None
    unequal: UnequalDecodes | None = None

    def time(
        self, shape: BatchShape, sms: int, bandwidth: float, measured: float | None = None
    ) -> OperatorClass:
        """All of its layers for a launch on ``sms`` SMs that draw ``bandwidth`` bytes per ns.

        ``measured``: what a kernel table gives for a batch like it, over the kernel's own time. A
        table's batches have decodes of equal lengths, and so has this one then (decisions/0017).
        """
        decodes = shape.num_decodes
        keys = shape.decode_context + decodes
        made = self.kernel.time(shape.chunks, decodes, keys, sms, bandwidth)
        if measured is not None:
            return scaled(made, measured)
        if self.unequal is None or decodes < 2:
            return made
        return later(made, self.unequal.ns(shape, bandwidth))


class PiecedAttention(Attention):
    """Attention in pieces of ``window`` tokens: each piece of a chunk is a sequence of its own in
    the kernel's batch (vLLM's virtual batches, for Llama 4), and a decode has its piece's keys.
    """

    def __init__(self, window: int, *shape: Any, writes: bool = True) -> None:
        super().__init__(*shape, writes=writes)
        self._window = window

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
        """As ``Attention.time``. Contexts longer than a piece are taken to end anywhere in one."""
        if decode_context > num_decodes * self._window:
            decode_context = num_decodes * (self._window + 1) // 2
        cut = pieces(chunks, self._window)
        return super().time(cut, num_decodes, decode_context, sms, bandwidth, copies=copies)


class KindOfLayers(msgspec.Struct, frozen=True):
    """What a kind is made from: ``work`` of its mixer, and ``group`` of its first layer group."""

    gpu: GpuSpec
    work: MixerWork
    group: ModelWork
    layers: int
    products: Mapping[str, Products]

    @property
    def types(self) -> tuple[float, float]:
        """Bytes of a cached value and of an activation."""
        return self.group.kv_bytes_each, self.group.activation_bytes


def mixings_of(
    gpu: GpuSpec, work: ModelWork, products: Mapping[str, Products]
) -> tuple[Mixing, ...]:
    """The kinds of a model's layers, first layers first; layers of equal kind are together.
    ``products`` are those of each data type of weights.
    """
    made = []
    for each, layers in work.mixing:
        group = next(g for g in work.groups or (work,) if g.mixing and g.mixing[0][0] == each)
        kind = KindOfLayers(gpu, each, group, layers, products)
        made.append(KINDS[type(group.mixer)](kind, group.mixer))
    return tuple(made)


def _full(of: KindOfLayers, mixer: FullAttention) -> Mixing:
    writes = not mixer.shares_kv

    def made(gpu: GpuSpec) -> Attention:
        return Attention(gpu, *_heads(mixer), *of.types, of.layers, writes=writes)

    kernel = _over_cache(of, mixer, made)
    return Mixing(kernel, of.work, of.layers, unequal=_unequal(of, mixer, kernel))


def _window(of: KindOfLayers, mixer: WindowAttention) -> Mixing:
    heads, writes = _heads(mixer), not mixer.shares_kv

    def made(gpu: GpuSpec) -> Attention:
        if mixer.chunked:
            return PiecedAttention(mixer.window, gpu, *heads, *of.types, of.layers, writes=writes)
        return WindowedAttention(gpu, *heads, mixer.window, *of.types, of.layers, writes=writes)

    kernel = _over_cache(of, mixer, made)
    unequal = None if mixer.chunked else _unequal(of, mixer, kernel, mixer.window)
    return Mixing(kernel, of.work, of.layers, unequal=unequal)


def _unequal(
    of: KindOfLayers, mixer: FullAttention, kernel: MixerKernel, window: int = 0
) -> UnequalDecodes | None:
    """What unequal lengths cost ``kernel``; None where nothing, or nothing is known of it: another
    kernel reads a cache of 8-bit values.
    """
    if not isinstance(kernel, Attention) or kernel.balances:
        return None
    heads, _, size = _heads(mixer)
    return UnequalDecodes(kernel, heads, size, of.types[0], of.layers, window)


def _over_cache(
    of: KindOfLayers, mixer: FullAttention, made: Callable[[GpuSpec], Attention]
) -> MixerKernel:
    """What ``made`` gives for a GPU, over a cache of 16-bit values or of smaller ones."""
    kept, computed = of.types
    if kept == computed:
        return made(of.gpu)
    heads, _, size = _heads(mixer)
    return SmallKvAttention(of.gpu, small_kv_constants(of.gpu), made, heads, size, of.layers)


def _latent(of: KindOfLayers, mixer: LatentAttention) -> Mixing:
    kernels = LatentKernels(of.gpu, mixer, *of.types, of.layers)
    return Mixing(kernels, of.work, of.layers, _expansion(of, mixer, kernels.split))


def _picked(of: KindOfLayers, mixer: SparseAttention) -> Mixing:
    kernel = PickedAttention(of.gpu, mixer, *of.types, of.layers)
    products = None
    if isinstance(mixer.base, LatentAttention):
        products = _expansion(of, mixer.base, lambda chunks: (chunks, ()))  # always absorbed
    return Mixing(kernel, of.work, of.layers, products)


def _entries(of: KindOfLayers, mixer: CompressedAttention) -> Mixing:
    return Mixing(EntryAttention(of.gpu, mixer, *of.types, of.layers), of.work, of.layers)


def _state(of: KindOfLayers, mixer: StateMixer) -> Mixing:
    return Mixing(StateScan(of.gpu, mixer, of.types[1], of.layers), of.work, of.layers)


def _expansion(of: KindOfLayers, mixer: LatentAttention, split: Split) -> LatentProducts:
    up = next(linear for linear in of.group.linears if linear.name == EXPANSION)
    products = of.products[up.dtype]
    return LatentProducts(of.gpu, mixer, up, products, split, of.types[1], of.layers)


def _heads(mixer: FullAttention) -> tuple[int, int, int]:
    """Heads, KV heads and their size. Where values are of another size than keys, the mean: as many
    FLOPs and bytes.
    """
    return mixer.num_heads, mixer.num_kv_heads, (mixer.head_dim + mixer.value_size) // 2


# What a kind is made from, and one GPU's part of its mixer -> what computes it.
KINDS: dict[type, Callable[[KindOfLayers, Any], Mixing]] = {
    FullAttention: _full,
    WindowAttention: _window,
    LatentAttention: _latent,
    SparseAttention: _picked,
    CompressedAttention: _entries,
    StateMixer: _state,
}
