"""Kernels on a GPU beside what the GPU can do, and beside torch's own attention, all in one run.

    python -m tests.benchmarks.gpu_kernels [--quick] [--tune] [--output FILE.json]

Shapes are Llama-3.1-8B's in bf16. Ceilings are a copy (bytes read and written) and an 8192^3 GEMM,
measured first on the same SMs. Times are of captured graphs, so that no launch counts, medians of
five rounds; each call reads other memory than the one before, so that L2 holds no answer. The work
is counted from shapes: bytes of keys and values, FLOPs of what a causal mask leaves. Exit code 2
says what this machine lacks.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import gpu_work as work
from tests.gpu import machine

ROUNDS = 5
ROUND_MS = 20.0
BLOCK = 16
DEVICE = "cuda"
COPY_VALUES, GEMM_SIDE = 1 << 29, 8192
RING_BYTES = 256 << 20  # several times the L2 of any GPU
DECODES = tuple(itertools.product((1, 8, 32, 64, 128, 256), (1024, 4096, 16384)))
PREFILLS = ((512, 0), (2048, 0), (8192, 0), (2048, 4096), (2048, 16384))
RAGGED = [1000] * 31 + [60_000]
ROWS = (1, 16, 64, 256, 2048, 8192)
QUICK_DECODES, QUICK_PREFILLS, QUICK_ROWS = ((1, 4096), (64, 4096)), ((2048, 0),), (64, 2048)
TARGET_DECODE, TARGET_PREFILL = (64, 4096), (8192, 0)


def ring(size: int) -> int:
    """How many buffers of ``size`` bytes to use in turn."""
    return max(1, -(-RING_BYTES // size))


class Bench:
    """Times functions on one set of SMs and keeps a row for each."""

    def __init__(self, torch: Any, side: Any, num_sms: int, rows: list[dict[str, Any]]) -> None:
        self.torch, self.side, self.num_sms, self.rows = torch, side, num_sms, rows
        self.place = "all" if side is None else side.partition
        self.ceilings: dict[str, float] = {}

    @functools.cached_property
    def stream(self) -> Any:
        """One for all rows: each stream costs a cuBLAS workspace."""
        return self.torch.cuda.Stream() if self.side is None else self.side.stream

    def ms(self, call: Callable[[], object]) -> tuple[float, str]:
        """Milliseconds of one call, and how it was launched (``graph``, or ``eager`` and why)."""
        torch = self.torch
        torch.cuda.synchronize()  # operands were made on another stream
        stream = self.stream
        with torch.cuda.stream(stream):
            once = self._elapsed(stream, call, 3) / 3  # compiles, fills caches
            once = self._elapsed(stream, call, 3) / 3
            count = max(3, min(200, int(ROUND_MS / max(once, 1e-3))))
            launch, how = self._captured(stream, call, count)
            self._elapsed(stream, launch, 1)
            times = [self._elapsed(stream, launch, 1) / count for _ in range(ROUNDS)]
        return statistics.median(times), how

    def _captured(
        self, stream: Any, call: Callable[[], object], count: int
    ) -> tuple[Callable[[], object], str]:
        def eagerly() -> None:
            for _ in range(count):
                call()

        graph = self.torch.cuda.CUDAGraph()
        try:
            with self.torch.cuda.graph(graph, stream=stream):
                eagerly()
        except RuntimeError as error:
            return eagerly, f"eager: {str(error).splitlines()[0][:60]}"
        return graph.replay, "graph"

    def _elapsed(self, stream: Any, call: Callable[[], object], count: int) -> float:
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        for _ in range(count):
            call()
        end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end))

    def row(self, kernel: str, case: str, done: work.Work, call: Callable[[], object]) -> float:
        """Measure, keep and print; returns milliseconds."""
        ms, how = self.ms(call)
        gbps, tflops = done.gbps(ms), done.tflops(ms)
        row = {
            "sms": self.num_sms, "partition": self.place, "kernel": kernel, "case": case,
            "ms": ms, "gbps": gbps, "tflops": tflops, "launched": how,
        }  # fmt: skip
        copy, gemm = self.ceilings.get("copy_gbps"), self.ceilings.get("gemm_tflops")
        if copy and gemm:
            row |= {"of_copy": gbps / copy, "of_gemm": tflops / gemm}
        self.rows.append(row)
        shares = f"{row['of_copy']:6.1%} {row['of_gemm']:6.1%}" if "of_copy" in row else ""
        print(
            f"{self.place:>7} {self.num_sms:4} {kernel:<14} {case:<16} {ms:9.4f} {gbps:8.0f} "
            f"{tflops:7.1f} {shares}{'' if how == 'graph' else ' ' + how}",
            flush=True,
        )
        return ms

    def measure_ceilings(self) -> None:
        """Copy bandwidth and GEMM rate of these SMs."""
        torch = self.torch
        source = torch.randn(COPY_VALUES, device=DEVICE, dtype=torch.bfloat16)
        target = torch.empty_like(source)
        done = work.copy(COPY_VALUES, 2)
        ms = self.row("copy", f"{2 * COPY_VALUES >> 20} MiB", done, lambda: target.copy_(source))
        self.ceilings["copy_gbps"] = done.gbps(ms)
        torch.cuda.empty_cache()
        side = GEMM_SIDE
        a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(a)
        done = work.dense(side, side, side)
        ms = self.row("GEMM", f"{side}^3", done, lambda: torch.mm(a, b, out=out))
        self.ceilings["gemm_tflops"] = done.tflops(ms)


def attention_call(
    bench: Bench, query: list[int], context: list[int], **tiles: Any
) -> Callable[[], object]:
    """Our kernels on a shuffled pool; one call is one layer, each of other memory."""
    torch = bench.torch
    from nexusbench.kernels.attention.paged_triton import TritonAttention
    from nexusbench.kernels.paged import HeadShape, PagedKV
    from nexusbench.kernels.planner import plan_attention

    heads = HeadShape(*work.HEADS)
    needed = [-(-(q + c) // BLOCK) for q, c in zip(query, context, strict=True)]
    places = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(0)).tolist()
    tables = [[places.pop() for _ in range(count)] for count in needed]
    size = sum(needed) * BLOCK * heads.kv_size * 2
    kv = PagedKV(ring(size), sum(needed), BLOCK, heads, torch.bfloat16, DEVICE)
    for layer in kv.layers:
        layer.tensor.normal_()
    qkv = torch.randn(sum(query), heads.qkv_size, device=DEVICE, dtype=torch.bfloat16)
    prepared = TritonAttention(kv, bench.num_sms, **tiles).prepare(
        plan_attention(query, context, tables, BLOCK)
    )
    layers = itertools.cycle(kv.layers)
    return lambda: prepared.run(qkv, next(layers))


def sdpa_call(bench: Bench, batch: int, count: int, context: int) -> Callable[[], object]:
    """torch's attention on contiguous keys and values, which an engine with pages does not have."""
    torch, (heads, kv_heads, size) = bench.torch, work.HEADS
    from torch.nn.attention.bias import causal_lower_right
    from torch.nn.functional import scaled_dot_product_attention

    length = count + context
    total = 2 * batch * kv_heads * length * size * 2
    shape = (2, batch, kv_heads, length, size)
    turn = itertools.cycle(
        [torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for _ in range(ring(total))]
    )
    if count == 1:  # a group's heads as rows of one matrix; nothing to mask
        query = torch.randn(
            batch, kv_heads, heads // kv_heads, size, device=DEVICE, dtype=torch.bfloat16
        )
        return lambda: scaled_dot_product_attention(query, *next(turn))
    query = torch.randn(batch, heads, count, size, device=DEVICE, dtype=torch.bfloat16)
    if context == 0:
        return lambda: scaled_dot_product_attention(
            query, *next(turn), is_causal=True, enable_gqa=True
        )
    mask = causal_lower_right(count, length)
    return lambda: scaled_dot_product_attention(query, *next(turn), attn_mask=mask, enable_gqa=True)


