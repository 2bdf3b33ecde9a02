"""Random steps over a paged cache, and what attention must give for them, in float64."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch

from nexusbench.kernels.attention.base import AttentionBackend
from nexusbench.kernels.attention.rules import AttentionRule
from nexusbench.kernels.paged import HeadShape, PagedKV, keys_values
from nexusbench.kernels.planner import AttentionPlan, plan_attention


class Case(NamedTuple):
    """A step: tokens to compute and computed before, per sequence, and the shapes."""

    query: list[int]
    context: list[int]
    heads: HeadShape
    block_size: int


def random_case(seed: int, longest: int = 90) -> Case:
    """Any mix of decodes and chunks, with and without context, of odd lengths."""
    draw = random.Random(seed)
    query, context = [], []
    for _ in range(draw.randint(1, 6)):
        query.append(draw.choice([1, 1, draw.randint(2, longest)]))
        context.append(draw.choice([0, draw.randint(1, longest), draw.randint(1, longest)]))
    kv_heads = draw.choice([1, 2, 3])
    heads = HeadShape(kv_heads * draw.choice([1, 2, 4, 5]), kv_heads, draw.choice([16, 20, 32, 64]))
    return Case(query, context, heads, draw.choice([8, 16, 16, 32]))


class Run(NamedTuple):
    plan: AttentionPlan
    qkv: torch.Tensor
    kv: PagedKV
    expected: torch.Tensor  # [T, query size], float64


def make_run(
    case: Case,
    dtype: torch.dtype,
    seed: int,
    rule: AttentionRule | None = None,
    **planning: int,
) -> Run:
    """Random queries and a cache that holds the context and the step's own keys and values."""
    torch.manual_seed(seed)
    heads, size = case.heads, case.block_size
    needed = [-(-(q + c) // size) for q, c in zip(case.query, case.context, strict=True)]
    free = list(range(sum(needed) + 2))
    random.Random(seed).shuffle(free)
    tables = [[free.pop() for _ in range(count)] for count in needed]
    rules = None if rule is None else [rule]
    kv = PagedKV(1, sum(needed) + 2, size, heads, dtype, rules=rules)
    layer = kv.layers[0]
    layer.tensor.normal_()
    plan = plan_attention(case.query, case.context, tables, size, **planning)
    qkv = torch.randn(plan.num_tokens, heads.qkv_size).to(dtype)
    layer.write(torch.from_numpy(plan.slots), qkv[:, heads.query_size :])
    expected = torch.empty(plan.num_tokens, heads.output_size, dtype=torch.float64)
    for place, sequence in enumerate(plan.order.tolist()):
        start, stop = plan.query_starts[place : place + 2].tolist()
        count = case.query[sequence] + case.context[sequence]
        held = layer.tensor[tables[sequence]].flatten(0, 1)[:count].double()
        queries = qkv[start:stop, : heads.query_size].double()
        context = case.context[sequence]
        expected[start:stop] = _attend(queries, held, heads, context, layer.rule)
    return Run(plan, qkv, kv, expected)


def _attend(
    queries: torch.Tensor, held: torch.Tensor, heads: HeadShape, context: int, rule: AttentionRule
) -> torch.Tensor:
    """Textbook causal attention of [n, heads x D] over ``held`` [keys, kinds, KV heads, D]."""
    keys, values = keys_values(held.repeat_interleave(heads.group, dim=2), heads.latent_dim)
    rows = queries.view(len(queries), heads.num_heads, heads.head_dim)
    scores = torch.einsum("qhd,khd->hqk", rows, keys) * rule.scale
    if rule.soft_cap:
        scores = rule.soft_cap * torch.tanh(scores / rule.soft_cap)
    places = torch.arange(len(rows)).unsqueeze(1) + context
    unseen = torch.arange(len(keys)) > places
    if rule.window:
        unseen |= torch.arange(len(keys)) <= places - rule.window
    chances = scores.masked_fill(unseen, float("-inf")).exp()
    total = chances.sum(-1, keepdim=True)
    if rule.sinks is not None:
        total += rule.sinks.double().exp().view(-1, 1, 1)
    return torch.einsum("hqk,khd->qhd", chances / total, values).flatten(1)


def largest_error(backend: AttentionBackend, run: Run) -> float:
    """Largest difference to float64 of what the backend gives."""
    with torch.inference_mode():
        found = backend.prepare(run.plan).run(run.qkv, run.kv.layers[0])
    assert found.dtype == run.qkv.dtype
    assert found.shape == run.expected.shape
    return float((found.double() - run.expected).abs().max())
