"""The projections of attention, before it and after it, of grouped heads and of latents."""

from __future__ import annotations

import torch

from nexusbench.kernels.attention.rules import AttentionRule
from nexusbench.kernels.linear import LinearLayer
from nexusbench.kernels.norm import RmsNorm
from nexusbench.kernels.paged import HeadShape
from nexusbench.kernels.rotary import interleave_, rotate_
from nexusbench.models.designs import GroupedDesign, LatentDesign
from nexusbench.models.weights import WeightReader


class GroupedHeads:
    """Queries, keys and values of grouped heads as one product, and the output."""

    __slots__ = ("_norm", "_output", "_qkv", "rope", "rotary_dim", "rule", "shape")

    def __init__(
        self, read: WeightReader, at: str, design: GroupedDesign, hidden: int, eps: float
    ) -> None:
        weights = read.qkv(at, design)
        self.shape = HeadShape(design.num_heads, design.num_kv_heads, design.head_dim)
        self.rope, self.rotary_dim = design.rope, design.rotary_dim
        self._qkv = LinearLayer(weights.weight, weights.bias)
        self._norm = None if weights.norm is None else RmsNorm(weights.norm, eps, torch.float32)
        output = read.linear(f"{at}.o_proj", hidden, self.shape.query_size, design.output_bias)
        self._output = LinearLayer(*output)
        sinks = None
        if design.sinks:
            sinks = read.vector(f"{at}.sinks", design.num_heads, torch.float32)
        self.rule = AttentionRule(design.scale, design.window, design.soft_cap, sinks)

    def project(self, x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, (heads + 2 x KV heads) x head_dim], queries and keys rotated."""
        shape, qkv = self.shape, self._qkv(x)
        turned = qkv[:, : shape.query_size + shape.kv_size // 2]
        rotate_(turned.view(len(qkv), -1, shape.head_dim), rotations, self._norm)
        return qkv

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[T, heads x head_dim] -> [T, hidden]."""
        return self._output(attended)


class LatentHeads:
    """Latent attention, absorbed: queries are brought into the space of the latent, which is key
    and value of all heads, and what is attended to comes back through the values' projection
    (DeepSeek-V2, 2405.04434, section 2.1.2).

    So the cache keeps what the model says that it keeps; expanded, as the paper's equations have
    it, it would keep 71 times as much of DeepSeek-V3, or expand all of a context in every step. A
    chunk pays for it with three to four times the products of expanded attention.
    """

    __slots__ = (
        "_design", "_from_latent", "_kv_a", "_kv_norm", "_output", "_q", "_q_norm", "_q_ranked",
        "_to_latent", "rope", "rotary_dim", "rule", "shape",
    )  # fmt: skip

    def __init__(self, read: WeightReader, at: str, design: LatentDesign, hidden: int) -> None:
        self._design = design
        self.rope, self.rotary_dim = design.rope, design.rope_dim
        self.shape = HeadShape(
            design.num_heads, 1, design.kv_rank + design.rope_dim, design.kv_rank
        )
        self.rule = AttentionRule(design.scale)
        self._q_norm, self._q_ranked = None, None
        head = design.nope_dim + design.rope_dim
        wide, name, inputs = design.num_heads * head, f"{at}.q_proj", hidden
        if design.q_rank:
            ranked = read.linear(f"{at}.q_a_proj", design.q_rank, hidden, design.bias)
            self._q_ranked = LinearLayer(*ranked)
            self._q_norm = self._norm(read, f"{at}.q_a_layernorm.weight", design.q_rank)
            name, inputs = f"{at}.q_b_proj", design.q_rank
        queries = read.matrix(f"{name}.weight", wide, inputs)
        rows = design.kv_rank + design.rope_dim
        kv_a, bias = read.linear(f"{at}.kv_a_proj_with_mqa", rows, hidden, design.bias)
        if not design.neighbours:
            each = queries.view(design.num_heads, head, inputs)[:, design.nope_dim :].contiguous()
            interleave_(each.view(-1, inputs), design.rope_dim, design.rope_dim)
            queries.view(design.num_heads, head, inputs)[:, design.nope_dim :] = each
            for rotated in (kv_a, bias):
                if rotated is not None:
                    interleave_(rotated[design.kv_rank :], design.rope_dim, design.rope_dim)
        self._q, self._kv_a = LinearLayer(queries), LinearLayer(kv_a, bias)
        self._kv_norm = self._norm(read, f"{at}.kv_a_layernorm.weight", design.kv_rank)
        both = read.matrix(
            f"{at}.kv_b_proj.weight",
            design.num_heads * (design.nope_dim + design.value_dim), design.kv_rank,
        )  # fmt: skip
        both = both.view(design.num_heads, -1, design.kv_rank)
        self._to_latent = both[:, : design.nope_dim].contiguous()  # [heads, nope, rank]
        self._from_latent = both[:, design.nope_dim :].transpose(1, 2).contiguous()
        values = design.num_heads * design.value_dim
        self._output = LinearLayer(*read.linear(f"{at}.o_proj", hidden, values, design.bias))

    def _norm(self, read: WeightReader, name: str, size: int) -> RmsNorm:
        return RmsNorm(read.norm(name, size), self._design.norm_eps, read.dtype)

    def project(self, x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, (heads + 1) x (rank + rope_dim)]: queries, then the latent with its
        rotated part.
        """
        design, T = self._design, len(x)
        ranked = x
        if self._q_ranked is not None and self._q_norm is not None:
            ranked = self._q_norm(self._q_ranked(x).float())
        queries = self._q(ranked).view(T, design.num_heads, -1)
        kv = self._kv_a(x)
        made = x.new_empty(T, design.num_heads + 1, self.shape.head_dim)
        # [heads, T, nope] x [heads, nope, rank]
        absorbed = queries[..., : design.nope_dim].transpose(0, 1) @ self._to_latent
        made[:, :-1, : design.kv_rank] = absorbed.transpose(0, 1)
        made[:, :-1, design.kv_rank :] = queries[..., design.nope_dim :]
        made[:, -1, : design.kv_rank] = self._kv_norm(kv[:, : design.kv_rank].float())
        made[:, -1, design.kv_rank :] = kv[:, design.kv_rank :]
        rotate_(made[..., design.kv_rank :], rotations)
        return made.view(T, -1)

    def output(self, attended: torch.Tensor) -> torch.Tensor:
        """[T, heads x rank] -> [T, hidden]."""
        each = attended.view(len(attended), self._design.num_heads, -1).transpose(0, 1)
        values = (each @ self._from_latent).transpose(0, 1)
        return self._output(values.reshape(len(attended), -1))
