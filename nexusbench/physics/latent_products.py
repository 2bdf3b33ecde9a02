"""The products of latent attention whose size does not follow from the number of tokens alone: a
prompt's latents are expanded to keys and values, those before a chunk anew; a decode's queries and
outputs are projected instead, head by head (DeepSeek-V2, arXiv 2405.04434, section 2.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from nexusbench.core.mixers import LatentAttention
from nexusbench.core.specs import GpuSpec, Linear
from nexusbench.physics.gemm import Gemm
from nexusbench.physics.operators import NOTHING, OperatorClass, overlapped, scaled_sum
from nexusbench.physics.products import Products

EXPANSION = "kv_b"  # the projection that is computed in either way
# The two projections of a layer's input down to ranks: engines compute them as one product (vLLM's
# and SGLang's fused_qkv_a_proj, TensorRT-LLM's kv_a_proj_with_mqa).
DOWN = ("q_a", "kv_a")
_FINE, _COARSE = 16, 128  # rows that a product is padded to: few, and more than _MANY
_MANY = 2048
_ABSORBED_BYTES = 2.0  # engines keep what they absorb in 16 bits (vLLM, get_and_maybe_dequant)

_Chunks = tuple[tuple[int, int], ...]
Split = Callable[[_Chunks], tuple[_Chunks, _Chunks]]


class LatentProducts:
    """Times of the expansion ``up`` and of its absorbed form in ``layers`` layers. ``products`` are
    those of its data type; ``split`` says which chunks run absorbed, and which expanded.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        mixer: LatentAttention,
        up: Linear,
        products: Products,
        split: Split,
        activation_bytes: float,
        layers: int,
    ) -> None:
        self._mixer, self._up, self._products, self._split = mixer, up, products, split
        self._gemm, self._layers, self._activation = Gemm(gpu), layers, activation_bytes
        self._launch = gpu.sim.kernel_us * 1e3
        self._known: dict[tuple[int, int, int, int], OperatorClass] = {}
        self._of_decodes: dict[tuple[int, int], OperatorClass] = {}

    def time(
        self, chunks: _Chunks, num_decodes: int, sms: int, weights: float, streams: float
    ) -> OperatorClass:
        """All layers, on ``sms`` SMs that draw ``weights`` bytes per ns in a product and
        ``streams`` in an element-wise kernel; in ns.
        """
        if not chunks:
            known = self._of_decodes.get((num_decodes, sms))
            if known is None:
                known = self._made(padded(num_decodes), 0, 0, sms, weights, streams)
                self._of_decodes[num_decodes, sms] = known
            return known
        absorbed, expanded, earlier = num_decodes, 0, 0
        short, long = self._split(chunks)
        for count, _ in short:
            absorbed += count
        for count, before in long:
            expanded, earlier = expanded + count, earlier + before
        key = (padded(absorbed), padded(expanded), padded(earlier), sms)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._made(*key, weights, streams)
        return known

    def _made(
        self, absorbed: int, expanded: int, earlier: int, sms: int, weights: float, streams: float
    ) -> OperatorClass:
        mixer, up, made = self._mixer, self._up, NOTHING
        for rows in (expanded, earlier):
            if rows:
                one = self._products.time(
                    up.name, rows, up.inputs, up.outputs, sms, weights, streams
                )
                made = scaled_sum(one, 1.0, made)
        if earlier:
            made = scaled_sum(self._gathered(earlier, streams), 1.0, made)
        shapes = ((mixer.nope_dim, mixer.kv_rank), (mixer.kv_rank, mixer.value_dim))
        for inputs, outputs in shapes if absorbed else ():
            one = self._gemm.time(
                absorbed, inputs, outputs, _ABSORBED_BYTES, self._activation, sms, weights,
                groups=mixer.num_heads,
            )  # fmt: skip
            made = scaled_sum(one, 1.0, made)
        return scaled_sum(made, self._layers, NOTHING)

    def _gathered(self, rows: int, streams: float) -> OperatorClass:
        """Latents taken out of the cache's blocks, and the rotated key put beside each head's own:
        read and written.
        """
        mixer = self._mixer
        values = 2 * (mixer.kv_rank + mixer.rope_dim)
        values += mixer.num_heads * (2 * mixer.nope_dim + mixer.rope_dim)
        size = rows * values * self._activation
        return overlapped(2 * self._launch, 0.0, size / streams, 0.0, size, 1.0)


def padded(rows: int) -> int:
    """Rows that a product is timed with: times are kept, and contexts are many."""
    granule = _FINE if rows <= _MANY else _COARSE
    return (rows + granule - 1) // granule * granule


def fused(linears: Iterable[Linear]) -> list[Linear]:
    """``linears`` with the two projections down to ranks as one, where they are of one type."""
    made: list[Linear] = []
    for linear in linears:
        last = made[-1] if made else None
        if (
            last is not None and (last.name, linear.name) == ("q_b", DOWN[1])
            and made[-2].name == DOWN[0] and made[-2].dtype == linear.dtype
        ):  # fmt: skip
            wide = made[-2].outputs + linear.outputs
            made[-2] = msgspec.structs.replace(made[-2], name="qkv_a", outputs=wide)
        else:
            made.append(linear)
    return made
