"""The experts of a layer on the simulated GPU: two grouped products and the kernels around them.

Tokens are sorted by expert, and each expert's are a group of rows of their own: a tile has rows
of one expert, so that every expert that has any costs at least one, and its weights are read once.
One kernel computes gate and up for all experts, one the activation, one down, one sums the outputs
of each token, weighted. What was measured (docs/fidelity.md) is explained by the number of experts
that have tokens, how unequal their shares are, and the tiles that follow.

Most libraries' tiles are the fastest ones, as a tuner finds them. TensorRT-LLM's kernels in
FlashInfer take them by a rule (computeSelectedTileN in its trtllm_fused_moe_kernel_launcher.cu):
the height is tokens times chosen experts, wherever those are, over the experts on this GPU, rounded
up to a power of two.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from nexusbench.core.kernel_constants import ExpertConstants
from nexusbench.core.specs import GpuSpec
from nexusbench.physics.gemm import Residence
from nexusbench.physics.operators import NOTHING, OperatorClass, clock, overlapped, scaled_sum

HEIGHTS = (8, 16, 32, 64, 128)
_WIDTH = 64  # columns of a tile
_LARGEST = 256 * 128
_HALF = 2.0  # bytes of a value between the kernels
# Experts that several draws of tokens touch, over those of one draw: of 1 to 5, best on the half of
# the L40S' experts that constants may be fitted on. Only for benchmarks that repeat themselves.
_AGAIN = 1.2
_STREAMED = 0.8  # share of the HBM peak that ``elementwise`` refers to


class Routing(msgspec.Struct, frozen=True, gc=False):
    """Where the tokens of a batch went: ``touched`` of the ``held`` experts on this GPU have
    ``rows`` tokens together, in ``tiles`` tiles of the HEIGHTS. ``assigned`` counts tokens times
    experts on all GPUs, ``tokens`` those of the batch.
    """

    tokens: float
    assigned: float
    held: float
    touched: float
    rows: float
    tiles: tuple[float, ...]


class ExpertShape(msgspec.Struct, frozen=True, gc=False):
    """An expert on this GPU: ``hidden`` values in and out, ``width`` between its products; with
    ``gated``, twice as many come out of the first. Bytes are those of one value, scales included.
    """

    hidden: int
    width: int
    gated: bool = True
    weight_bytes: float = 2.0
    activation_bytes: float = 2.0


@lru_cache(maxsize=4096)
def uniform(tokens: int, experts: int, chosen: int, gpus: int = 1, skew: float = 1.0) -> Routing:
    """The expected routing of ``tokens`` tokens to ``chosen`` of ``experts`` experts each, of which
    this GPU holds one in ``gpus``.

    Each expert is chosen at random; with ``skew``, the most popular one that many times as often as
    the least, the others between them in a geometric series, and every GPU has its share of both.
    """
    held = experts / gpus
    kinds = 1 if skew == 1.0 else 8
    popularity = _series(skew, kinds)
    mean = total = 0.0
    for each in popularity:
        total += each
    touched = rows = 0.0
    tiles = [0.0] * len(HEIGHTS)
    for each in popularity:
        chance = min(1.0, chosen / experts * each * kinds / total)
        count, mean = held / kinds, tokens * chance
        some = count * (1.0 - power(1.0 - chance, tokens))
        touched, rows = touched + some, rows + count * mean
        for at, height in enumerate(HEIGHTS):
            tiles[at] += expected_tiles(some, count * mean, height)
    return Routing(float(tokens), float(tokens * chosen), held, touched, rows, tuple(tiles))


def expected_tiles(touched: float, rows: float, height: int) -> float:
    """Tiles of ``height`` rows of ``touched`` experts that have ``rows`` rows together, if these
    are about Poisson distributed: one for few rows, and for many half a tile each that is filled in
    part (a ceiling adds (height - 1) / (2 height) on average).
    """
    if touched <= 0.0:
        return 0.0
    each = rows / touched / height
    ragged = 0.5 * (height - 1) / height * min(1.0, each)
    return touched * max(1.0, each + ragged)


def power(base: float, exponent: int) -> float:
    """By squares: the same bits on every machine."""
    made = 1.0
    while exponent:
        if exponent & 1:
            made *= base
        base, exponent = base * base, exponent >> 1
    return made


def _series(skew: float, count: int) -> list[float]:
    """``count`` numbers in a geometric series whose ends are ``skew`` apart; the root by bisection,
    since only + - * / give the same bits everywhere.
    """
    if count == 1:
        return [1.0]
    low, high = 1.0, skew
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if power(middle, count - 1) <= skew else (low, middle)
    made = [1.0]
    while len(made) < count:
        made.append(made[-1] * low)
    return made


class Experts:
    """Times of the experts of one layer on one GPU, from sorted tokens to summed outputs."""

    def __init__(self, gpu: GpuSpec, constants: ExpertConstants, shape: ExpertShape) -> None:
        self._own, self._shape = constants, shape
        own = constants
        shares = enumerate(zip(HEIGHTS, own.tile_shares, strict=True))
        self._built = [(at, height, share) for at, (height, share) in shares if share > 0.0]
        self._rate = gpu.peak_tflops * own.rate * 1e3 / gpu.num_sms * own.efficiency
        self._reads = own.bandwidth_efficiency / gpu.sim.bandwidth_efficiency
        self._streams = _STREAMED / gpu.sim.bandwidth_efficiency
        self._num_sms, self._gain = gpu.num_sms, gpu.sim.clock_gain
        self._l2 = Residence(gpu, own.l2_gbps, own.l2_share)

    def time(
        self, routing: Routing, sms: int, bandwidth: float, *, copies: int = 0
    ) -> OperatorClass:
        """One layer on ``sms`` SMs that draw ``bandwidth`` bytes per ns (as for bfloat16 products),
        in ns. ``copies``: of such a routing, which a benchmark goes round, so that the weights of
        the experts that they touch stay in L2 if they fit; 0 in a serving step. Popular experts are
        touched by all of them: several touch little more than one does.
        """
        own, shape = self._own, self._shape
        hidden, width = shape.hidden, shape.width
        wide = 2 * width if shape.gated else width
        per_byte = 1.0 / (bandwidth * self._reads)
        made = scaled_sum(self._grouped(routing, hidden, wide, sms, per_byte, copies), 1.0, NOTHING)
        made = scaled_sum(self._grouped(routing, width, hidden, sms, per_byte, copies), 1.0, made)
        fixed = own.fixed_us * 1e3 + own.touched_ns * routing.touched + own.held_ns * routing.held
        fixed += own.assigned_ns * routing.assigned
        if routing.rows < routing.assigned:
            fixed += own.remote_us * 1e3
        # The activation reads what the first product wrote and writes half of it; the sum reads the
        # outputs of every expert of a token. Tokens whose expert is elsewhere leave zeros.
        values = routing.assigned * (wide + width + hidden) + routing.tokens * hidden
        passes = values * _HALF * own.elementwise
        moving = passes / (self._streams * bandwidth)
        around = OperatorClass(fixed + moving, 0.0, moving, 0.0, passes, 3.0, 3.0, moving)
        return scaled_sum(around, 1.0, made)

    def _grouped(
        self, routing: Routing, inputs: int, outputs: int, sms: int, per_byte: float, copies: int
    ) -> OperatorClass:
        """One product for every expert that has tokens, in one kernel."""
        own, shape = self._own, self._shape
        each = inputs * outputs * shape.weight_bytes
        weights = routing.touched * each
        activations = routing.rows * (inputs * shape.activation_bytes + outputs * _HALF)
        traffic = weights + activations
        if copies:
            # Both products' weights take turns in L2.
            wide = 2 * shape.width if shape.gated else shape.width
            kept = shape.hidden * (wide + shape.width) * shape.weight_bytes
            kept *= min(max(1.0, routing.held), routing.touched * (_AGAIN if copies > 1 else 1.0))
            per_byte = self._l2.per_byte(kept + activations, sms, per_byte)
        moving = traffic * per_byte
        rate = self._rate * clock(self._gain, sms / self._num_sms)
        feed = _WIDTH * inputs * shape.weight_bytes / own.sm_gbps
        fixed = own.depth_us * inputs  # us per 1,000: ns each
        columns = -(-outputs // _WIDTH)
        best = None
        for at, height, share in self._candidates(routing):
            tiles = routing.tiles[at] * columns
            waves = max(1.0, tiles / sms)
            waves += own.wave_share * (-(-tiles // sms) - waves)
            tile = max(2.0 * height * _WIDTH * inputs / (rate * share), feed)
            busy = waves * (tile + own.epilogue_us * 1e3 * height * _WIDTH / _LARGEST)
            kernel = overlapped(fixed, busy, moving, own.overlap, traffic, tiles / sms)
            if best is None or kernel.time < best.time:
                best = kernel
        assert best is not None  # a file has at least one tile
        return best

    def _candidates(self, routing: Routing) -> list[tuple[int, int, float]]:
        """(number, height, share of the rate) of the tiles that the kernel may take."""
        if self._own.tile == "fastest":
            return self._built
        mean = routing.assigned / routing.held
        return [next((one for one in self._built if one[1] >= mean), self._built[-1])]
