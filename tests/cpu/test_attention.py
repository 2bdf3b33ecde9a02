"""Both attention backends against float64, on random mixes of chunks and decodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from attending import Case, largest_error, make_run, random_case  # noqa: E402

from nexusbench.kernels import fused  # noqa: E402
from nexusbench.kernels.attention.paged_native import NativeAttention  # noqa: E402
from nexusbench.kernels.attention.sdpa import SdpaAttention  # noqa: E402
from nexusbench.kernels.native import bindings  # noqa: E402
from nexusbench.kernels.paged import HeadShape  # noqa: E402
from nexusbench.kernels.planner import plan_attention  # noqa: E402

TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)
HEADS = HeadShape(8, 2, 64)


def triton_attention(*arguments, **options):
    pytest.importorskip("triton", reason="needs the package triton (extra 'triton')")
    from nexusbench.kernels.attention.paged_triton import TritonAttention

    return TritonAttention(*arguments, precision="ieee", **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(40))
def test_sdpa_on_random_steps(seed: int, dtype: torch.dtype) -> None:
    run = make_run(random_case(seed), dtype, seed, padded_tokens=64)
    assert largest_error(SdpaAttention(run.kv), run) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(40))
def test_native_on_random_steps(seed: int, dtype: torch.dtype) -> None:
    run = make_run(random_case(seed), dtype, seed, padded_tokens=(1 << 40, 64)[seed % 2])
    assert largest_error(NativeAttention(run.kv), run) < TOLERANCE[dtype]


@pytest.mark.parametrize("dim", [32, 64, 96, 128])
def test_a_chunk_keeps_its_bits_however_it_is_cut_and_batched(dim: int) -> None:
    heads = HeadShape(6, 2, dim)
    if not fused.attends_chunks(torch.bfloat16, dim):
        pytest.skip(bindings.note())
    run = make_run(Case([300, 40], [0, 70], heads, 16), torch.bfloat16, 3)
    assert largest_error(NativeAttention(run.kv), run) < TOLERANCE[torch.bfloat16]
    layer = run.kv.layers[0]
    whole = NativeAttention(run.kv).prepare(run.plan).run(run.qkv, layer)
    place = run.plan.order.tolist().index(0)
    start = int(run.plan.query_starts[place])
    blocks = run.plan.blocks[place].tolist()
    for first, last in ((0, 7), (7, 150), (150, 152), (152, 300)):
        plan = plan_attention([last - first], [first], [blocks], 16)
        rows = slice(start + first, start + last)
        part = NativeAttention(run.kv).prepare(plan).run(run.qkv[rows], layer)
        assert torch.equal(part, whole[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sdpa_with_many_buckets(dtype: torch.dtype) -> None:
    lengths = [1, 700, 30, 29, 350, 8, 15, 16, 17, 690, 31, 32]
    run = make_run(Case([1] * 12, lengths, HEADS, 16), dtype, 0, padded_tokens=32)
    assert len(run.plan.decodes) > 3
    assert largest_error(SdpaAttention(run.kv), run) < TOLERANCE[dtype]


def test_sdpa_reuses_its_scratch_from_step_to_step() -> None:
    run = make_run(Case([1, 5, 1], [100, 60, 3], HEADS, 16), torch.float32, 0)
    backend = SdpaAttention(run.kv)
    assert largest_error(backend, run) < 5e-6
    smaller = make_run(Case([3, 1], [7, 20], HEADS, 16), torch.float32, 1)
    assert largest_error(SdpaAttention(smaller.kv), smaller) < 5e-6
    assert largest_error(backend, run) < 5e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_triton_on_random_steps(seed: int, dtype: torch.dtype) -> None:
    run = make_run(random_case(100 + seed, longest=40), dtype, seed)
    backend = triton_attention(run.kv, num_sms=(1, 8, 132)[seed % 3], rows=16, keys=32)
    assert largest_error(backend, run) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_sms", [1, 16])
def test_triton_splits_long_decodes(num_sms: int, dtype: torch.dtype) -> None:
    run = make_run(Case([1, 1, 1], [300, 64, 0], HEADS, 16), dtype, 0)
    backend = triton_attention(run.kv, num_sms=num_sms, keys=64)
    assert largest_error(backend, run) < TOLERANCE[dtype]


def test_triton_prefill_shares_few_programs_among_many_tiles() -> None:
    run = make_run(Case([37, 5, 50], [0, 41, 13], HeadShape(4, 2, 32), 16), torch.float32, 0)
    backend = triton_attention(run.kv, num_sms=1, rows=16, keys=16)
    assert largest_error(backend, run) < 5e-6


@pytest.mark.parametrize(("architecture", "dtype"), [(80, "fp16"), (90, "bf16")])
def test_triton_compiles_for_gpus(architecture: int, dtype: str, tmp_path: Path) -> None:
    """What the interpreter accepts, a compiler need not."""
    pytest.importorskip("triton", reason="needs the package triton (extra 'triton')")
    settings = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compiling.py")
    done = subprocess.run(
        [sys.executable, str(script), str(architecture), dtype],
        env={**os.environ, **settings, "PYTHONPATH": str(script.parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "decode_part",
        "merge_parts",
        "prefill_tiles",
    ]
