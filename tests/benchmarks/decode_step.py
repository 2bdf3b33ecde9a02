"""Whole decode steps of a random Llama: our layers beside transformers' loop, interleaved."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import torch

from nexusbench.kernels import fused
from nexusbench.kernels.layers import DecoderLayers, LayerStage, PackedLayer, TokenBatch
from nexusbench.kernels.linear import LinearLayer

BATCHES, PROMPT, STEPS, BLOCK, CONTEXT = (1, 8, 32), 128, 16, 16, 256


def reference_model(size, dtype):
    """A random LlamaForCausalLM of this size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, heads, kv_heads, inner = size
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        vocab_size=32000,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.1 if parameter.shape[0] == 32000 else 0.02)
    return model


class Ours:
    """The same model from our pieces; attention of the prompt by torch."""

    def __init__(self, model, most):
        config = model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim, self.eps = config.hidden_size // self.heads, config.rms_norm_eps
        self.embedding = model.model.embed_tokens.weight.detach()
        self.head = LinearLayer(self.embedding)
        self.norm = model.model.norm.weight.detach().float()
        frequencies = 10000.0 ** (-torch.arange(0, self.dim, 2).double() / self.dim)
        angles = torch.arange(CONTEXT)[:, None] * frequencies
        table = torch.cat((angles.cos(), angles.sin()), dim=1).float()
        blocks = most * CONTEXT // BLOCK
        shape = (blocks, self.kv_heads, BLOCK, self.dim)
        layers = [self.layer(layer) for layer in model.model.layers]
        caches = [
            tuple(torch.zeros(shape, dtype=self.embedding.dtype) for _ in range(2)) for _ in layers
        ]
        self.layers = DecoderLayers(layers, caches, table, self.eps, self.dim**-0.5)
        self.tables = torch.arange(blocks, dtype=torch.int32).view(most, -1)

    def layer(self, layer):
        attention, mlp = layer.self_attn, layer.mlp
        joint = [p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        pair = [mlp.gate_proj.weight, mlp.up_proj.weight]
        return PackedLayer(
            input_norm=layer.input_layernorm.weight.detach().float(),
            qkv=LinearLayer(torch.cat(joint).detach()),
            output=LinearLayer(attention.o_proj.weight.detach()),
            mlp_norm=layer.post_attention_layernorm.weight.detach().float(),
            gate_up=LinearLayer(torch.cat(pair).detach(), gated=True),
            down=LinearLayer(mlp.down_proj.weight.detach()),
        )

    def tokens(self, x):
        normed = fused.rms_norm(x, self.norm, self.eps, self.embedding.dtype)
        return fused.argmax(self.head(normed, out_dtype=torch.float32))

    def prefill(self, ids):
        batch, length = ids.shape
        x, at = self.embedding[ids.reshape(-1)].float(), torch.arange(length)
        slots = self.tables[:batch, at // BLOCK].long() * BLOCK + at % BLOCK
        tokens = TokenBatch(at.repeat(batch), slots.reshape(-1))
        work = self.layers.workspace(batch * length)
        parts = (self.heads, self.kv_heads, self.kv_heads)
        for i in range(len(self.layers.layers)):
            self.layers.run(x, tokens, work, first=i, count=1, stages=LayerStage.PROJECT)
            joint = work.qkv.view(batch, length, -1, self.dim).transpose(1, 2)
            q, k, v = joint.split(parts, dim=1)
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True
            )
            work.attended.view(batch, length, self.heads, self.dim).copy_(out.transpose(1, 2))
            self.layers.run(x, tokens, work, first=i, count=1, stages=LayerStage.FINISH)
        return self.tokens(x.view(batch, length, -1)[:, -1].contiguous())

    def decode(self, tokens, steps):
        batch, made = len(tokens), []
        tables, work = self.tables[:batch], self.layers.workspace(batch)
        for position in range(PROMPT, PROMPT + steps):
            x = self.embedding[tokens].float()
            slots = tables[:, position // BLOCK].long() * BLOCK + position % BLOCK
            lengths = torch.full((batch,), position + 1, dtype=torch.int32)
            where = TokenBatch(torch.full((batch,), position), slots, tables, lengths)
            self.layers.run(x, where, work)
            tokens = self.tokens(x)
            made.append(tokens)
        return torch.stack(made, dim=1)


def theirs_prefill(model, ids):
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1].argmax(-1), cache


def theirs_decode(model, tokens, cache, steps):
    made = []
    for _ in range(steps):
        out = model(tokens[:, None], past_key_values=cache, use_cache=True)
        tokens = out.logits[:, -1].argmax(-1)
        made.append(tokens)
    return torch.stack(made, dim=1)


@torch.no_grad()
def compare_steps(dtype, threads, size, rounds):
    """Prints tokens per second of both and their ratio, per batch size."""
    torch.set_num_threads(threads)
    model = reference_model(size, dtype)
    ours = Ours(model, max(BATCHES))
    print(f"\nhidden {size[0]}, {size[1]} layers, {dtype}, {threads} thread(s), {ours.layers.path}")
    for batch in BATCHES:
        ids = torch.randint(0, 32000, (batch, PROMPT))
        took = {"prefill": ([], []), "decode": ([], [])}
        for _ in range(rounds):
            clock = [time.perf_counter()]
            first, cache = theirs_prefill(model, ids)
            clock.append(time.perf_counter())
            ours.prefill(ids)
            clock.append(time.perf_counter())
            wanted = theirs_decode(model, first, cache, STEPS)
            clock.append(time.perf_counter())
            have = ours.decode(first, STEPS)
            clock.append(time.perf_counter())
            spans = [after - before for before, after in pairwise(clock)]
            for i, name in enumerate(("prefill", "prefill", "decode", "decode")):
                took[name][i % 2].append(spans[i])
        cells = []
        for name, count in (("prefill", PROMPT), ("decode", STEPS)):
            theirs, mine = (statistics.median(values) for values in took[name])
            cells.append(
                f"{name} transformers {batch * count / theirs:.0f}, ours {batch * count / mine:.0f}"
                f" tok/s, x{theirs / mine:.2f}"
            )
        same = float((have == wanted).float().mean())
        print(f"batch {batch}: {' | '.join(cells)} | equal tokens {same:.2f}", flush=True)