def flex_call(bench: Bench, batch: int, count: int) -> Callable[[], object]:
    """FlexAttention, compiled, on contiguous keys and values."""
    torch, (heads, kv_heads, size) = bench.torch, work.HEADS
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    queries, length = (1, TARGET_DECODE[1]) if count == 1 else (count, count)
    query = torch.randn(batch, heads, queries, size, device=DEVICE, dtype=torch.bfloat16)
    keys, values = (
        torch.randn(batch, kv_heads, length, size, device=DEVICE, dtype=torch.bfloat16)
        for _ in range(2)
    )
    mask = None
    if count > 1:
        mask = flex.create_block_mask(
            lambda b, h, q, k: q >= k, None, None, queries, length, device=DEVICE
        )
    compiled = torch.compile(flex.flex_attention)
    return lambda: compiled(query, keys, values, block_mask=mask, enable_gqa=True)


def compared(bench: Bench, case: str, done: work.Work, make: dict[str, Callable[[], Any]]) -> None:
    """A row for each contender; one that cannot run says so and costs only its own row."""
    for name, made in make.items():
        try:
            bench.row(name, case, done, made())
        except Exception as error:
            text = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            bench.rows.append(
                {"sms": bench.num_sms, "partition": bench.place, "kernel": name, "case": case,
                 "error": text}
            )  # fmt: skip
            print(f"{bench.place:>7} {bench.num_sms:4} {name:<14} {case:<16} failed: {text}")
        bench.torch.cuda.empty_cache()


