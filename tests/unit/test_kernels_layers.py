"""Whole decoder layers: one native call equals the pieces, bit for bit, and float64 closely."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the decoder's kernels need torch")

from nexusbench.kernels import reference  # noqa: E402
from nexusbench.kernels.layers import DecoderLayers, LayerStage, PackedLayer, TokenBatch  # noqa: E402
from nexusbench.kernels.linear import LinearLayer  # noqa: E402
from nexusbench.kernels.native import bindings  # noqa: E402

HEADS, KV_HEADS, DIM, BLOCK, BLOCKS = 4, 2, 16, 4, 24
needs_native = pytest.mark.skipif(bindings.functions() is None, reason=bindings.note())


def decoder(dtype, hidden=64, inner=96, layers=2, native=True, biases=True, joint=False):
    """A random decoder and the plain weights that it was made of."""
    torch.manual_seed(5)
    plain, made, held = [], [], []
    width = (HEADS + 2 * KV_HEADS) * DIM
    for _ in range(layers):
        weights = {
            name: (torch.randn(*shape) * 0.1).to(dtype)
            for name, shape in {
                "qkv": (width, hidden),
                "output": (hidden, HEADS * DIM),
                "gate_up": (2 * inner, hidden),
                "down": (hidden, inner),
            }.items()
        }
        bias = {
            name: torch.randn(weight.shape[0]).to(dtype) if biases else None
            for name, weight in weights.items()
        }
        norms = [torch.rand(hidden) + 0.5 for _ in range(2)] + [torch.rand(DIM) for _ in range(2)]
        caches = [torch.zeros(BLOCKS, KV_HEADS, BLOCK, DIM, dtype=dtype) for _ in range(2)]
        if joint:  # keys and values of a token side by side in one tensor
            both = torch.zeros(BLOCKS, BLOCK, 2, KV_HEADS, DIM, dtype=dtype)
            caches = [both[:, :, i].transpose(1, 2) for i in range(2)]
        linears = {
            name: LinearLayer(weight, bias[name], gated=name == "gate_up", native=native)
            for name, weight in weights.items()
        }
        plain.append((weights, bias, norms))
        made.append(
            PackedLayer(
                input_norm=norms[0],
                mlp_norm=norms[1],
                q_norm=norms[2],
                k_norm=norms[3],
                **linears,
            )
        )
        held.append((caches[0], caches[1]))
    return DecoderLayers(made, held, rope_table(), 1e-5, DIM**-0.5), plain


def rope_table():
    angles = torch.arange(64)[:, None] * 0.5 ** torch.arange(DIM // 2)
    return torch.cat((angles.cos(), angles.sin()), dim=1).float()


def exactly(plain, x, batch, tables, lengths):
    """The same layers in float64 on the reference operations, KV cache of zeros."""
    x = x.double()
    for weights, bias, norms in plain:
        w = {name: weight.double() for name, weight in weights.items()}
        b = {name: 0 if value is None else value.double() for name, value in bias.items()}
        n = [norm.double() for norm in norms]
        caches = [torch.zeros(BLOCKS, KV_HEADS, BLOCK, DIM).double() for _ in range(2)]
        qkv = reference.rms_norm(x, n[0], 1e-5) @ w["qkv"].t() + b["qkv"]
        reference.rope_and_cache(
            qkv, batch.positions, batch.slots, rope_table().double(), *caches, n[2], n[3], 1e-5
        )
        query = qkv[:, : HEADS * DIM]
        attended = reference.decode_attention(query, *caches, tables, lengths, DIM**-0.5)
        x = x + attended @ w["output"].t() + b["output"]
        pair = reference.rms_norm(x, n[1], 1e-5) @ w["gate_up"].t() + b["gate_up"]
        x = x + reference.silu_mul(pair) @ w["down"].t() + b["down"]
    return x


def tokens(count, hidden=64):
    """One new token for each of ``count`` sequences, at different positions."""
    tables = torch.arange(BLOCKS).view(8, 3)[:count].int().contiguous()
    positions = torch.arange(count) % 11
    slots = tables.long()[torch.arange(count), positions // BLOCK] * BLOCK + positions % BLOCK
    lengths = (positions + 1).int()
    x = torch.randn(count, hidden, generator=torch.Generator().manual_seed(9))
    return x, TokenBatch(positions, slots, tables, lengths)


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_native), False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inner", [96, 50])
@pytest.mark.parametrize("biases", [False, True])
def test_layers_against_float64(dtype, inner, native, biases):
    layers, plain = decoder(dtype, inner=inner, native=native, biases=biases, joint=biases)
    whole = inner % 32 == 0 or dtype == torch.float32
    assert layers.path == ("native" if native and whole else "composed")
    x, batch = tokens(8)
    exact = exactly(plain, x, batch, batch.tables, batch.lengths)
    layers.run(x, batch, layers.workspace(8), threads=2)
    error = (x.double() - exact).abs().max() / exact.abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 3e-2)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_call_equals_pieces_stages_and_single_rows(dtype):
    layers, _ = decoder(dtype)
    x, batch = tokens(8)
    whole, pieces, staged = x.clone(), x.clone(), x.clone()
    work = layers.workspace(8)
    layers.run(whole, batch, work, threads=2)
    for i in range(len(layers.layers)):
        layers._compose(i, pieces, batch, work, LayerStage.ALL, 1)
    assert torch.equal(whole, pieces)
    for i in range(len(layers.layers)):
        for stage in (LayerStage.PROJECT, LayerStage.ATTEND, LayerStage.FINISH):
            layers.run(staged, batch, work, first=i, count=1, stages=stage, threads=3)
    assert torch.equal(whole, staged)
    for row in range(8):
        at = slice(row, row + 1)
        alone = x[at].clone()
        assert batch.tables is not None
        assert batch.lengths is not None
        single = TokenBatch(
            batch.positions[at], batch.slots[at], batch.tables[at], batch.lengths[at]
        )
        layers.run(alone, single, work, threads=2)
        assert torch.equal(alone, whole[at])


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rows_pass_in_blocks_and_keep_their_bits(dtype):
    """Rows of one position each, without a slot: what a prompt's rows go through but attention."""
    layers, _ = decoder(dtype)
    count, size = 391, 64
    x = torch.randn(count, 64, generator=torch.Generator().manual_seed(2))
    positions, slots = torch.arange(count) % size, torch.full((count,), -1)

    def run(rows):
        work, part = layers.workspace(len(x[rows])), x[rows].clone()
        batch = TokenBatch(positions[rows], slots[rows])
        for i in range(len(layers.layers)):
            layers.run(part, batch, work, first=i, count=1, stages=LayerStage.PROJECT, threads=2)
            work.attended.copy_(work.qkv[:, : HEADS * DIM])
            layers.run(part, batch, work, first=i, count=1, stages=LayerStage.FINISH, threads=2)
        return part

    together = run(slice(0, count))
    for rows in (slice(0, 1), slice(190, 230), slice(384, count), slice(0, 260)):
        assert torch.equal(run(rows), together[rows])


