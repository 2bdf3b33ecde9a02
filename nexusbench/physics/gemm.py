"""Products on the simulated GPU in 16 bits and in low precision, and quantised activations.

A product takes a launch, waves of tiles over the SMs (whole or with K split), and the time of its
HBM traffic, which overlaps with computing but for a share. In low precision what differs is in the
constants: the tensor cores' rate for the type, tiles that are chosen by the numbers of rows and
columns instead of freely (CUTLASS' dispatch in vLLM), and clusters of SMs that compute whole even
where rows are missing. K is not split there.
"""

from __future__ import annotations

from nexusbench.core.kernel_constants import ProductConstants, QuantiseConstants, Tile
from nexusbench.core.specs import GpuSpec
from nexusbench.physics.operators import L2, OperatorClass, clock, overlapped
from nexusbench.physics.wave_tiles import wave_tile, wave_tile_ns

# (rows, columns, share of the attainable rate) of GEMM tiles. Shapes are those that cuBLAS kernels
# are named after; the shares were fitted once, for H200, H100 and L40S together (docs/fidelity.md).
TILES = ((256, 128, 1.0), (128, 128, 0.99), (64, 128, 1.0), (64, 64, 0.93), (16, 64, 0.34))
SPLIT_K = (1, 2, 4, 8)
_LARGEST = 256 * 128
_ACCUMULATOR_BYTES = 4.0
_BLOCK = 2048  # values of a row that one thread block of a quantisation takes
_HALF, _BYTE = 2.0, 1.0  # bytes of a value before and after quantisation


class Residence(L2):
    """What a benchmark that repeats itself finds in L2, by the constants of one kind of kernel."""

    def __init__(self, gpu: GpuSpec, gbps: float, share: float) -> None:
        super().__init__(gpu)
        self._bytes *= share / gpu.sim.l2_share
        self._ns = 1.0 / gbps


