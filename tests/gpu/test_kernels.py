"""Compiled kernels against float64, on all SMs and on a partition's, and in a real graph."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[1] / "cpu"))

from attending import Case, Run, make_run, random_case  # noqa: E402

from nexusbench.kernels.paged import HeadShape, PagedKV  # noqa: E402
from tests.gpu import machine  # noqa: E402

# Relative to float64 on the same rounded inputs; bf16 rounds weights and results to 8 bits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
DTYPES = list(TOLERANCE)
LLAMA = HeadShape(32, 8, 128)


def on_gpu(run: Run) -> tuple[PagedKV, Any]:
    """The run's pool and rows on the GPU."""
    layer = run.kv.layers[0].tensor
    kv = PagedKV(1, len(layer), layer.shape[1], run.kv.heads, layer.dtype, machine.DEVICE)
    kv.layers[0].tensor.copy_(layer)
    return kv, run.qkv.to(machine.DEVICE)


def largest_error(run: Run, num_sms: int, side: Any = None, **options: Any) -> float:
    from nexusbench.kernels.attention.paged_triton import TritonAttention

    kv, qkv = on_gpu(run)
    torch.cuda.synchronize()
    with torch.inference_mode(), machine.on(side):
        backend = TritonAttention(kv, num_sms, **options)
        found = backend.prepare(run.plan).run(qkv, kv.layers[0])
    torch.cuda.synchronize()
    assert found.dtype == run.qkv.dtype
    return float((found.double().cpu() - run.expected).abs().max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(10))
def test_attention_on_random_steps(seed: int, dtype: Any) -> None:
    run = make_run(random_case(seed, longest=300), dtype, seed)
    assert largest_error(run, (1, 16, 132)[seed % 3]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_of_a_real_model_on_every_size_of_partition(dtype: Any, partitions: Any) -> None:
    case = Case([1, 900, 1, 1, 130], [5000, 0, 17, 1200, 700], LLAMA, 16)
    run = make_run(case, dtype, 0)
    assert largest_error(run, partitions.num_sms, partitions.whole) < TOLERANCE[dtype]
    for split in machine.disjoint_splits(partitions, 3):
        for side in partitions.streams(split).values():
            assert largest_error(run, side.sms, side) < TOLERANCE[dtype], side.sms


def test_a_captured_step_follows_the_plans_it_is_given(partitions: Any) -> None:
    from nexusbench.kernels.attention.paged_triton import TritonAttention

    side = partitions.streams(machine.disjoint_splits(partitions, 3)[1])["decode"]
    runs = [
        make_run(Case([1] * len(lengths), lengths, LLAMA, 16), torch.bfloat16, len(lengths))
        for lengths in ([2000, 30, 700, 1], [5], [40] * 8)
    ]
    most = max(len(run.kv.layers[0].tensor) for run in runs)
    kv = PagedKV(1, most, 16, LLAMA, torch.bfloat16, machine.DEVICE)
    rows = torch.zeros(8, LLAMA.qkv_size, device=machine.DEVICE, dtype=torch.bfloat16)
    torch.cuda.synchronize()
    with torch.inference_mode(), torch.cuda.stream(side.stream):
        backend = TritonAttention(kv, side.sms)
        fixed = backend.fixed(8, 256)
        fixed.run(rows, kv.layers[0])  # compiled before it is captured
        side.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        out = fixed.run(rows, kv.layers[0])
        graph.capture_end()
        for run in runs:
            count = len(run.qkv)
            kv.layers[0].tensor[: len(run.kv.layers[0].tensor)] = run.kv.layers[0].tensor.to(
                machine.DEVICE
            )
            rows[:count] = run.qkv.to(machine.DEVICE)
            fixed.update(run.plan)
            graph.replay()
            side.stream.synchronize()
            error = (out[:count].double().cpu() - run.expected).abs().max()
            assert float(error) < TOLERANCE[torch.bfloat16]


def test_nothing_is_compiled_after_the_warm_up() -> None:
    """A kernel compiled in the middle of a run costs seconds."""
    from nexusbench.kernels.attention import triton_decode, triton_prefill
    from nexusbench.kernels.attention.paged_triton import TritonAttention

    kernels = (
        triton_decode.decode_segments, triton_decode.merge_segments, triton_prefill.prefill_rows,
    )  # fmt: skip
    kv = PagedKV(1, 4096, 16, LLAMA, torch.bfloat16, machine.DEVICE)
    backend = TritonAttention(kv, 64)
    backend.warm_up()
    before = [_variants(kernel) for kernel in kernels]
    assert min(before) > 0
    cases = ([1, 1], [40, 3]), ([1], [9000]), ([700, 5], [16, 0]), ([64], [1]), ([1500, 1], [7, 50])
    for query, context in cases:
        run = make_run(Case(query, context, LLAMA, 16), torch.bfloat16, 0)
        backend.prepare(run.plan).run(run.qkv.to(machine.DEVICE), kv.layers[0])
    assert [_variants(kernel) for kernel in kernels] == before


def _variants(kernel: Any) -> int:
    """Compiled forms of a kernel that this process holds, on this device."""
    caches = kernel.device_caches[torch.cuda.current_device()]
    return len(caches[0])


@pytest.mark.parametrize("tokens", [1, 64, 2048])
def test_dense_layers_are_right_in_bfloat16(tokens: int) -> None:
    from nexusbench.kernels.linear import LinearLayer

    weight = (torch.randn(1536, 4096) * 0.02).bfloat16()
    x = torch.randn(tokens, 4096).bfloat16()
    found = LinearLayer(weight.to(machine.DEVICE))(x.to(machine.DEVICE)).cpu().double()
    expected = x.double() @ weight.double().t()
    assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())
