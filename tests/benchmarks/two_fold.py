"""Products over SMs, cross-validated: ``python -m tests.benchmarks.two_fold [GPU] [TABLE]``.

The two constants that say how a product slows down on few SMs (what one SM draws of the weights,
and the clock's gain) are fitted on either half of the table's shapes and score the other half, so
that every row is judged once by constants that have not seen its shape. Without arguments: the H100
and its table in ``$NEXUSBENCH_DATA``. Printed: constants, fitted and held-out MAPE (%) of each
direction, that of the GPU file's own constants, and the mean over all rows held out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import numpy as np
from scipy.optimize import minimize

from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.fidelity.draw_law import DrawLaw
from nexusbench.experiments.fidelity.partitions.formats import read_partitions
from nexusbench.experiments.fidelity.partitions.points import MILLISECONDS
from nexusbench.physics.gpus import load_gpu

START = (50.0, 0.28)  # GB/s of one SM, gain of the clock
EVALUATIONS = 60


def with_constants(gpu: GpuSpec, gbps: float, gain: float) -> GpuSpec:
    """``gpu`` whose products draw ``gbps`` with each SM, as x / (x + 1)."""
    curve = DrawLaw(gbps, 0.0).curve(gpu)
    sim = msgspec.structs.replace(gpu.sim, weights_curve=curve, clock_gain=gain)
    return msgspec.structs.replace(gpu, sim=sim)


def errors(gpu: GpuSpec, table: Path) -> tuple[list[float], list[float]]:
    """Sizes of the errors (%) of products: of the half that may be fitted, and of the other."""
    halves: tuple[list[float], list[float]] = ([], [])
    for point in read_partitions(table, gpu).points:
        if point.operator.startswith("gemm") and point.unit != MILLISECONDS:
            error = 100.0 * abs(point.simulated / point.measured - 1.0)
            halves[not point.fitted].append(error)
    return halves


def main() -> None:
    """Fit each half, score the other."""
    gpu = load_gpu(sys.argv[1] if len(sys.argv) > 1 else "h100")
    default = Path(os.environ.get("NEXUSBENCH_DATA", "")) / "partitions/h100-green-ctx-kernels.csv"
    table = Path(sys.argv[2]) if len(sys.argv) > 2 else default
    judged: list[float] = []
    for half in (0, 1):

        def loss(values: np.ndarray, half: int = half) -> float:
            gbps, gain = float(values[0]), float(values[1])
            if not (5.0 < gbps < 500.0 and 0.0 <= gain < 1.0):
                return 1e3
            return float(np.mean(errors(with_constants(gpu, gbps, gain), table)[half]))

        found = minimize(loss, START, method="Nelder-Mead", options={"maxfev": EVALUATIONS}).x
        both = errors(with_constants(gpu, float(found[0]), float(found[1])), table)
        judged += both[1 - half]
        print(
            f"half {half}: {found[0]:.1f} GB/s, gain {found[1]:.3f}; "
            f"fitted {np.mean(both[half]):.1f}, held out {np.mean(both[1 - half]):.1f}"
        )
    own = errors(gpu, table)
    print(f"the file's: {np.mean(own[0]):.1f} on half 0, {np.mean(own[1]):.1f} on half 1")
    print(f"every row held out once: {np.mean(judged):.1f} over {len(judged)} rows")


if __name__ == "__main__":
    main()