@needs_native
@pytest.mark.parametrize("field", ["positions", "slots", "tables", "lengths"])
def test_a_batch_that_leaves_the_cache_is_refused_before_anything_is_computed(field):
    layers, _ = decoder(torch.float32)
    x, batch = tokens(4)
    before = x.clone()
    getattr(batch, field)[2] = 1 << 20
    with pytest.raises(IndexError, match="row 2 of the batch"):
        layers.run(x, batch, layers.workspace(4))
    assert torch.equal(x, before)


def test_layers_refuse_what_does_not_fit():
    layers, _ = decoder(torch.float32)
    x, batch = tokens(4)
    work = layers.workspace(4)
    with pytest.raises(ValueError, match="x is"):
        layers.run(x[:, :32], batch, work)
    with pytest.raises(ValueError, match="positions is"):
        layers.run(x[:3], batch, work)
    with pytest.raises(ValueError, match="room for 2"):
        layers.run(x, batch, layers.workspace(2))
    with pytest.raises(ValueError, match="needs tables"):
        layers.run(x, TokenBatch(batch.positions, batch.slots), work)
    with pytest.raises(ValueError, match=r"layers 1\.\.3 of 2"):
        layers.run(x, batch, work, first=1, count=2)
    with pytest.raises(ValueError, match="at least one layer"):
        DecoderLayers([], [], rope_table(), 1e-5, 1.0)
    other, _ = decoder(torch.float32, inner=64)
    both = [*layers.layers, *other.layers]
    caches = [*layers.caches, *other.caches]
    with pytest.raises(ValueError, match="a layer's product"):
        DecoderLayers(both, caches, rope_table(), 1e-5, 1.0)
