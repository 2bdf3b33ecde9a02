"""What partitions of a CPU cost each other: kernels beside kernels, prefill beside decode.

    python tests/benchmarks/contention.py [--rounds 12] [--others 0.05]

Two workers of the CPU device, each pinned to its half of the cores, run a piece of work alone and
beside the other one, in turns. A round counts only if other processes used less than ``--others``
of the machine during it (psutil). Where a half is one core the work is timed by its thread's
processor time: what other processes take away by running on that core is not in it, what a
neighbour takes away by using memory is. Printed are medians and 95 % intervals of the mean
slow-down, 1.00 being none; exit code 1 if copying beside copying costs less than 1.3, which would
mean that partitions do not run at the same time, 2 if the machine was never quiet enough.
"""

from __future__ import annotations

import argparse
import os
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from nexusbench.core.batch import Batch, BatchShape, Chunk
from nexusbench.core.machine import processor_name, usable_cores
from nexusbench.core.request import Request
from nexusbench.devices._cpu_workers import Seat, take
from nexusbench.devices._executor import Served, StepRunner
from nexusbench.devices._prompts import Prompts
from nexusbench.devices.base import Serving
from nexusbench.metrics.summary import interval
from nexusbench.models.architecture import load_decoder_config
from nexusbench.models.decoder import Decoder

Work = Callable[[], object]
PATIENCE = 4  # rounds tried for each one wanted
SPAN_S = 0.8  # a measurement repeats its work for so long
LEAST_COPY = 1.3


class Bench:
    """A pinned thread that repeats what it is given until told to stop."""

    def __init__(self, cores: tuple[int, ...]) -> None:
        self._jobs: queue.SimpleQueue[tuple[Work, threading.Event, list[float]] | None] = (
            queue.SimpleQueue()
        )
        self._done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(cores,), daemon=True)
        self._thread.start()

    def begin(self, work: Work, stop: threading.Event) -> list[float]:
        times: list[float] = []
        self._jobs.put((work, stop, times))
        return times

    def end(self) -> None:
        self._done.get()

    def _run(self, cores: tuple[int, ...]) -> None:
        take(Seat("bench", cores))
        clock = time.thread_time if len(cores) == 1 else time.perf_counter
        with torch.inference_mode():
            while (job := self._jobs.get()) is not None:
                work, stop, times = job
                work()
                while not stop.is_set():
                    start = clock()
                    work()
                    times.append(clock() - start)
                self._done.put(None)


def busy_elsewhere() -> Callable[[], float]:
    """Starts a span; the result says which share of the machine others used since."""
    import psutil

    def used() -> tuple[float, float, float]:
        cpu, own = psutil.cpu_times(), psutil.Process().cpu_times()
        working = sum(cpu) - cpu.idle - getattr(cpu, "iowait", 0.0)
        return time.perf_counter(), working, own.user + own.system

    begin = used()

    def share() -> float:
        end = used()
        others = (end[1] - begin[1]) - (end[2] - begin[2])
        return others / ((end[0] - begin[0]) * (os.cpu_count() or 1))

    return share


def measure(benches: tuple[Bench, Bench], works: tuple[Work | None, Work | None]) -> list[float]:
    """Mean seconds of each work, both repeated for the same span; 0 for none, or none in time."""
    stop = threading.Event()
    running = [
        (bench, bench.begin(work, stop))
        for bench, work in zip(benches, works, strict=True)
        if work is not None
    ]
    time.sleep(SPAN_S)
    stop.set()
    for bench, _ in running:
        bench.end()
    found = [statistics.fmean(times) if times else 0.0 for _, times in running]
    return [found.pop(0) if work is not None else 0.0 for work in works]


