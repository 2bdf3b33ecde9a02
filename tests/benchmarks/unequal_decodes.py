"""How much a batch of unequal decodes costs over one of equal ones, as measured and by a law.

    python -m tests.benchmarks.unequal_decodes $NEXUSBENCH_DATA/kernels/rtx4090.../skew.csv.gz

The law (docs/decisions/0017-unequal-decodes.md; physics/unequal.py) is added to *measured* times of
equal lengths. Its rate, what a lone thread block draws, is that of the simulated kernel's tiles,
which was not fitted on this table; beside it stands the rate that fits half of the shapes best.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nexusbench.experiments.fidelity.llmservingsim import SKEW_ITERATIONS
from nexusbench.experiments.fidelity.partitions.halves import may_be_fitted
from nexusbench.physics.attention import Attention
from nexusbench.physics.gpus import load_gpu

KV_HEADS, HEADS, DIM = 8, 32, 128  # Llama-3.1-8B
KEY_BYTES = 2 * DIM * 2.0  # keys and values of a KV head
Column = npt.NDArray[np.float64]


def read(path: Path) -> dict[str, Column]:
    """The numbers of the table by column, and ``half``: 1 where a constant may be fitted."""
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "regime"]
    made = {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
    shapes = [f"skew {row['n']} {row['nb']} {row['kvs']} {row['kv_big']}" for row in rows]
    made["half"] = np.array([float(may_be_fitted(shape)) for shape in shapes])
    return made


def errors(at: dict[str, Column], gbps: float, heads: int, hbm: float, split: Column) -> Column:
    """Percent by which equal lengths and what the law adds are off; 0 GB/s: nothing is added."""
    made = at["t_mean_us"]
    if gbps:
        more = (at["kv_big"] - at["kvs"]) * KEY_BYTES / gbps
        more = SKEW_ITERATIONS * more / (1.0 + at["nb"] * heads * gbps / hbm) / 1e3
        made = made + np.where(split > 1, 0.0, more)
    return 100.0 * (made / at["t_skew_us"] - 1.0)


def main() -> None:
    """Print both regimes, by the number of decodes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    table = read(parser.parse_args().table)
    gpu = load_gpu("rtx4090")
    kernel, hbm = Attention(gpu, HEADS, KV_HEADS, DIM), gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    for beside, heads in ((False, KV_HEADS), (True, HEADS)):
        at = {name: column[(table["pc"] > 0) == beside] for name, column in table.items()}
        contexts = at["nb"] * at["kv_big"] + (at["n"] - at["nb"]) * at["kvs"] + at["n"]
        pairs = zip(at["n"].tolist(), contexts.tolist(), strict=True)
        split = np.array([1 if beside else kernel.key_splits(int(n), int(c)) for n, c in pairs])
        half, own = at["half"] == 1, KEY_BYTES / kernel.key_ns(beside=beside)
        sizes = {
            float(rate): float(np.abs(errors(at, float(rate), heads, hbm, split))[half].mean())
            for rate in np.arange(4.0, 80.0, 0.5)
        }
        fitted = min(sizes, key=sizes.__getitem__)
        print(f"{'beside a chunk' if beside else 'decodes alone'}: MAPE (bias, p95) in %")
        print(f"  tiles draw {own:.1f} GB/s; {fitted:g} fits half of the shapes best")
        groups = [("all", np.full(len(half), True))]
        groups += [(f"{int(n)} decodes", at["n"] == n) for n in sorted(set(at["n"]))]
        for name, of in groups:
            texts = []
            for rate in (0.0, own):
                found = errors(at, rate, heads, hbm, split)[of]
                size = np.abs(found)
                texts.append(
                    f"{size.mean():.1f} ({found.mean():+.1f}, {np.percentile(size, 95):.1f})"
                )
            print(f"  {name:12} {int(of.sum()):6,} rows  {texts[0]} -> {texts[1]}")


if __name__ == "__main__":
    main()
