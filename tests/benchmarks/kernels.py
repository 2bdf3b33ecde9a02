"""Linear layers beside torch's, and beside what the machine can do, all in one run.

    PYTHONPATH=. python tests/benchmarks/kernels.py [--dtype bf16] [--threads 2] [--step]

Weights are those of a whole model (hidden 1024, 16 layers, mlp 3072: 226 M parameters), each used
once per round, so they come from memory as in decode. Rounds of all contenders are interleaved;
figures are medians. ``read`` is a loop that only reads, ``GEMM`` torch's best 2048^3 product.
``--step`` times whole decode steps beside transformers' instead (batch 1, 8, 32, context 128).
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from nexusbench.kernels.linear import LinearLayer
from nexusbench.kernels.native import bindings

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SIZES = {"large": (1024, 16, 16, 4, 3072), "small": (512, 8, 8, 2, 1536)}
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def medians(contenders, rounds):
    """Seconds of each contender, interleaved."""
    times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            times[name].append(seconds(function))
    return {name: statistics.median(values) for name, values in times.items()}


def model_weights(size, dtype):
    """The weights of a whole model, without embeddings."""
    hidden, layers, heads, kv_heads, inner = SIZES[size]
    head_dim = hidden // heads
    shapes = (
        ((heads + 2 * kv_heads) * head_dim, hidden),
        (hidden, hidden),
        (2 * inner, hidden),
        (hidden, inner),
    )
    return [torch.randn(*shape).to(dtype) * 0.02 for _ in range(layers) for shape in shapes]


def prepacked(weights, rows):
    """oneDNN's layout for this number of rows: what torch.compile and vLLM use in bf16."""
    return [torch.ops.mkldnn._reorder_linear_weight(w, rows) for w in weights]


def contenders_for(weights, ours, rows, dtype):
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1]).to(dtype) for w in weights}

    def torch_linear():
        for w in weights:
            torch.nn.functional.linear(inputs[w.shape[1]], w)

    def transposed():
        for w in weights:
            (w @ inputs[w.shape[1]].t()).t()

    def native():
        for linear in ours:
            linear(inputs[linear.in_features])

    found = {"ours": native, "F.linear": torch_linear, "(w x')'": transposed}
    try:
        packed = prepacked(weights, rows)
        run = torch.ops.mkldnn._linear_pointwise

        def onednn():
            for w, p in zip(weights, packed, strict=True):
                run(inputs[w.shape[1]], p, None, "none", [], "")

        onednn()
    except (RuntimeError, AttributeError) as error:
        print(f"no prepacked oneDNN for {rows} rows: {str(error).splitlines()[0][:80]}")
    else:
        found["oneDNN packed"] = onednn
    return found


def reading(functions, size, threads):
    """A function that reads as many bytes as the weights have."""
    buffer = torch.zeros(size // 256 * 256, dtype=torch.uint8)
    return lambda: functions.read(buffer.data_ptr(), buffer.numel(), threads)


def compare_linears(dtype_name, threads, size, rounds):
    dtype, functions = DTYPES[dtype_name], bindings.functions()
    torch.set_num_threads(threads)
    weights = model_weights(size, dtype)
    ours = [LinearLayer(w) for w in weights]
    elements = sum(w.numel() for w in weights)
    total = elements * weights[0].element_size()
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    gemm = 2 * 2048**3 / min(seconds(lambda: a @ b) for _ in range(6)) / 1e9
    print(f"\n{size} {dtype_name}, {threads} thread(s), {total / 1e6:.0f} MB of weights")
    print(f"{bindings.note()}; GEMM {gemm:.0f} GFLOP/s")
    for rows in ROWS:
        contenders = contenders_for(weights, ours, rows, dtype)
        if functions is not None:
            contenders = {"read": reading(functions, total, threads), **contenders}
        took = medians(contenders, rounds if rows <= 64 else max(2, rounds // 2))
        cells = [
            f"{name} {total / t / 1e9:5.1f} GB/s {2 * rows * elements / t / 1e9:5.0f} GFLOP/s"
            f" (ours x{t / took['ours']:.2f})"
            if name not in ("read", "ours")
            else f"{name} {total / t / 1e9:5.1f} GB/s"
            + (f" {2 * rows * elements / t / 1e9:5.0f} GFLOP/s" if name == "ours" else "")
            for name, t in took.items()
        ]
        print(f"M={rows:<4}" + " | ".join(cells), flush=True)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=[*DTYPES, "both"], default="both")
    parser.add_argument("--threads", type=int, default=0, help="default: 1 and 2")
    parser.add_argument("--size", choices=list(SIZES), default="large")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", action="store_true", help="whole decode steps")
    chosen = parser.parse_args()
    for dtype in DTYPES if chosen.dtype == "both" else (chosen.dtype,):
        for threads in (chosen.threads,) if chosen.threads else (1, 2):
            if chosen.step:
                from tests.benchmarks.decode_step import compare_steps

                compare_steps(DTYPES[dtype], threads, SIZES[chosen.size], chosen.rounds)
            else:
                compare_linears(dtype, threads, chosen.size, chosen.rounds)


if __name__ == "__main__":
    main()
