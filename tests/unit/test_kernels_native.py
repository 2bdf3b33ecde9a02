"""Native kernels against float64, on odd shapes; rows keep their bits in every batch."""

from __future__ import annotations

import pytest

from tests.examples import sample, slow

torch = pytest.importorskip("torch", reason="the decoder's kernels need torch")

from nexusbench.kernels import fused, reference  # noqa: E402
from nexusbench.kernels.linear import LinearLayer  # noqa: E402
from nexusbench.kernels.native import bindings  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16]
# Of the largest value: bf16 rounds once at the end (2^-9) after exact products, fp32 sums K terms.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4.5e-3}
SHAPES = [(64, 64), (37, 51), (1, 1), (100, 33), (33, 700), (257, 1030)]
ROWS = [1, 2, 7, 12, 13, 16, 17, 31, 32, 33, 65, 97]

pytestmark = pytest.mark.skipif(
    bindings.functions() is None, reason=f"needs native kernels; {bindings.note()}"
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(20)


def error(have, wanted):
    return float((have.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_is_exact_and_independent_of_the_batch(dtype, outputs, inputs, with_bias):
    weight, x = torch.randn(outputs, inputs).to(dtype), torch.randn(97, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype) if with_bias else None
    residual = torch.randn(97, outputs).to(dtype)
    linear = LinearLayer(weight, bias)
    assert linear.path == "native"
    exact = x.double() @ weight.double().t() + residual.double()
    exact = exact + bias.double() if with_bias else exact
    whole = linear(x, residual=residual)
    assert error(whole, exact) < TOLERANCE[dtype]
    for rows in ROWS:
        for threads in (1, 2, 3):
            part = linear(x[:rows], residual=residual[:rows], threads=threads)
            assert torch.equal(part, whole[:rows]), (rows, threads)
    assert torch.equal(linear(x[40:41], residual=residual[40:41]), whole[40:41])


@pytest.mark.parametrize("rows", [1, 20, 70])
def test_fp32_products_keep_all_bits(rows):
    """Also in tiles, where a number is computed with as three of bf16."""
    values = torch.randn(rows, 70) * 10.0 ** torch.randint(-9, 9, (rows, 70))
    one = torch.eye(70)
    assert torch.equal(LinearLayer(one)(values), values)
    assert torch.equal(LinearLayer(values.contiguous())(one), values.t())
    assert torch.equal(LinearLayer(-one[:1])(values), -values[:, :1])


def test_fp32_sums_are_as_close_to_float64_as_those_of_torch():
    weight, x = torch.randn(96, 1000), torch.randn(40, 1000)
    exact = x.double() @ weight.double().t()
    ours, theirs = ((y.double() - exact).norm() for y in (LinearLayer(weight)(x), x @ weight.t()))
    assert ours < 3 * theirs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 64), (37, 50), (5, 3)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gated_linear(dtype, outputs, inputs, with_bias):
    weight, x = torch.randn(2 * outputs, inputs).to(dtype), torch.randn(35, inputs).to(dtype)
    bias = torch.randn(2 * outputs).to(dtype) if with_bias else None
    y = x.double() @ weight.double().t() + (bias.double() if with_bias else 0)
    exact = torch.nn.functional.silu(y[:, :outputs]) * y[:, outputs:]
    linear = LinearLayer(weight, bias, gated=True)
    whole = linear(x)
    assert error(whole, exact) < TOLERANCE[dtype]
    assert error(LinearLayer(weight, bias, gated=True, native=False)(x), exact) < 3e-2
    for rows in (1, 5, 16, 33):
        assert torch.equal(linear(x[:rows]), whole[:rows])


def test_linear_keeps_unrounded_logits_and_writes_where_told():
    weight, x = torch.randn(70, 40).bfloat16(), torch.randn(3, 40).bfloat16()
    linear = LinearLayer(weight)
    exact = x.double() @ weight.double().t()
    assert error(linear(x, out_dtype=torch.float32), exact) < 1e-6
    stream = torch.randn(3, 70).bfloat16()
    wanted = linear(x, residual=stream.clone())
    assert linear(x, residual=stream, out=stream) is stream
    assert torch.equal(stream, wanted)
    assert linear(x[:0]).shape == (0, 70)


def test_rows_may_lie_apart():
    linear, wide = LinearLayer(torch.randn(64, 32)), torch.randn(5, 100)
    assert torch.equal(linear(wide[:, 10:42]), linear(wide[:, 10:42].contiguous()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_stay_in_their_row(dtype):
    linear, x = LinearLayer(torch.randn(40, 48).to(dtype)), torch.randn(20, 48).to(dtype)
    clean = linear(x)
    x[3, 5], x[17, 47] = float("nan"), float("inf")
    y = linear(x)
    assert y[3].isnan().all()
    assert not y[17].isfinite().any()
    kept = [row for row in range(20) if row not in (3, 17)]
    assert torch.equal(y[kept], clean[kept])


def test_linear_refuses_what_it_cannot_compute():
    linear = LinearLayer(torch.randn(8, 16))
    for wrong in (torch.randn(2, 15), torch.randn(16), torch.randn(2, 16).double()):
        with pytest.raises(ValueError, match="x is"):
            linear(wrong)
    with pytest.raises(ValueError, match="columns must touch"):
        linear(torch.randn(16, 2).t())
    with pytest.raises(ValueError, match="out is"):
        linear(torch.randn(2, 16), out=torch.empty(2, 9))
    with pytest.raises(ValueError, match="residual is"):
        linear(torch.randn(2, 16), residual=torch.empty(1, 8))
    with pytest.raises(ValueError, match="out_dtype"):
        linear(torch.randn(2, 16), out_dtype=torch.float16)
    with pytest.raises(ValueError, match="bias is"):
        LinearLayer(torch.randn(8, 16), torch.randn(7))
    with pytest.raises(ValueError, match="weight is"):
        LinearLayer(torch.randn(7, 16), gated=True)
    assert LinearLayer(torch.randn(8, 16).half()).path == "torch"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 33, 1])
@pytest.mark.parametrize("threads", [1, 2])
def test_rms_norm_and_silu(dtype, width, threads):
    x, weight = torch.randn(9, width).to(dtype), torch.rand(width) + 0.5
    exact = reference.rms_norm(x.double(), weight.double(), 1e-5)
    assert error(fused.rms_norm(x, weight, 1e-5, threads=threads), exact) < TOLERANCE[dtype]
    wide = torch.randn(9, width)
    exact = reference.rms_norm(wide.double(), weight.double(), 1e-5)
    assert error(fused.rms_norm(wide, weight, 1e-5, dtype, threads=threads), exact) < 4.5e-3
    pair = (torch.randn(9, 2 * width) * 8).to(dtype)
    silu = fused.silu_mul(pair, threads=threads)
    assert error(silu, reference.silu_mul(pair.double())) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [16, 64, 10, 128])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("neighbours", [False, True])
def test_rope_and_cache(dtype, dim, normed, neighbours):
    tokens, heads, kv_heads, block_size = 11, 6, 2, 5
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype)
    angles = torch.rand(50, dim // 2) * 6
    turns = (angles.cos(), angles.sin())
    cos_sin = torch.stack(turns, dim=-1).flatten(1) if neighbours else torch.cat(turns, dim=1)
    positions, slots = torch.randint(0, 50, (tokens,)), torch.randperm(4 * block_size)[:tokens]
    slots[4] = -1
    norms = tuple(torch.rand(dim) + 0.5 for _ in range(2)) if normed else (None, None)
    shape = (4, kv_heads, block_size, dim)
    both = torch.zeros(4, block_size, 2, kv_heads, dim, dtype=dtype)
    caches = [both[:, :, i].transpose(1, 2) for i in range(2)]
    exact, wide = qkv.double(), [torch.zeros(shape).double() for _ in range(2)]
    reference.rope_and_cache(
        exact, positions, slots, cos_sin.double(), *wide, *norms, 1e-6, neighbours=neighbours
    )
    fused.rope_and_cache(
        qkv, positions, slots, cos_sin, *caches, *norms, 1e-6, neighbours=neighbours, threads=2
    )
    assert error(qkv, exact) < TOLERANCE[dtype]
    for cache, wanted in zip(caches, wide, strict=True):
        assert error(cache, wanted) < TOLERANCE[dtype]
        assert torch.equal(cache == 0, wanted == 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [16, *slow(64, 128), 10])
@pytest.mark.parametrize(("heads", "kv_heads"), sample([(4, 4), (6, 2), (14, 2), (5, 1)], 2))
@pytest.mark.parametrize("block_size", [*slow(1), 7, 16, *slow(32)])
def test_decode_attention(dtype, dim, heads, kv_heads, block_size):
    lengths = torch.tensor([1, 15, 16, 0, 33, 70], dtype=torch.int32)
    rows, most = len(lengths), -(-70 // block_size)
    shape = (rows * most, kv_heads, block_size, dim)
    k_cache, v_cache = (torch.randn(shape).to(dtype) for _ in range(2))
    if kv_heads == 2:  # the same kernels on another layout
        k_cache, v_cache = (
            c.transpose(1, 2).contiguous().transpose(1, 2) for c in (k_cache, v_cache)
        )
    tables = torch.randperm(rows * most).view(rows, most).int()
    joint = torch.randn(rows, (heads + 3) * dim).to(dtype)
    q, scale = joint[:, : heads * dim], dim**-0.5
    exact = reference.decode_attention(
        q.double(), k_cache.double(), v_cache.double(), tables, lengths, scale
    )
    have = fused.decode_attention(q, k_cache, v_cache, tables, lengths, scale, threads=2)
    assert error(have, exact) < TOLERANCE[dtype]
    for row in range(rows):  # batch mates and threads do not change a bit
        at = slice(row, row + 1)
        alone = fused.decode_attention(
            q[at], k_cache, v_cache, tables[at], lengths[at], scale, threads=1
        )
        assert torch.equal(alone, have[at])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_slots_and_positions_out_of_the_cache_are_refused(dtype):
    caches = [torch.zeros(4, 1, 8, 32).to(dtype) for _ in range(2)]
    q, tables = torch.randn(2, 32).to(dtype), torch.tensor([[0, 1], [3, 99]], dtype=torch.int32)

    def attend(tables, *lengths):
        lengths = torch.tensor(lengths, dtype=torch.int32)
        return fused.decode_attention(q, *caches, tables, lengths, 1.0)

    assert attend(tables, 16, 8).shape == (2, 32)  # what lies beyond a length is not read
    for lengths in ((16, 9), (0, 17), (0, -1)):
        with pytest.raises(IndexError, match="row 1 of the batch"):
            attend(tables, *lengths)
    with pytest.raises(IndexError, match="row 0 of the batch"):
        attend(-tables - 1, 1, 1)

    def rotate(slots, positions):
        qkv, turns = torch.ones(2, 3 * 32).to(dtype), torch.rand(5, 32)
        slots, positions = torch.tensor(slots), torch.tensor(positions)
        fused.rope_and_cache(qkv, positions, slots, turns, *caches)

    for slots, positions in (([0, 32], [0, 0]), ([0, 1], [0, 5]), ([0, 1], [0, -1])):
        with pytest.raises(IndexError, match="row 1 of the batch"):
            rotate(slots, positions)
    assert not any(cache.any() for cache in caches)  # nothing was written before it was refused
    rotate([31, -7], [4, 0])
    assert all(int((cache != 0).any(-1).sum()) == 1 for cache in caches)


def test_argmax_takes_the_first_of_equals():
    logits = torch.randn(5, 1003)
    logits[0, [700, 31, 900]] = 99.0
    logits[1] = float("-inf")
    logits[2, 1002] = 50.0
    have = fused.argmax(logits)
    assert have.tolist() == reference.argmax(logits).tolist()
    assert have[:3].tolist() == [31, 0, 1002]


def test_fused_operations_refuse_wrong_shapes():
    cache = torch.zeros(2, 2, 4, 16)
    table, length = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="do not fit"):
        fused.decode_attention(torch.zeros(1, 48), cache, cache, table, length, 1.0)
    with pytest.raises(ValueError, match="tables is"):
        fused.decode_attention(torch.zeros(1, 32), cache, cache, table.long(), length, 1.0)
    with pytest.raises(ValueError, match="differ in shape"):
        fused.decode_attention(torch.zeros(1, 32), cache.bfloat16(), cache, table, length, 1.0)
    with pytest.raises(ValueError, match="weight is"):
        fused.rms_norm(torch.zeros(1, 8), torch.zeros(8).bfloat16(), 1e-5)
    with pytest.raises(ValueError, match="not contiguous"):
        fused.silu_mul(torch.zeros(8, 4).t())
