"""The decoder of the Llama and Qwen families, over flattened batches and paged KV."""

from __future__ import annotations

from typing import Self

import torch
from torch.nn import functional

from nexusbench.core.errors import NexusbenchError
from nexusbench.kernels.linear import Linear
from nexusbench.kernels.norm import RmsNorm
from nexusbench.kernels.paged import HeadShape, LayerKV, PagedKV
from nexusbench.kernels.rotary import Rotary, rotate_
from nexusbench.models.architecture import DecoderConfig
from nexusbench.models.checkpoint import TensorSource, open_source
from nexusbench.models.memory import require_memory
from nexusbench.models.step import Step
from nexusbench.models.weights import LayerWeights, WeightReader, torch_dtype


class Decoder:
    """A dense decoder, read only once made: any number of threads may run it at a time.

    The residual stream is fp32, everything else in ``dtype``; in float32 it computes what HF's
    modelling code does, up to rounding.
    """

    def __init__(
        self,
        config: DecoderConfig,
        source: TensorSource,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        spec = config.spec
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.heads = HeadShape(spec.num_heads, spec.num_kv_heads, spec.head_dim)
        eps = config.rms_norm_eps
        read = WeightReader(config, source, dtype, device)
        name = "model.embed_tokens.weight"
        self.embedding = read.matrix(name, spec.vocab_size, spec.hidden_size)
        self.layers = [
            DecoderLayer(read.layer(index), self.heads, eps, dtype)
            for index in range(spec.num_layers)
        ]
        self.norm = RmsNorm(read.norm("model.norm.weight", spec.hidden_size), eps, dtype)
        # Tied heads share the embedding until a dense layer repacks it.
        self.head = Linear(
            self.embedding
            if spec.tie_word_embeddings
            else read.matrix("lm_head.weight", spec.vocab_size, spec.hidden_size)
        )
        rope = config.rope
        self.rotary = Rotary(
            spec.head_dim,
            rope.theta,
            kind=rope.kind,
            factor=rope.factor,
            low_freq_factor=rope.low_freq_factor,
            high_freq_factor=rope.high_freq_factor,
            original_max_len=rope.original_max_len,
            device=device,
        )

    @classmethod
    def load(
        cls,
        config: DecoderConfig,
        *,
        dtype: str | None = None,
        load_format: str = "auto",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The decoder with its weights (``open_source``), in ``dtype`` or as the config says.

        Raises InputError or UsageError for weights that are missing, broken or too large.
        """
        chosen = torch_dtype(dtype or config.spec.dtypes.weights)
        return cls(config, open_source(config, load_format, seed), chosen, device)

    def new_kv(self, num_blocks: int, block_size: int) -> PagedKV:
        """An empty KV cache in the model's data type. Raises UsageError if it is too large."""
        layers = len(self.layers)
        if self.device.type == "cpu":
            require_memory(
                layers * num_blocks * block_size * self.heads.kv_size * self.dtype.itemsize,
                f"a KV cache of {num_blocks:,} blocks",
                "Ask for fewer blocks",
            )
        return PagedKV(layers, num_blocks, block_size, self.heads, self.dtype, self.device)

    def forward(
        self,
        step: Step,
        kv: PagedKV,
        layers: tuple[int, int] | None = None,
        hidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the step, writing its keys and values into ``kv``.

        Returns logits [R, vocab] in fp32. With ``layers``, a half-open range that ends before the
        last layer, it returns the hidden states [T, hidden_size] instead; the launch that goes on
        from there is given them, and may overwrite them.
        """
        first, stop = layers or (0, len(self.layers))
        if (hidden is None) != (first == 0):
            raise NexusbenchError(f"layers {first}:{stop} need the hidden states of layer {first}")
        with torch.inference_mode():
            if hidden is None:
                hidden = functional.embedding(step.token_ids, self.embedding).float()
            rotations = self.rotary.at(step.positions, step.longest)
            for layer, cache in zip(self.layers[first:stop], kv.layers[first:stop], strict=True):
                layer.forward(hidden, step, rotations, cache)
            if stop < len(self.layers):
                return hidden
            if step.logit_rows is not None:
                hidden = hidden.index_select(0, step.logit_rows)
            return self.head(self.norm(hidden)).float()


class DecoderLayer:
    """Attention and SwiGLU, each on the normed residual stream and added to it."""

    __slots__ = (
        "down",
        "gate_up",
        "heads",
        "input_norm",
        "mlp_norm",
        "output",
        "qk_norm",
        "qkv",
    )

    def __init__(
        self, weights: LayerWeights, heads: HeadShape, eps: float, dtype: torch.dtype
    ) -> None:
        self.heads = heads
        self.input_norm = RmsNorm(weights.input_norm, eps, dtype)
        self.qkv = Linear(weights.qkv, weights.qkv_bias)
        self.qk_norm = (
            None if weights.qk_norm is None else RmsNorm(weights.qk_norm, eps, torch.float32)
        )
        self.output = Linear(weights.output, weights.output_bias)
        self.mlp_norm = RmsNorm(weights.mlp_norm, eps, dtype)
        self.gate_up = Linear(weights.gate_up, weights.gate_up_bias)
        self.down = Linear(weights.down, weights.down_bias)

    def forward(
        self, hidden: torch.Tensor, step: Step, rotations: torch.Tensor, cache: LayerKV
    ) -> None:
        """Add this layer's part to ``hidden`` [T, hidden_size], in place."""
        heads = self.heads
        qkv = self.qkv(self.input_norm(hidden))
        turned = qkv[:, : heads.query_size + heads.kv_size // 2].view(len(qkv), -1, heads.head_dim)
        rotate_(turned, rotations, self.qk_norm)
        cache.write(step.slots, qkv[:, heads.query_size :])
        hidden.add_(self.output(step.attention.run(qkv, cache)))
        gate, up = self.gate_up(self.mlp_norm(hidden)).chunk(2, dim=1)
        hidden.add_(self.down(functional.silu(gate).mul_(up)))
