"""Layers with a recurrent state: gated delta nets (arXiv 2412.06464), KDA (2510.26692), Mamba2
(2405.21060), lightning attention (2401.04658).

A prompt is cut into chunks of 64 tokens. Inside of one, tokens see each other as in attention;
between chunks the state is carried on. Kernels of the delta rule walk the chunks of one head of one
sequence in turn, a thread block each, so that a lone prompt keeps no more SMs busy than it has
heads; what a chunk needs of itself alone is computed for all chunks at once. Without the delta rule
all of a chunk is (2405.21060, section 6). A decode reads and writes the states of its sequences,
whatever their length.

The short convolution before it is a kernel of its own that moves its channels. Projections, norms
and gates are not in here. Measured are kernels of the delta rule; Mamba2 and lightning attention
take their constants, by analogy. How far all this is from measurements: docs/fidelity.md.
"""

from __future__ import annotations

from nexusbench.core.mixers import STATE_BYTES, StateMixer
from nexusbench.core.specs import GpuSpec
from nexusbench.physics.attention import spread
from nexusbench.physics.gemm import Residence
from nexusbench.physics.operators import NOTHING, OperatorClass, overlapped, scaled_sum
from nexusbench.physics.precisions import state_constants

CHUNK = 64  # tokens
DELTA, CHANNEL_DELTA = "gated delta net", "Kimi delta attention"  # kinds of StateMixer
# Of the kernels of a short convolution: 4 tokens wide in all models that have one, of which a
# sequence keeps 3.
KEPT_TOKENS = 3

_Chunks = tuple[tuple[int, int], ...]


class StateScan:
    """Times of ``layers`` layers of ``mixer``, one GPU's part of it. ``activation_bytes`` are those
    of one value.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        mixer: StateMixer,
        activation_bytes: float = 2.0,
        layers: int = 1,
    ) -> None:
        own = state_constants(gpu, "channel-delta" if mixer.kind == CHANNEL_DELTA else "delta")
        heads, keys, values = mixer.heads, mixer.key_dim, mixer.value_dim
        self._own, self._heads, self._layers = own, heads, layers
        rate = gpu.peak_tflops * 1e3 / gpu.num_sms * own.efficiency
        self._walks = mixer.kind in (DELTA, CHANNEL_DELTA)
        # Of a chunk of one head: outputs from the state and inside of the chunk, the state's own
        # update; with the delta rule also what the state takes away from the values.
        products = 3 if self._walks else 2
        flops = 2.0 * CHUNK * (products * keys * values + CHUNK * values)
        if not self._walks:
            flops += 2.0 * CHUNK * CHUNK * keys
        self._chunk = flops / rate
        self._tile, self._tail = own.tile_us * 1e3, gpu.sim.attention_tail
        self._state_bytes = heads * keys * values * STATE_BYTES[mixer.state_dtype]
        channels = mixer.conv_values / KEPT_TOKENS
        self._conv_kept = mixer.conv_values * STATE_BYTES[mixer.conv_dtype]
        self._conv_bytes = 2.0 * channels * activation_bytes
        self._token_bytes = 2.0 * heads * (keys + values) * activation_bytes
        self._l2 = Residence(gpu, own.l2_gbps, own.l2_share)

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
        """As ``Attention.time``: all layers on ``sms`` SMs, in ns. ``decode_context`` has no
        effect.
        """
        made = NOTHING
        if chunks:
            made = scaled_sum(self.scan(chunks, sms, bandwidth), 1.0, made)
            if self._conv_bytes:
                tokens = 0
                for count, _ in chunks:
                    tokens += count
                conv = self.convolution(tokens, len(chunks), sms, bandwidth)
                made = scaled_sum(conv, 1.0, made)
        if num_decodes:
            made = scaled_sum(self.step(num_decodes, sms, bandwidth, copies), 1.0, made)
            if self._conv_bytes:
                conv = self.step_convolution(num_decodes, sms, bandwidth, copies)
                made = scaled_sum(conv, 1.0, made)
        return scaled_sum(made, self._layers, NOTHING)

    def scan(self, chunks: _Chunks, sms: int, bandwidth: float) -> OperatorClass:
        """Prompts of one layer without their convolution; arguments as of ``time``. Nothing where
        the layer is a convolution alone, without heads.
        """
        if not self._heads:
            return NOTHING
        tokens, parts, longest = 0, 0, 0
        for count, _ in chunks:
            each = -(-count // CHUNK)
            tokens, parts, longest = tokens + count, parts + each, max(longest, each)
        heads, own = self._heads, self._own
        tiles, work = len(chunks) * heads, parts * heads * self._chunk
        if self._walks:
            single = self._tile + longest * self._chunk
            busy = spread(tiles, tiles * self._tile + work, single, sms, self._tail)
            busy += work * own.prepared / sms
        else:
            tiles = parts * heads
            single = self._tile + self._chunk
            busy = spread(tiles, tiles * self._tile + work, single, sms, self._tail)
        states = len(chunks) * self._state_bytes
        size = tokens * self._token_bytes * own.passes + 2.0 * states
        # What the kernel before wrote, and kernels of the scan leave to each other: about as much.
        held = tokens * self._token_bytes + states
        moving = size * self._l2.per_byte(held, sms, 1.0 / bandwidth)
        return overlapped(own.launch_us * 1e3, busy, moving, own.overlap, size, tiles / sms)

    def convolution(self, tokens: int, sequences: int, sms: int, bandwidth: float) -> OperatorClass:
        """The short convolution of prompts of one layer."""
        own = self._own
        size = tokens * self._conv_bytes * own.conv_passes + sequences * self._conv_kept
        return self._moved(own.conv_us, size, size, sms, bandwidth, 1)

    def step(self, decodes: int, sms: int, bandwidth: float, copies: int) -> OperatorClass:
        """States of ``decodes`` sequences read and written, one layer; nothing without heads."""
        if not self._heads:
            return NOTHING
        state, own = decodes * self._state_bytes, self._own
        size = (2.0 * state + decodes * self._token_bytes) * own.step_passes
        return self._moved(own.step_us, size, size - state, sms, bandwidth, copies)

    def step_convolution(
        self, decodes: int, sms: int, bandwidth: float, copies: int
    ) -> OperatorClass:
        """What convolutions keep of them, read and written."""
        kept, own = decodes * self._conv_kept, self._own
        size = (2.0 * kept + decodes * self._conv_bytes) * own.step_conv_passes
        return self._moved(own.step_conv_us, size, size - kept, sms, bandwidth, copies)

    def _moved(
        self,
        launch_us: float,
        size: float,
        held: float,
        sms: int,
        bandwidth: float,
        copies: int,
    ) -> OperatorClass:
        """A kernel that moves ``size`` bytes; ``held`` are different ones, which L2 may hold."""
        moving = size * self._per_byte(held, sms, bandwidth, copies)
        return overlapped(launch_us * 1e3, 0.0, moving, 0.0, size, 1.0)

    def _per_byte(self, held: float, sms: int, bandwidth: float, copies: int) -> float:
        cold = 1.0 / bandwidth
        return self._l2.per_byte(copies * held, sms, cold) if copies else cold
