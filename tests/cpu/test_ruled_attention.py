"""Attention by a layer's own rule against float64, on random mixes of chunks and decodes."""

from __future__ import annotations

import random

import pytest

from tests.examples import sample

torch = pytest.importorskip("torch")

from attending import Case, largest_error, make_run, random_case  # noqa: E402

from nexusbench.kernels.attention.ruled import RuledAttention  # noqa: E402
from nexusbench.kernels.attention.rules import AttentionRule  # noqa: E402
from nexusbench.kernels.paged import HeadShape, PagedKV  # noqa: E402

TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)
LATENT = HeadShape(6, 1, 40, 32)


def rule_of(seed: int, heads: HeadShape) -> AttentionRule:
    """Any combination of window, cap and sinks."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    sinks = torch.randn(heads.num_heads, generator=generator) if draw.random() < 0.5 else None
    return AttentionRule(
        draw.choice([0.1, heads.head_dim**-0.5, 0.4]),
        draw.choice([0, 1, 5, 16, 33, 500]),
        draw.choice([0.0, 0.5, 3.0]),
        sinks,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", sample(range(60), 5))
def test_random_steps(seed: int, dtype: torch.dtype) -> None:
    case = random_case(seed)
    run = make_run(
        case, dtype, seed, rule_of(seed, case.heads), padded_tokens=(1 << 40, 64)[seed % 2]
    )
    assert largest_error(RuledAttention(run.kv), run) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", sample(range(20), 5))
def test_random_steps_over_latents(seed: int, dtype: torch.dtype) -> None:
    case = random_case(seed)._replace(heads=LATENT)
    run = make_run(case, dtype, seed, rule_of(seed, LATENT))
    assert run.kv.layers[0].tensor.shape[2:] == (1, 1, 40)
    assert largest_error(RuledAttention(run.kv), run) < TOLERANCE[dtype]


def test_chunks_longer_than_a_tile() -> None:
    heads = HeadShape(4, 2, 16)
    for context in (0, 300):
        rule = AttentionRule(0.25, window=150)
        run = make_run(
            Case([290, 290, 1], [context, context, 400], heads, 16), torch.float32, 0, rule
        )
        assert largest_error(RuledAttention(run.kv), run) < 5e-6


def test_a_window_reads_no_block_before_it() -> None:
    """Broken values far before the window leave what is computed as it is."""
    heads, rule = HeadShape(4, 2, 16), AttentionRule(0.25, window=20)
    run = make_run(Case([1, 40], [200, 90], heads, 16), torch.float32, 0, rule)
    tables = {sequence: run.plan.blocks[place] for place, sequence in enumerate(run.plan.order)}
    for sequence, last in ((0, 180), (1, 70)):
        for block in tables[sequence][: last // 16]:
            run.kv.layers[0].tensor[block] = float("nan")
    assert largest_error(RuledAttention(run.kv), run) < 5e-6


def test_layers_have_rules_of_their_own() -> None:
    heads = HeadShape(4, 2, 16)
    rules = [AttentionRule(0.25, window=8), AttentionRule(0.25), AttentionRule(0.25, soft_cap=0.5)]
    run = make_run(Case([30, 1], [0, 50], heads, 16), torch.float32, 0)
    kv = PagedKV(3, run.kv.num_blocks, 16, heads, torch.float32, rules=rules)
    for layer in kv.layers:
        layer.tensor.copy_(run.kv.layers[0].tensor)
    prepared = RuledAttention(kv).prepare(run.plan)
    with torch.inference_mode():
        found = [prepared.run(run.qkv, layer) for layer in kv.layers]
    for rule, rows in zip(rules, found, strict=True):
        alone = make_run(Case([30, 1], [0, 50], heads, 16), torch.float32, 0, rule)
        assert torch.allclose(rows.double(), alone.expected, atol=5e-6)
    assert not torch.allclose(found[0], found[1])