def compare(
    benches: tuple[Bench, Bench], works: tuple[Work, Work], rounds: int, others: float
) -> tuple[list[list[float]], int]:
    """Slow-downs of both sides, one per accepted round, and how many rounds were rejected."""
    found: list[list[float]] = [[], []]
    rejected = 0
    for _ in range(PATIENCE * rounds):
        if len(found[0]) == rounds:
            break
        share = busy_elsewhere()
        alone = [measure(benches, (works[0], None))[0], measure(benches, (None, works[1]))[1]]
        beside = measure(benches, works)
        # No time: other processes let it not finish even once.
        if share() > others or not all((*alone, *beside)):
            rejected += 1
            continue
        for side in (0, 1):
            found[side].append(beside[side] / alone[side])
    return found, rejected


def copier() -> Work:
    source, target = torch.ones(2, 1 << 26)  # 256 MiB each: no cache of a core holds them
    return lambda: target.copy_(source)


def multiplier(dtype: torch.dtype) -> Work:
    a = torch.ones(1024, 1024, dtype=dtype)
    return lambda: a @ a


def launches(model: str) -> tuple[Work, Work]:
    """A prompt of 512 tokens, and a decode step of 16 requests with 512 tokens each."""
    decoder = Decoder.load(load_decoder_config(model))
    serving = Serving(num_blocks=2048, block_size=16)
    vocab = decoder.config.spec.vocab_size
    served = Served(decoder, decoder.new_kv(2048, 16), Prompts(serving, vocab))
    blocks = iter(range(2048))

    def request(index: int) -> Request:
        made = Request(str(index), index, 0, 512, 64, 576)
        made.blocks = [next(blocks) for _ in range(36)]
        made.num_tokens = 512
        return made

    prompt, decoding = request(0), [request(1 + index) for index in range(16)]
    prefill = Batch("prefill", [], [Chunk(prompt, 512, 0)], BatchShape(0, 0, ((512, 0),)))
    decode = Batch("decode", decoding, [], BatchShape(16, 16 * 511))
    runners = StepRunner(served), StepRunner(served)

    def run(runner: StepRunner, batch: Batch) -> Work:
        def work() -> None:
            runner.run(0, batch, lambda output: None)
            for one in (prompt, *decoding):
                if len(known := served.prompts.known(one)) > 512:
                    del known[512:]

        return work

    return run(runners[0], prefill), run(runners[1], decode)


def main() -> int:
    """Print a line per pair of works."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--others", type=float, default=0.05)
    asked = parser.parse_args()
    sys.setswitchinterval(1e-4)
    cores = usable_cores()
    half = len(cores) // 2
    if not half:
        print("one core has no two halves", file=sys.stderr)
        return 2
    benches = Bench(cores[:half]), Bench(cores[half:])
    print(f"{processor_name()}, {half} + {len(cores) - half} cores, torch {torch.__version__}")
    pairs: list[tuple[str, tuple[Work, Work]]] = [
        ("copy 256 MiB | copy 256 MiB", (copier(), copier())),
        ("GEMM fp32 | copy 256 MiB", (multiplier(torch.float32), copier())),
        ("GEMM bf16 | copy 256 MiB", (multiplier(torch.bfloat16), copier())),
        ("GEMM bf16 | GEMM bf16", (multiplier(torch.bfloat16), multiplier(torch.bfloat16))),
        ("prefill 512 | decode 16 x 512, small", launches("small")),
        ("prefill 512 | decode 16 x 512, tiny", launches("tiny")),
    ]
    worst = None
    for position, (name, works) in enumerate(pairs):
        sides, rejected = compare(benches, works, asked.rounds, asked.others)
        if len(sides[0]) < 2:
            print(f"{name:<40} the machine was never quiet: {rejected} rounds rejected")
            continue
        told = []
        for values in sides:
            found = interval(values)
            told.append(
                f"{statistics.median(values):5.2f} (mean {found.mean:.2f}, "
                f"{found.low:.2f} to {found.high:.2f})"
            )
        print(f"{name:<40} {' | '.join(told)}   n {len(sides[0])}, rejected {rejected}", flush=True)
        if not position:
            worst = min(statistics.median(values) for values in sides)
    return 2 if worst is None else int(worst < LEAST_COPY)


if __name__ == "__main__":
    sys.exit(main())