def decodes(bench: Bench, cases: Any, *, peers: bool) -> None:
    for batch, context in cases:
        make = {"decode": lambda b=batch, c=context: attention_call(bench, [1] * b, [c - 1] * b)}
        if peers:
            make["SDPA decode"] = lambda b=batch, c=context: sdpa_call(bench, b, 1, c - 1)
        if peers and (batch, context) == TARGET_DECODE:
            make["Flex decode"] = lambda b=batch: flex_call(bench, b, 1)
        compared(bench, f"{batch} x {context}", work.decode(batch, context), make)
    if peers:  # one long context among short ones: where equal shares of keys pay
        before = [length - 1 for length in RAGGED]
        ragged = {"decode": lambda: attention_call(bench, [1] * len(before), before)}
        compared(bench, "ragged", work.decode_of(RAGGED), ragged)


def prefills(bench: Bench, cases: Any, *, peers: bool) -> None:
    for count, context in cases:
        make = {"prefill": lambda n=count, c=context: attention_call(bench, [n], [c])}
        if peers:
            make["SDPA prefill"] = lambda n=count, c=context: sdpa_call(bench, 1, n, c)
        if peers and (count, context) == TARGET_PREFILL:
            make["Flex prefill"] = lambda n=count: flex_call(bench, 1, n)
        compared(bench, f"{count} after {context}", work.prefill(count, context), make)


def dense(bench: Bench, rows: Any) -> None:
    torch = bench.torch
    from nexusbench.kernels.linear import LinearLayer

    for name, (outputs, inputs) in work.LAYERS.items():
        layers = [
            LinearLayer(torch.randn(outputs, inputs, device=DEVICE, dtype=torch.bfloat16) * 0.02)
            for _ in range(ring(2 * outputs * inputs))
        ]
        for tokens in rows:
            x = torch.randn(tokens, inputs, device=DEVICE, dtype=torch.bfloat16)
            turn = itertools.cycle(layers)
            done = work.dense(tokens, outputs, inputs)
            compared(
                bench, f"{name} {tokens}", done,
                {"dense": lambda x=x, turn=turn: lambda: next(turn)(x)},
            )  # fmt: skip
        del layers


