"""Do the counters count? A copy whose bytes are known, read by NVML, GPM and CUPTI.

    python -m tests.gpu.cross_check [--output FILE.json] [--record FILE.json]

A copy of N bytes, many times the L2, must read and write N bytes of DRAM each, within 10 %. CUPTI
runs in a repetition of its own, since sampling may slow what is measured; how much it does is told.
``--record`` keeps the samples, for ``tests/data`` and ``cupti:recording=FILE``. Exit code 0 if
every counter that can be read is right, 1 if one is wrong, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from nexusbench.counters.base import Counters, Reading
from nexusbench.counters.cupti import CuptiCounters
from tests.gpu import machine

VALUES = 1 << 29  # bf16: 1 GiB
TOLERANCE = 0.10
_SECONDS = 1.0  # several windows of GPM


class CopyLoad:
    """Copies 1 GiB again and again."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self.source = torch.randn(VALUES, device="cuda", dtype=torch.bfloat16)
        self.target = torch.empty_like(self.source)
        per_copy = self.run(20) / 20
        self.count = max(50, int(_SECONDS / per_copy))

    def run(self, count: int) -> float:
        """Seconds of so many copies, measured by the GPU."""
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            self.target.copy_(self.source)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    @property
    def num_bytes(self) -> int:
        """Read, and as many written, by ``count`` copies."""
        return self.count * VALUES * 2


def read_copy(
    load: CopyLoad, names: list[str], *, intrusive: bool
) -> tuple[Reading, Counters, float]:
    """The reading over ``load.count`` copies, and their seconds."""
    with Counters.open(names, intrusive=intrusive) as counters:
        counters.start()
        seconds = load.run(load.count)
        return counters.stop(), counters, seconds


def judge(
    values: dict[str, float | None], expected: int, seconds: float, copy_share: float
) -> list[dict[str, Any]]:
    """What each counter should say about such a copy, and whether it does."""
    found: list[dict[str, Any]] = []

    def expect(name: str, wanted: str, lowest: float, highest: float) -> None:
        value = values.get(name)
        right = None if value is None else lowest <= value <= highest
        found.append({"counter": name, "value": value, "wanted": wanted, "right": right})

    low, high = (1 - TOLERANCE) * expected, (1 + TOLERANCE) * expected
    for name in ("cupti.dram_read", "cupti.dram_write"):
        expect(name, f"{expected:.4g} bytes within {TOLERANCE:.0%}", low, high)
    elapsed, active = values.get("cupti.sm_elapsed"), values.get("cupti.sm_active")
    if elapsed and active is not None:
        values = {**values, "cupti.sm_share": active / elapsed}
    expect("cupti.sm_share", "SMs active most of the time", 0.5, 1.001)
    expect("nvml.power", "50 to 2,000 W", 50, 2000)
    expect("nvml.energy", "that of 25 to 3,000 W", 25 * seconds, 3000 * seconds)
    expect("nvml.sm_clock", "0.5 to 3 GHz", 0.5e9, 3e9)
    # GPM's share is of the data sheet's peak; a copy reaches copy_share of it.
    expect("nvml.dram_util", f"about {copy_share:.0%}", 0.8 * copy_share, 1.1 * copy_share)
    expect("nvml.sm_util", "most SMs busy", 0.5, 1.001)
    expect("nvml.tensor_util", "no tensor operation", 0.0, 0.05)
    return found


def cross_check(peak_gbps: float, record: Path | None = None) -> dict[str, Any]:
    """All counters of a copy; ``peak_gbps`` is the data sheet's bandwidth."""
    load = CopyLoad()
    plain = load.run(load.count)
    copy_share = 2 * load.num_bytes / plain / 1e9 / peak_gbps
    reading, counters, seconds = read_copy(load, ["nvml"], intrusive=False)
    values, reasons = dict(reading.values), dict(reading.reasons)
    support = {name: support.reason or "ok" for name, support in counters.support.items()}
    source = CuptiCounters()
    with Counters([source], intrusive=True) as counters:
        counters.start()
        sampled = load.run(load.count)
        reading = counters.stop()
        support |= {name: each.reason or "ok" for name, each in counters.support.items()}
        if record is not None and counters.samples.get("cupti"):
            source.record(record, f"{load.count} copies of 1 GiB on {machine.identity()['gpu']}")
    values |= reading.values
    reasons |= reading.reasons
    return {
        "identity": machine.identity(), "copies": load.count, "bytes_each_way": load.num_bytes,
        "copy_gbps": 2 * load.num_bytes / plain / 1e9, "peak_gbps": peak_gbps,
        "nvml_slows_by": seconds / plain - 1, "cupti_slows_by": sampled / plain - 1,
        "support": support, "reasons": reasons, "values": values,
        "checks": judge(values, load.num_bytes, plain, copy_share),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    parser.add_argument("--record", type=Path, help="keep CUPTI's samples")
    parser.add_argument(
        "--peak-gbps", type=float, help="bandwidth by the data sheet (default: the device's)"
    )
    chosen = parser.parse_args()
    lacking = machine.missing()
    if lacking is not None:
        print(f"cross_check needs an NVIDIA GPU: {lacking}", file=sys.stderr)
        return 2
    if chosen.record is not None:
        chosen.record.parent.mkdir(parents=True, exist_ok=True)
    found = cross_check(chosen.peak_gbps or machine.peak_gbps(), chosen.record)
    for check in found["checks"]:
        mark = {True: "right", False: "WRONG", None: "unread"}[check["right"]]
        why = "" if check["value"] is not None else found["reasons"].get(check["counter"], "")
        print(f"{mark:<7} {check['counter']:<18} {check['value']} (wanted {check['wanted']}) {why}")
    print(
        f"copy {found['copy_gbps']:.0f} GB/s; sampling slows it by {found['cupti_slows_by']:+.1%}, "
        f"NVML's thread by {found['nvml_slows_by']:+.1%}"
    )
    if chosen.output is not None:
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
        chosen.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if any(check["right"] is False for check in found["checks"]) else 0


if __name__ == "__main__":
    sys.exit(main())