class Gemm:
    """Times of ``[rows, inputs] x [inputs, outputs]`` on one GPU."""

    def __init__(self, gpu: GpuSpec) -> None:
        sim = gpu.sim
        # FLOP per ns of one SM.
        self._rate = gpu.peak_tflops * 1e3 / gpu.num_sms * sim.dense_efficiency
        self._launch, self._exposed = sim.dense_launch_us * 1e3, sim.dense_overlap
        self._wave_share = sim.dense_wave_share
        self._num_sms, self._gain = gpu.num_sms, sim.clock_gain
        self._depth = sim.dense_depth_us  # ns per unit of the inner dimension
        self._epilogue, self._split = sim.dense_epilogue_us * 1e3, sim.dense_split_us * 1e3
        self._l2 = L2(gpu)

    def time(
        self,
        rows: float,
        inputs: int,
        outputs: int,
        weight_bytes: float,
        activation_bytes: float,
        sms: int,
        bandwidth: float,
        *,
        copies: int = 0,
        groups: float = 1,
    ) -> OperatorClass:
        """One product on ``sms`` SMs that draw ``bandwidth`` bytes per ns, in ns.

        ``weight_bytes`` and ``activation_bytes`` are those of one value. The best tile and split of
        K is taken, as a tuned library does. ``copies``: sets of weights that a benchmark reads in
        turn, so that small ones stay in L2; 0 in a serving step, where the other layers evict them.
        ``groups``: so many products of this shape, with weights of their own, in one kernel (the
        experts of a layer); such kernels do not split K.
        """
        weights = inputs * outputs * weight_bytes * groups
        activations = rows * (inputs + outputs) * activation_bytes * groups
        traffic = weights + activations
        per_byte = 1.0 / bandwidth
        if copies:
            per_byte = self._l2.per_byte(copies * weights + activations, sms, per_byte)
        moving = traffic * per_byte
        rate = self._rate * clock(self._gain, sms / self._num_sms)
        best = None
        for height, width, share in TILES:
            tiles = -(-rows // height) * -(-outputs // width) * groups
            tile = 2.0 * height * width * inputs / (rate * share)
            epilogue = self._epilogue * height * width / _LARGEST
            for parts in SPLIT_K if groups == 1 else (1,):
                if parts > 1 and tiles * parts > 2 * sms:
                    break  # K is split to fill SMs, not to make more waves
                # Between waves in fractions (share 0: no SM is ever idle) and whole ones (1).
                waves = max(1.0, tiles * parts / sms)
                waves += self._wave_share * (-(-tiles * parts // sms) - waves)
                busy = waves * (tile / parts + epilogue)
                fixed = self._launch + self._depth * inputs / parts
                if parts > 1:
                    fixed += self._split + parts * rows * outputs * _ACCUMULATOR_BYTES * per_byte
                made = overlapped(fixed, busy, moving, self._exposed, traffic, tiles * parts / sms)
                if best is None or made.time < best.time:
                    best = made
        assert best is not None
        return best


class ScaledGemm:
    """Times of ``[rows, inputs] x [inputs, outputs]`` in low precision on one GPU.

    ``weight_bytes`` and ``activation_bytes`` are those of one value, scales included.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        constants: ProductConstants,
        weight_bytes: float,
        activation_bytes: float,
    ) -> None:
        self._own = own = constants
        self._weight_bytes, self._activation_bytes = weight_bytes, activation_bytes
        # FLOP per ns of one SM.
        self._rate = gpu.peak_tflops * own.rate * 1e3 / gpu.num_sms * own.efficiency
        # The bandwidth that callers know is that of bfloat16 products.
        self._reads = own.bandwidth_efficiency / gpu.sim.bandwidth_efficiency
        self._launch, self._epilogue = own.launch_us * 1e3, own.epilogue_us * 1e3
        self._num_sms, self._gain = gpu.num_sms, gpu.sim.clock_gain
        self._l2 = Residence(gpu, own.l2_gbps, own.l2_share)
        self._tiles: dict[int, tuple[Tile, ...]] = {}  # by columns

    def time(
        self,
        rows: float,
        inputs: int,
        outputs: int,
        sms: int,
        bandwidth: float,
        *,
        copies: int = 0,
    ) -> OperatorClass:
        """One product on ``sms`` SMs, in ns; ``bandwidth`` (bytes per ns) and ``copies`` as in
        ``Gemm.time``. Activations are read quantised and written in 16 bit.
        """
        own = self._own
        weights = inputs * outputs * self._weight_bytes
        activations = rows * (inputs * self._activation_bytes + outputs * _HALF)
        traffic = weights + activations
        per_byte = 1.0 / (bandwidth * self._reads)
        if copies:
            per_byte = self._l2.per_byte(copies * weights + activations, sms, per_byte)
        moving = traffic * per_byte
        rate = self._rate * clock(self._gain, sms / self._num_sms)
        fixed = self._launch + own.depth_us * inputs  # us per 1,000: ns each
        if own.waves is not None:
            chosen = wave_tile(int(-(-rows // 1)), outputs, sms)
            per = chosen.tiles / sms
            waves = max(1.0, per)
            waves += own.wave_share * (chosen.waves - waves)
            tile = wave_tile_ns(own.waves, chosen, inputs, rate)
            tile += self._epilogue * chosen.height * chosen.width / _LARGEST
            return overlapped(fixed, waves * tile, moving, own.overlap, traffic, per)
        best = None
        for above, most, height, width, share, cluster in self._built(outputs):
            if rows <= above or (most and rows > most):
                continue
            tiles = -(-rows // (height * cluster)) * cluster * -(-outputs // width)
            waves = max(1.0, tiles / sms)
            waves += own.wave_share * (-(-tiles // sms) - waves)
            tile = 2.0 * height * width * inputs / (rate * share)
            busy = waves * (tile + self._epilogue * height * width / _LARGEST)
            made = overlapped(fixed, busy, moving, own.overlap, traffic, tiles / sms)
            if best is None or made.time < best.time:
                best = made
        assert best is not None  # the file's tiles are checked to leave out no number of rows
        return best

    def _built(self, outputs: int) -> tuple[Tile, ...]:
        """The tiles of products with ``outputs`` columns."""
        if not self._own.column_tiles:
            return self._own.tiles
        if outputs not in self._tiles:
            self._tiles[outputs] = tuple(
                (above, most, height, width, share, 1)
                for above, most, left, right, height, width, share in self._own.column_tiles
                if outputs > left and (outputs <= right or not right)
            )
        return self._tiles[outputs]


class Quantise:
    """Times of quantising activations, in a kernel (or two) of its own.

    ``scales``: "static" ones are known beforehand; "block" finds one for each group of a row's
    values, in the same pass; "row" finds one for each row first, "tensor" one for all rows.
    """

    def __init__(self, gpu: GpuSpec, constants: QuantiseConstants, scales: str) -> None:
        self._own, self._scales = constants, scales
        self._peak = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
        self._l2 = Residence(gpu, constants.l2_gbps, constants.l2_share)

    def time(self, rows: float, values: int, sms: int, bandwidth: float) -> OperatorClass:
        """``rows`` of ``values`` values on ``sms`` SMs that draw ``bandwidth`` bytes per ns, ns."""
        own, scales = self._own, self._scales
        size = rows * values * (_HALF + _BYTE)
        slower = self._peak / bandwidth  # than with all SMs
        fixed = own.launch_us * 1e3
        if scales == "tensor":
            # Every block of values adds its maximum to one word of memory: one after the other.
            fixed += own.tensor_single_us * 1e3 if rows <= 1 else 0.0
            blocks = -(-values // _BLOCK)
            moving = rows * (own.tensor_row_ns + own.tensor_block_ns * blocks)
        else:
            # What the kernel before has just written is in L2 if it fits.
            moving = size * self._l2.per_byte(size, sms, slower / own.gbps)
            fixed += own.depth_us * values  # us per 1,000: ns each
            if scales == "row":
                fixed += own.scale_us * 1e3 + own.scale_depth_us * values
                moving += size / own.scale_gbps * slower
        return OperatorClass(fixed + moving, 0.0, moving, 0.0, size, 1.0, 1.0, moving)
