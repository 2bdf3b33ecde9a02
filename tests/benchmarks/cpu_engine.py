"""Our decoder loop beside other CPU engines: one model, one run, rounds in turns.

    PYTHONPATH=. python -m tests.benchmarks.cpu_engine [--quick] [--size small --dtype bfloat16 ...]

Ours is what a worker of the CPU device does in every step: block tables, plan, step, forward pass,
sampling. Beside it runs transformers' ``generate``, vLLM's CPU build in process where ``vllm`` is
importable, and llama.cpp where ``llama_cpp`` and ``gguf`` are; each is skipped with a line where it
is not. All read the same random checkpoint, get prompts of 128 tokens and make 64 new ones
(``--new``), greedily. Prefill is the time to everybody's first token, decode the rest. Figures are
medians over rounds; ratios are medians of the rounds' ratios. ``limit`` is the time that the
machine needs to read the weights and keys of a decode step (a loop that only reads), or to multiply
a prefill's matrices at the speed of torch's 2048^3 product, as a share of ours; both measured in
every round.

``--host`` measures what a decode step costs with a model of one small layer instead.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import torch

from nexusbench.kernels.native import bindings, memory
from nexusbench.kernels.planner import BlockTables, plan_attention
from nexusbench.models.architecture import load_decoder_config
from nexusbench.models.decoder import Decoder
from nexusbench.models.sampling import TokenSampling, sample
from nexusbench.models.step import make_step
from tests.benchmarks.cpu_peers import ENGINES, write_checkpoint, write_config

BLOCK, PROMPT, NEW = 16, 128, 64
SIZES = ("small", "larger")
DTYPES = ("bfloat16", "float32")
BATCHES = (1, 8, 32)
PEERS = tuple(engine.name for engine in ENGINES)
READ_BYTES = 256 << 20


class Ours:
    """Prefill in one step, then decode steps, as the CPU device's worker runs them."""

    name = "ours"

    def __init__(self, decoder, most, tokens):
        self.decoder, self.most = decoder, most
        blocks = -(-tokens // BLOCK)
        self.kv = decoder.new_kv(most * blocks, BLOCK)
        self.attention = decoder.new_attention(self.kv)
        # Block by block in turns, as running requests get theirs.
        self.blocks = [list(range(first, most * blocks, most)) for first in range(most)]
        self.tables = BlockTables()

    def step(self, tokens, done):
        """One step of sequences that have computed ``done`` tokens each; their next tokens."""
        batch, size = len(tokens), len(tokens[0])
        keys = range(batch)
        rows = self.tables.rows(keys, self.blocks[:batch])
        plan = plan_attention(
            [size] * batch,
            [done] * batch,
            self.tables.table,
            BLOCK,
            rows=rows,
            padded_tokens=self.attention.padded_tokens,
        )
        step = make_step(plan, tokens, self.attention, self.decoder.config.spec.vocab_size)
        logits = self.decoder.forward(step, self.kv)
        return sample(logits, TokenSampling(), keys, [done + size] * batch)

    def run(self, prompts, new):
        """(seconds of prefill, seconds of ``new`` - 1 decode steps, tokens)."""
        start = time.perf_counter()
        tokens = self.step(prompts, 0)
        middle, made = time.perf_counter(), [tokens]
        for count in range(new - 1):
            tokens = self.step([[token] for token in tokens], len(prompts[0]) + count)
            made.append(tokens)
        end = time.perf_counter()
        return middle - start, end - middle, [list(row) for row in zip(*made, strict=True)]


class Limits:
    """How fast this machine reads and multiplies, now."""

    def __init__(self, dtype, threads):
        self.threads, self.buffer = threads, memory.zeros((READ_BYTES,), torch.uint8).fill_(1)
        self.a, self.b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))

    def measure(self):
        """(bytes per second, operations per second)."""
        functions = bindings.functions()
        if functions is None:
            reading = _seconds(lambda: self.buffer.view(torch.int64).sum())
        else:
            at = self.buffer.data_ptr()
            reading = _seconds(lambda: functions.read(at, READ_BYTES, self.threads))
        return READ_BYTES / reading, 2 * 2048**3 / _seconds(lambda: self.a @ self.b)


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def one_configuration(size, dtype, threads, rounds, new, batches=BATCHES, peers=PEERS):
    """Ours and the peers that can be had, on one model; rounds in turns."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_checkpoint(folder, size, getattr(torch, dtype))
        decoder = Decoder.load(load_decoder_config(folder), dtype=dtype)
        most, tokens = max(batches), PROMPT + new
        engines = [Ours(decoder, most, tokens)]
        for engine in ENGINES:
            if engine.name not in peers:
                continue
            try:
                engines.append(engine(folder, dtype, threads, most, tokens))
            except ImportError as error:
                print(f"without {engine.name}: {error}")
        torch.set_num_threads(threads)  # an engine may have set another number
        print(f"\n{size}, {dtype}, {threads} thread(s); {bindings.note()}", flush=True)
        limits = Limits(getattr(torch, dtype), threads)
        torch.manual_seed(1)
        for batch in batches:
            prompts = torch.randint(0, 32000, (batch, PROMPT)).tolist()
            for engine in engines:  # teams and caches warm up
                engine.run(prompts, 3)
            found, speeds = {engine.name: [] for engine in engines}, []
            for turn in range(rounds):
                speeds.append(limits.measure())
                for engine in engines[turn % len(engines) :] + engines[: turn % len(engines)]:
                    found[engine.name].append(engine.run(prompts, new))
            _report(decoder, batch, new, found, speeds)


def _report(decoder, batch, new, found, speeds):
    spec, itemsize = decoder.config.spec, decoder.dtype.itemsize
    inner = spec.num_parameters - 2 * spec.vocab_size * spec.hidden_size
    kv = spec.num_layers * decoder.heads.kv_size * (PROMPT + new / 2) * batch
    streamed = (inner + spec.vocab_size * spec.hidden_size + kv) * itemsize
    multiplied = 2.0 * (inner * PROMPT + spec.vocab_size * spec.hidden_size) * batch
    for name, times in found.items():
        prefill = batch * PROMPT / statistics.median(t[0] for t in times)
        decode = batch * (new - 1) / statistics.median(t[1] for t in times)
        line = (
            f"batch {batch:>2}  {name:<12} prefill {prefill:>7,.0f}  decode {decode:>6,.0f} tok/s"
        )
        if name == "ours":
            reads = [
                streamed * (new - 1) / r / t[1] for (r, _), t in zip(speeds, times, strict=True)
            ]
            gemm = [multiplied / g / t[0] for (_, g), t in zip(speeds, times, strict=True)]
            line += f"  limit {statistics.median(gemm):.2f} {statistics.median(reads):.2f}"
            read, rate = (statistics.median(each) / 1e9 for each in zip(*speeds, strict=True))
            line += f"  ({read:.0f} GB/s, {rate:,.0f} GFLOP/s)"
        else:
            line += "  ours / it"
            for part in (0, 1):
                ratios = [t[part] / o[part] for t, o in zip(times, found["ours"], strict=True)]
                line += f" {statistics.median(ratios):5.2f}x"
            same = [
                mine == theirs
                for t, o in zip(times[:1], found["ours"], strict=False)
                for left, right in zip(o[2], t[2], strict=True)
                for mine, theirs in zip(left, right, strict=True)
            ]
            line += f"  equal tokens {sum(same) / len(same):.2f}"
        print(line, flush=True)


def host_cost(threads, context):
    """Microseconds of a decode step with one small layer."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), "layer")
        config = load_decoder_config(folder)
        decoder = Decoder.load(config, dtype="bfloat16", load_format="dummy")
    for batch in (1, 32, 256):
        ours, times = Ours(decoder, batch, context + 1), []
        for _ in range(300):
            times.append(_seconds(lambda ours=ours, batch=batch: ours.step([[1]] * batch, context)))
        took = statistics.median(times[20:]) * 1e6
        print(
            f"one layer, {threads} thread(s), context {context}, batch {batch}: {took:,.0f} us a "
            f"step, {took / batch:.2f} us a token",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--batch", type=int, action="append", help="default: 1, 8, 32")
    parser.add_argument("--peer", choices=PEERS, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=NEW, help="tokens that every request makes")
    parser.add_argument("--quick", action="store_true", help="small model, bf16, 3 rounds of 16")
    parser.add_argument("--host", action="store_true", help="a step's cost with one small layer")
    parser.add_argument("--context", type=int, default=128, help="of --host")
    chosen = parser.parse_args()
    if chosen.host:
        for threads in chosen.threads or (1, 2):
            host_cost(threads, chosen.context)
        return
    rounds, new = (3, 16) if chosen.quick else (chosen.rounds, chosen.new)
    sizes = chosen.size or (("small",) if chosen.quick else SIZES)
    dtypes = chosen.dtype or (("bfloat16",) if chosen.quick else DTYPES)
    every = list(product(sizes, dtypes, chosen.threads or (1, 2)))
    batches, peers = chosen.batch or BATCHES, chosen.peer or PEERS
    if len(every) == 1:
        one_configuration(*every[0], rounds, new, batches, peers)
        return
    for size, dtype, threads in every:
        # A process for each: engines take their number of threads from the environment, once.
        command = [sys.executable, "-m", "tests.benchmarks.cpu_engine", "--size", size]
        command += ["--dtype", dtype, "--threads", str(threads)]
        command += ["--rounds", str(rounds), "--new", str(new)]
        for name, values in (("--batch", batches), ("--peer", peers)):
            command += [part for value in values for part in (name, str(value))]
        command += ["--quick"] if chosen.quick else []
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True)


if __name__ == "__main__":
    main()
