"""A device simulated from a CPU's own profile, beside the CPU: mean service TTFT and TBT.

    nexusbench profile --device cpu --model tiny --max-model-len 2048 --max-num-batched-tokens 512 \
        --max-num-seqs 32 -o cpu-profile
    python -m tests.benchmarks.cpu_fidelity cpu-profile

The trace is none that the profile knows: lengths and arrivals are drawn here. Both replays have the
same scheduler, budgets and KV pool. Quiet machines only: the profile and the replay must have had
the same one.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

import nexusbench
from nexusbench.core.config import RunConfig
from nexusbench.profiles.profile import load_profile

METRICS = (("ttft_service", "mean"), ("ttft_service", "p95"), ("tbt", "mean"), ("tbt", "p95"))


def write_trace(path: Path, requests: int, rate: float) -> None:
    """Poisson arrivals, prompts of 30 to 900 tokens, answers of 8 to 60."""
    draw, now = random.Random(11), 0.0
    lines = []
    for _ in range(requests):
        lines.append(
            {
                "timestamp": round(now * 1e3, 3),
                "input_length": draw.randrange(30, 900),
                "output_length": draw.randrange(8, 60),
            }
        )
        now += draw.expovariate(rate)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--schedulers", default="vllm,sglang,nexus")
    given = parser.parse_args()
    profile = load_profile(given.profile)
    file = given.profile / "profile.json" if given.profile.is_dir() else given.profile
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "other.jsonl"
        write_trace(trace, given.requests, given.rate)
        print(f"{'scheduler':10} {'metric':14} {'':5} {'cpu':>9} {'simulated':>9} {'error, %':>9}")
        for scheduler in given.schedulers.split(","):
            found = []
            for device in ("cpu", f"sim:{file}"):
                config = RunConfig(
                    trace=str(trace), device=device, model=profile.model.name,
                    scheduler=scheduler, max_model_len=2048, max_num_batched_tokens=512,
                    max_num_seqs=32, kv_blocks=4096,
                    partitioner="fixed" if scheduler == "nexus" else None,
                )  # fmt: skip
                found.append(nexusbench.run(config).summary.metrics)
            for tag, statistic in METRICS:
                real, made = (metrics[tag].get(statistic) for metrics in found)
                error = 100 * (made / real - 1)
                print(
                    f"{scheduler:10} {tag:14} {statistic:5} {real:9.2f} {made:9.2f} {error:+9.1f}"
                )


if __name__ == "__main__":
    main()
