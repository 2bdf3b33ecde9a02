"""Both attention backends against float64, on random mixes of chunks and decodes."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples import sample, slow

torch = pytest.importorskip("torch")

from attending import Case, largest_error, make_run, random_case  # noqa: E402

from nexusbench.core.errors import NexusbenchError  # noqa: E402
from nexusbench.kernels import fused  # noqa: E402
from nexusbench.kernels.attention import tuning  # noqa: E402
from nexusbench.kernels.attention.paged_native import NativeAttention  # noqa: E402
from nexusbench.kernels.attention.sdpa import SdpaAttention  # noqa: E402
from nexusbench.kernels.attention.tuning import DecodeTile, PrefillTile  # noqa: E402
from nexusbench.kernels.native import bindings  # noqa: E402
from nexusbench.kernels.paged import HeadShape, LayerKV, PagedKV  # noqa: E402
from nexusbench.kernels.planner import plan_attention  # noqa: E402

TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)
HEADS = HeadShape(8, 2, 64)
# Addresses without memory; Python names MAP_NORESERVE of Linux from 3.13 on.
_RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000


def triton_attention(kv, num_sms, *, rows=16, keys=32):
    """Small tiles: the interpreter takes milliseconds for each block of keys."""
    pytest.importorskip("triton", reason="needs the package triton (extra 'triton')")
    from nexusbench.kernels.attention.paged_triton import TritonAttention

    decode, prefill = DecodeTile(keys, 4, 2, 2), PrefillTile(rows, keys, 4, 2)
    return TritonAttention(kv, num_sms, decode=decode, prefill=(prefill, prefill))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", sample(range(40), 5))
def test_sdpa_on_random_steps(seed: int, dtype: torch.dtype) -> None:
    run = make_run(random_case(seed), dtype, seed, padded_tokens=64)
    assert largest_error(SdpaAttention(run.kv), run) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", sample(range(40), 5))
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


@pytest.mark.parametrize("dtype", sample(DTYPES, 9), ids=str)
@pytest.mark.parametrize("seed", [1, *slow(0, 2, 3, 4, 5)])
@pytest.mark.slow
def test_triton_on_random_steps(seed: int, dtype: torch.dtype) -> None:
    run = make_run(random_case(100 + seed, longest=40), dtype, seed)
    backend = triton_attention(run.kv, (1, 8, 132)[seed % 3])
    assert largest_error(backend, run) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_sms", [*slow(1), 3, *slow(16)])
@pytest.mark.slow
def test_triton_splits_long_decodes(num_sms: int, dtype: torch.dtype) -> None:
    run = make_run(Case([1, 1, 1], [300, 64, 0], HEADS, 16), dtype, 0)
    backend = triton_attention(run.kv, num_sms, keys=64)
    assert largest_error(backend, run) < TOLERANCE[dtype]
    assert len(backend.prepare(run.plan).decodes.merges) == {1: 1, 3: 2, 16: 2}[num_sms]


@pytest.mark.slow
def test_triton_prefill_computes_whole_blocks_and_the_diagonal() -> None:
    run = make_run(Case([37, 5, 50], [0, 41, 13], HeadShape(4, 2, 32), 16), torch.float32, 0)
    assert largest_error(triton_attention(run.kv, 1, keys=16), run) < 5e-6


@pytest.mark.slow
def test_triton_on_the_tiles_of_its_tables() -> None:
    pytest.importorskip("triton", reason="needs the package triton (extra 'triton')")
    from nexusbench.kernels.attention.paged_triton import TritonAttention

    run = make_run(Case([150, 1, 1], [70, 200, 30], HeadShape(2, 1, 48), 16), torch.bfloat16, 0)
    for num_sms in (2, 132):  # the large tile of prefill, the small one
        backend = TritonAttention(run.kv, num_sms)
        assert largest_error(backend, run) < TOLERANCE[torch.bfloat16]
        assert backend.prepare(run.plan).chunks.tile in backend.prefill_tiles
    backend.warm_up()
    assert largest_error(backend, run) < TOLERANCE[torch.bfloat16]


@pytest.mark.slow
def test_one_captured_launch_serves_many_steps() -> None:
    first = make_run(Case([1, 1, 1], [90, 7, 150], HEADS, 16), torch.float32, 0)
    backend = triton_attention(first.kv, 2)
    fixed = backend.fixed(4, 20)
    decodes = fixed._decodes
    grids = len(decodes.starts), len(decodes.merges)
    places = [getattr(decodes, name).data_ptr() for name in ("starts", "segments", "tables")]
    for lengths in ([90, 7, 150], [3], [40, 40, 1, 299]):
        run = make_run(Case([1] * len(lengths), lengths, HEADS, 16), torch.float32, len(lengths))
        with torch.inference_mode():
            fixed.update(run.plan)
            rows = torch.zeros(4, run.qkv.shape[1])  # a captured step computes all its rows
            rows[: len(lengths)] = run.qkv
            found = fixed.run(rows, run.kv.layers[0])
        assert (found[: len(lengths)].double() - run.expected).abs().max() < 5e-6
    assert (len(decodes.starts), len(decodes.merges)) == grids
    assert [getattr(decodes, n).data_ptr() for n in ("starts", "segments", "tables")] == places
    for case in (Case([1] * 5, [1] * 5, HEADS, 16), Case([2], [0], HEADS, 16)):
        with pytest.raises(NexusbenchError, match="do not fit a captured step of 4"):
            fixed.update(make_run(case, torch.float32, 0).plan)


def test_offsets_are_64_bit_where_a_pool_needs_them() -> None:
    """The pool begins in the middle of reserved addresses, so that a 32-bit offset, which would
    wrap around, reads zeros instead of ending the process.
    """
    heads, size = HeadShape(1, 1, 16), 16
    values = size * heads.kv_size
    blocks = (1 << 31) // values + 2
    reserved = mmap.mmap(-1, 2 * ((1 << 32) + 2 * values), flags=_RESERVED)
    memory = torch.frombuffer(reserved, dtype=torch.float16)
    kv = PagedKV(1, 1, size, heads, torch.float16)
    pool = memory[1 << 31 :][: blocks * values].view(blocks, size, 2, 1, 16)
    kv.layers[0] = layer = LayerKV(pool)
    place = blocks - 1
    layer.tensor[place].normal_()
    plan = plan_attention([1, 3], [20, 15], [[0, place], [place - 1, place]], size)
    qkv = torch.ones(4, heads.qkv_size, dtype=torch.float16)
    alone = PagedKV(1, 4, size, heads, torch.float16)
    for there, here in ((0, 0), (place, 1), (place - 1, 2)):
        alone.layers[0].tensor[here] = layer.tensor[there]
    same = plan_attention([1, 3], [20, 15], [[0, 1], [2, 1]], size)
    far = triton_attention(kv, 2, keys=16).prepare(plan).run(qkv, layer)
    near = triton_attention(alone, 2, keys=16).prepare(same).run(qkv, alone.layers[0])
    assert bool(near.any())
    assert torch.equal(far, near)


@pytest.mark.parametrize(
    ("architecture", "dtype", "head"),
    [
        (80, "fp16", 128),
        (90, "bf16", 128),
        (90, "bf16", 64),
        (90, "bf16", 256),
        (90, "fp32", 128),
    ],
)
@pytest.mark.slow
def test_triton_compiles_for_gpus(architecture: int, dtype: str, head: int, tmp_path: Path) -> None:
    """What the interpreter accepts, a compiler need not; and what fits on an SM only it can say."""
    pytest.importorskip("triton", reason="needs the package triton (extra 'triton')")
    settings = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compiling.py")
    done = subprocess.run(
        [sys.executable, str(script), str(architecture), dtype, str(head)],
        env={**os.environ, **settings, "PYTHONPATH": str(script.parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    taken = {}
    for line in done.stdout.splitlines():
        name, *numbers = line.split()
        taken.setdefault(name, []).append([int(number) for number in numbers])
    assert list(taken) == ["decode_segments", "merge_segments", "prefill_rows"]
    itemsize = 4 if dtype == "fp32" else 2
    tile = tuning.decode_tile(head, itemsize)
    ((shared, registers, spilled, multiplies, copies),) = taken["decode_segments"]
    block = 2 * tile.keys * head * itemsize
    assert shared >= 2 * block, "one block of keys is loaded while the other is computed with"
    assert copies > 0
    assert spilled == 0
    if architecture == 90:
        together = tile.programs_per_sm
        assert together * (shared + tuning.SHARED_PER_PROGRAM) <= tuning.SHARED_PER_SM
        assert together * registers * 32 * tile.warps <= 65536
        # In fp32, which is for reference runs, Triton 3.6 spills a few bytes.
        assert max(numbers[2] for numbers in taken["prefill_rows"]) <= (16 if itemsize == 4 else 0)
    if dtype != "fp32":
        assert min(multiplies, *(numbers[3] for numbers in taken["prefill_rows"])) > 0
