"""A million generated requests in one process: ``python -m tests.benchmarks.million [COUNT]``.

Prints wall seconds and peak memory; results are streamed to a scratch folder.
"""

from __future__ import annotations

import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import msgspec

import nexusbench
from nexusbench.workloads.base import Trace
from nexusbench.workloads.generate import make_trace
from nexusbench.workloads.spec import load_spec

SPEC = Path(__file__).parents[2] / "workloads" / "sharegpt.toml"


def generated(count: int) -> Trace:
    """``count`` requests of the ShareGPT workload."""
    spec = load_spec(SPEC)
    workload = msgspec.structs.replace(spec.workload, num_requests=count)
    return make_trace(msgspec.structs.replace(spec, workload=workload))


def main() -> None:
    """Serve them on sim:h100 under vllm, at 30 requests per second."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    config = nexusbench.RunConfig(
        trace="generated", device="sim:h100", scheduler="vllm", request_rate=30.0
    )
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as scratch,
        patch("nexusbench.serving.assembly.load_trace", lambda path: generated(count)),
    ):
        result = nexusbench.run(config, results=Path(scratch))
    metrics = result.summary.metrics
    wall = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{platform.machine()}, Python {platform.python_version()}: "
        f"{metrics['finished'].value:,.0f} requests, {metrics['tbt'].n:,} gaps, "
        f"{wall:.0f} s, peak {peak:,.0f} MiB"
    )


if __name__ == "__main__":
    main()
