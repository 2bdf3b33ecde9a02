"""How fast the engine simulates: ``python -m tests.benchmarks.engine [TRACE]``.

Prints wall seconds, steps/s, output tokens/s and microseconds per step; ratios within one run are
worth more than absolutes on a shared machine. TRACE (default: the Azure 2023 conversation trace of
``$NEXUSBENCH_DATA``) is served whole; the other figures come from made-up requests.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from nexusbench.core.batch import Plan, Split
from nexusbench.core.request import Request
from nexusbench.core.state import EngineState, Limits
from nexusbench.costs.base import cost_models
from nexusbench.devices.base import DeviceOptions
from nexusbench.devices.sim import Sim
from nexusbench.engine.engine import Engine, EngineConfig
from nexusbench.kv.manager import KVCacheManager
from nexusbench.models.config import load_model
from nexusbench.partitioners.base import partitioners
from nexusbench.schedulers.base import schedulers

MODEL = load_model("llama-3.1-8b")
LIMITS = Limits(max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=131_072)


def build(scheduler: str, requests: Sequence[Request], gpu: str = "h100") -> Engine:
    """An engine on ``sim:GPU``, ready to run."""
    device = Sim.open(gpu, MODEL, DeviceOptions(LIMITS.max_num_seqs, LIMITS.max_num_batched_tokens))
    policy = schedulers.create(scheduler)
    belief = cost_models.create("roofline", gpu=device.gpu, model=MODEL)
    partitioner = partitioners.create(
        policy.default_partitioner, partitions=policy.partitions, belief=belief
    )
    blocks = int(device.spec.kv_bytes // (MODEL.kv_bytes_per_token * 16))
    return Engine(
        device, policy, partitioner, KVCacheManager(blocks, 16), requests,
        EngineConfig(LIMITS), stopwatch=time.perf_counter_ns,
    )  # fmt: skip


def made_up(count: int, running: int, output: int = 200, prompt: int = 200) -> list[Request]:
    """``count`` requests that keep about ``running`` of them going: one follows another."""
    requests = []
    for index in range(count):
        # A step takes about 7 ms and more with more running; arrivals in proportion keep it level.
        arrival = int(index / running * output * (7e6 + 2e4 * running)) if index >= running else 0
        requests.append(Request(str(index), index, arrival, prompt, 1024, prompt + output))
    return requests


def served(label: str, engine: Engine) -> float:
    """Run, print a line, return microseconds per step."""
    started = time.perf_counter()
    engine.run()
    wall = time.perf_counter() - started
    steps, tokens = engine.num_steps, engine.num_tokens
    middle = sorted(engine.decision_ns)[len(engine.decision_ns) // 2] / 1e3
    print(
        f"{label:42s} {wall:7.2f} s {steps:9,d} steps {steps / wall:9,.0f} steps/s "
        f"{tokens / wall / 1e6:6.2f} M out tok/s {wall / steps * 1e6:7.1f} us/step "
        f"{tokens / steps:6.1f} tok/step  decision p50 {middle:5.1f} us",
        flush=True,
    )
    return wall / steps * 1e6


def partitioner_decisions(running: int) -> None:
    """The median time of the nexus partitioner alone, steps in which it had to decide."""
    engine = build("nexus", made_up(40 * running, running, prompt=800))
    inner, times = engine.partitioner.split, []

    def timed(plan: Plan, state: EngineState) -> Split:
        started = time.perf_counter_ns()
        chosen = inner(plan, state)
        if len(plan.batches) + sum(map(len, state.in_flight.values())) > 1:
            times.append(time.perf_counter_ns() - started)
        return chosen

    with patch.object(engine.partitioner, "split", timed):
        engine.run()
    times.sort()
    middle = times[len(times) // 2] / 1e3
    print(f"nexus partitioner, about {running} running: median {middle:.1f} us of {len(times):,}")


def trace_requests(path: Path) -> list[Request]:
    """The whole trace, as ``serve-trace`` would serve it."""
    from nexusbench.core.config import RunConfig
    from nexusbench.serving.assembly import make_requests, prepare_trace

    trace = prepare_trace(RunConfig(trace=str(path)), LIMITS.max_model_len)
    return make_requests(trace, 16)


def main() -> None:
    """All figures."""
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    data = os.environ.get("NEXUSBENCH_DATA")
    default = Path(data) / "traces" / "azure-2023-conv.csv.gz" if data else None
    trace = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    if trace is not None:
        for scheduler in ("vllm", "sglang", "nexus"):
            served(f"{trace.name}, {scheduler}", build(scheduler, trace_requests(trace)))
    for running in (1, 10, 32, 50, 256):
        for scheduler in ("vllm", "nexus"):
            requests = made_up(40 * running if running > 1 else 100, running)
            served(f"about {running} running, {scheduler}", build(scheduler, requests))
    partitioner_decisions(256)
    for count in (1_000, 10_000, 100_000):
        engine = build("vllm", made_up(count, 50, output=40))
        served(f"{count:,} requests, short answers, vllm", engine)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
