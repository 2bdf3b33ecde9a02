"""How late a replay sends: null requests against a server of our own, in a process of its own.

    python -m tests.benchmarks.endpoint [--rates 100,1000] [--seconds 8] [--chunks 1]

For each rate: the send lag as the run reports it, the same as the server saw it (its clock is the
same one; this includes its own lateness), and the processor time of the client.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from nexusbench.core.config import EndpointConfig
from nexusbench.serving.endpoint import connect

SERVER = Path(__file__).parents[1] / "endpoint" / "server.py"


def write_trace(path: Path, rate: float, seconds: float, output: int, seed: int) -> None:
    """Poisson arrivals; prompts of one token."""
    draw, now, lines = random.Random(seed), 0.0, []
    while now < seconds:
        line = {"timestamp": now * 1000, "input_length": 1, "output_length": output}
        lines.append(json.dumps(line))
        now += draw.expovariate(rate)
    path.write_text("\n".join(lines) + "\n")


def measure(rate: float, seconds: float, chunks: int, delay_ms: float, seed: int) -> str:
    """One row of the table."""
    command = [sys.executable, str(SERVER), "--delay-ms", str(delay_ms)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(command, **pipes) as server,  # type: ignore[call-overload]
        tempfile.TemporaryDirectory() as folder,
    ):
        port = int(server.stdout.readline())
        trace = Path(folder) / "null.jsonl"
        # The server takes answers of up to four tokens for probes, and does not log them.
        write_trace(trace, rate, seconds, max(5, chunks), seed)
        config = EndpointConfig(trace=str(trace), endpoint=f"http://127.0.0.1:{port}")
        connected = connect(config)
        replay = connected.replay
        began, used = time.perf_counter(), time.process_time()
        replay.run(lambda: None)
        share = (time.process_time() - used) / (time.perf_counter() - began)
        replay.recording.write()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/log") as answer:
            seen = np.array([when for _, when in json.load(answer)])
        server.terminate()
    log = replay.recording.log.tables
    arrival = np.array(log["arrived"].columns["time"])
    sent = np.array(log["admitted"].columns["time"])
    finished = int((np.array(log["ended"].columns["outcome"]) == 0).sum())
    lag = (sent - arrival) / 1e3
    zero = replay.clock
    offset = time.perf_counter_ns() - zero()
    seen_lag = (np.sort(seen) - offset - np.sort(arrival)) / 1e3
    cells = [f"{np.percentile(lag, q):,.0f}" for q in (50, 90, 99)] + [f"{lag.max():,.0f}"]
    cells += [f"{np.percentile(seen_lag, q):,.0f}" for q in (50, 99)]
    return (
        f"| {rate:g}/s, {chunks} chunk{'s' if chunks > 1 else ''} | {len(lag):,} | {finished:,} | "
        f"{' | '.join(cells)} | {100 * share:.0f} % |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", default="100,1000")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--chunks", type=int, default=1)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print("| load | sent | finished | lag p50, us | p90 | p99 | max | server p50 | p99 | CPU |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for rate in map(float, options.rates.split(",")):
        for seed in range(options.seeds):
            print(
                measure(rate, options.seconds, options.chunks, options.delay_ms, seed), flush=True
            )


if __name__ == "__main__":
    main()
