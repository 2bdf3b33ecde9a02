"""How much a batch of unequal decodes costs over one of equal ones, as measured and by a law.

    python -m tests.benchmarks.unequal_decodes $NEXUSBENCH_DATA/kernels/rtx4090.../skew.csv.gz

The law stands in docs/decisions/0017-unequal-decodes.md: where the kernel does not split keys, the
tiles of the longest sequences go on alone when the others have ended, at the rate of one thread
block each. Its one constant is fitted on half of the shapes; errors are of the other half.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nexusbench.experiments.fidelity.partitions.halves import may_be_fitted
from nexusbench.physics.gpus import load_gpu

ITERATIONS = 3  # times are sums of so many
KV_HEADS, HEADS, TOKEN_BYTES = 8, 32, 2 * 128 * 2.0  # Llama-3.1-8B, keys and values of a KV head
SLOTS = 0.8  # a kernel whose tiles fill this share of them splits no keys (FlashAttention-2)
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


def two_kinds(at: dict[str, Column]) -> tuple[Column, Column]:
    """(share of the batch that is as long as the longest, keys that those have more), from what a
    batch would carry: number, mean, longest and sum of squares of its lengths.
    """
    count, mean, longest = at["n"], at["kv_mean"], at["kv_big"]
    squares = at["nb"] * longest**2 + (count - at["nb"]) * at["kvs"] ** 2
    total = at["nb"] * longest + (count - at["nb"]) * at["kvs"]
    mean = total / count
    variance = np.maximum(0.0, squares / count - mean**2)
    above = np.maximum(longest - mean, 1e-9)
    return variance / (variance + above**2), above + variance / above


def extra_us(at: dict[str, Column], gbps: float, heads: int, sms: int, hbm_gbps: float) -> Column:
    """What the law adds to a batch of equal lengths; ``gbps``: what one thread block draws."""
    share, more = two_kinds(at)
    size = more * TOKEN_BYTES
    tiles = share * at["n"] * heads
    split = (at["pc"] == 0) & (at["n"] * heads < SLOTS * 2 * sms)
    return np.where(split, 0.0, ITERATIONS * size / gbps / (1 + tiles * gbps / hbm_gbps) / 1e3)


def show(at: dict[str, Column], made: Callable[[float], Column], title: str) -> None:
    """Fit the constant on one half; print the errors on the other, before and after."""
    measured, half = at["t_skew_us"], at["half"] == 1

    def errors(gbps: float) -> Column:
        found = at["t_mean_us"] if gbps == 0 else at["t_mean_us"] + made(gbps)
        return 100.0 * (found / measured - 1.0)

    best = min(
        np.arange(4.0, 80.0, 0.5), key=lambda g: float(np.abs(errors(float(g)))[half].mean())
    )
    print(f"{title}: {float(best):g} GB/s of one thread block; held out, MAPE (bias, p95) in %")
    groups = [("all", ~half)]
    groups += [(f"{int(n)} decodes", ~half & (at["n"] == n)) for n in sorted(set(at["n"]))]
    for name, of in groups:
        texts = []
        for found in (errors(0.0)[of], errors(float(best))[of]):
            size = np.abs(found)
            texts.append(f"{size.mean():.1f} ({found.mean():+.1f}, {np.percentile(size, 95):.1f})")
        print(f"  {name:12} {int(of.sum()):6,} rows  {texts[0]} -> {texts[1]}")


def main() -> None:
    """Print both regimes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    table = read(parser.parse_args().table)
    gpu = load_gpu("rtx4090")
    rate = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    for title, chosen, heads in (
        ("decodes alone", table["pc"] == 0, KV_HEADS),
        ("beside a chunk", table["pc"] > 0, HEADS),
    ):
        at = {name: column[chosen] for name, column in table.items()}
        show(at, lambda g, at=at, heads=heads: extra_us(at, g, heads, gpu.num_sms, rate), title)  # type: ignore[misc]


if __name__ == "__main__":
    main()
