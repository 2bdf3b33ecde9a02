"""A dense layer on the simulated GPU: tiles and waves, split-K, launch, and memory beside them."""

from __future__ import annotations

from nexusbench.core.specs import GpuSpec
from nexusbench.physics.operators import L2, OperatorClass, overlapped

# (rows, columns, share of the attainable rate) of GEMM tiles. Shapes are those that cuBLAS kernels
# are named after; the shares were fitted once, for H200, H100 and L40S together (docs/fidelity.md).
TILES = ((256, 128, 1.0), (128, 128, 0.99), (64, 128, 1.0), (64, 64, 0.93), (16, 64, 0.34))
SPLIT_K = (1, 2, 4, 8)
_LARGEST = 256 * 128
_ACCUMULATOR_BYTES = 4.0


class Gemm:
    """Times of ``[rows, inputs] x [inputs, outputs]`` on one GPU."""

    def __init__(self, gpu: GpuSpec) -> None:
        sim = gpu.sim
        # FLOP per ns of one SM
        self._rate = gpu.peak_tflops * 1e3 / gpu.num_sms * sim.dense_efficiency
        self._launch, self._exposed = sim.dense_launch_us * 1e3, sim.dense_overlap
        self._wave_share = sim.dense_wave_share
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

        The best tile and split of K is taken, as a tuned library does. ``copies``: weights that a
        benchmark goes round, so that small ones stay in L2; 0 in a serving step, where the
        other layers evict them. ``groups``: so many products of this shape, with weights of their
        own, in one kernel (the experts of a layer); such kernels do not split K.
        """
        weights = inputs * outputs * weight_bytes * groups
        activations = rows * (inputs + outputs) * activation_bytes * groups
        traffic = weights + activations
        per_byte = 1.0 / bandwidth
        if copies:
            per_byte = self._l2.per_byte(copies * weights + activations, sms, per_byte)
        moving = traffic * per_byte
        best = None
        for height, width, share in TILES:
            tiles = -(-rows // height) * -(-outputs // width) * groups
            tile = 2.0 * height * width * inputs / (self._rate * share)
            epilogue = self._epilogue * height * width / _LARGEST
            for parts in SPLIT_K if groups == 1 else (1,):
                if parts > 1 and tiles * parts > 2 * sms:
                    break
                waves = max(1.0, tiles * parts / sms)
                waves += self._wave_share * (-(-tiles * parts // sms) - waves)
                busy = waves * (tile / parts + epilogue)
                fixed = self._launch + self._depth * inputs / parts
                if parts > 1:
                    fixed += self._split + parts * rows * outputs * _ACCUMULATOR_BYTES * per_byte
                made = overlapped(fixed, busy, moving, self._exposed, traffic)
                if best is None or made.time < best.time:
                    best = made
        assert best is not None
        return best