def tune(bench: Bench) -> None:
    """Other rows for ``nexusbench.kernels.attention.tuning``: the fastest belongs there."""
    from nexusbench.kernels.attention.tuning import DecodeTile, PrefillTile

    for keys, warps, stages, together in itertools.product(
        (32, 64, 128), (4, 8), (3, 5, 7), (2, 3)
    ):
        tile = DecodeTile(keys, warps, stages, together)
        label = {f"d{keys},{warps},{stages},{together}": lambda t=tile: attention_call(
            bench, [1] * 64, [4095] * 64, decode=t
        )}  # fmt: skip
        compared(bench, "64 x 4096", work.decode(64, 4096), label)
    for rows, keys, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (3, 5)):
        if rows == 128 and warps == 4:
            continue  # 255 registers, and more in memory
        tile = PrefillTile(rows, keys, warps, stages)
        label = {f"p{rows},{keys},{warps},{stages}": lambda t=tile: attention_call(
            bench, [8192], [0], prefill=(t, t)
        )}  # fmt: skip
        compared(bench, "8192 after 0", work.prefill(8192, 0), label)


def on_partitions(torch: Any, rows: list[dict[str, Any]], at_most: int) -> str | None:
    """Both sides of some splits, each alone, against ceilings of their own SMs."""
    lacking = machine.missing_for_partitions()
    if lacking is not None:
        return lacking
    opened = machine.partitions()
    for split in machine.disjoint_splits(opened, at_most):
        for name, side in opened.streams(split).items():
            bench = Bench(torch, side, side.sms, rows)
            bench.measure_ceilings()
            if name == "prefill":
                prefills(bench, QUICK_PREFILLS, peers=False)
                dense(bench, (2048,))
            else:
                decodes(bench, QUICK_DECODES, peers=False)
                dense(bench, (64,))
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few cases, three splits")
    parser.add_argument("--tune", action="store_true", help="time other tiles instead")
    parser.add_argument("--no-partitions", action="store_true", help="all SMs only")
    parser.add_argument("--output", type=Path, help="write the rows as JSON")
    chosen = parser.parse_args()
    lacking = machine.missing()
    if lacking is not None:
        print(f"gpu_kernels needs an NVIDIA GPU: {lacking}", file=sys.stderr)
        return 2
    import torch

    rows: list[dict[str, Any]] = []
    print(json.dumps(machine.identity()))
    print(f"{'on':>7} {'SMs':>4} {'kernel':<14} {'case':<16} {'ms':>9} {'GB/s':>8} {'TFLOP/s':>7} "
          "of copy, of GEMM")  # fmt: skip
    skipped = None
    with torch.inference_mode():
        bench = Bench(torch, None, int(machine.identity()["num_sms"]), rows)
        bench.measure_ceilings()
        if chosen.tune:
            tune(bench)
        else:
            decodes(bench, QUICK_DECODES if chosen.quick else DECODES, peers=True)
            prefills(bench, (*QUICK_PREFILLS, TARGET_PREFILL) if chosen.quick else PREFILLS,
                     peers=True)  # fmt: skip
            dense(bench, QUICK_ROWS if chosen.quick else ROWS)
            if not chosen.no_partitions:
                skipped = on_partitions(torch, rows, 3 if chosen.quick else 8)
    found = {
        "identity": machine.identity(), "ceilings": bench.ceilings, "rows": rows,
        "targets": [] if chosen.tune else work.targets(rows), "partitions_skipped": skipped,
    }  # fmt: skip
    for target in found["targets"]:
        print(f"{'met' if target['met'] else 'MISSED':<7} {target['what']}: {target['found']}")
    if skipped is not None:
        print(f"no partitions: {skipped}", file=sys.stderr)
    if chosen.output is not None:
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
        chosen.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
