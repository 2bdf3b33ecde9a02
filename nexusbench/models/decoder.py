"""The decoder, over flattened batches and paged KV."""

from __future__ import annotations

from typing import Self

import torch

from nexusbench.core.errors import NexusbenchError
from nexusbench.core.machine import require_memory
from nexusbench.kernels import fused
from nexusbench.kernels.attention.base import AttentionBackend
from nexusbench.kernels.attention.paged_native import NativeAttention, decodes_fit
from nexusbench.kernels.attention.ruled import RuledAttention
from nexusbench.kernels.attention.rules import AttentionRule
from nexusbench.kernels.attention.sdpa import SdpaAttention
from nexusbench.kernels.linear import LinearLayer
from nexusbench.kernels.norm import RmsNorm
from nexusbench.kernels.paged import PagedKV
from nexusbench.kernels.rotary import Rotary
from nexusbench.models.architecture import DecoderConfig
from nexusbench.models.checkpoint import TensorSource, open_source
from nexusbench.models.designs import plain_scores
from nexusbench.models.layers import NativeLayers, native_layers_fit
from nexusbench.models.step import Step
from nexusbench.models.torch_layers import TorchLayers, head_shape
from nexusbench.models.weights import WeightReader, torch_dtype


class Decoder:
    """A decoder, read only once made: any number of threads may run it at a time.

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
        self.heads = head_shape(config.layers[0])
        eps, tied = config.rms_norm_eps, spec.tie_word_embeddings
        self.native = native_layers_fit(config, dtype, self.device)
        read = WeightReader(config, source, dtype, device)
        vocabulary = (spec.vocab_size, spec.hidden_size)
        embedding = read.matrix("model.embed_tokens.weight", *vocabulary)
        self.head = LinearLayer(embedding if tied else read.matrix("lm_head.weight", *vocabulary))
        # Of a tied embedding the head's packed copy is the only one.
        self._embedding = None if tied else embedding
        self._layers: NativeLayers | TorchLayers
        self._rules: list[AttentionRule] | None = None  # of an ordinary decoder: the usual one
        if self.native:
            self.rotary = Rotary(self.heads.head_dim, config.layers[0].attention.rope, device)
            weights = (read.layer(index) for index in range(spec.num_layers))
            self._layers = NativeLayers(weights, self.heads, self.rotary, eps)
        else:
            made = self._layers = TorchLayers(config, read)
            self.rotary, self._rules = next(iter(made.rotaries.values())), made.rules
        self.layers = self._layers.layers
        self.norm = RmsNorm(read.norm("model.norm.weight", spec.hidden_size), eps, dtype)
        source.require_all_read(spec.num_layers)

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
        return PagedKV(
            layers, num_blocks, block_size, self.heads, self.dtype, self.device, self._rules
        )

    @property
    def kv_bytes_per_token(self) -> int:
        """What its KV cache keeps of a token."""
        return len(self.layers) * self.heads.kv_size * self.dtype.itemsize

    @property
    def plain(self) -> bool:
        """Whether attention is over the whole context, and scores are scaled by a head's size."""
        return all(plain_scores(layer.attention) for layer in self.config.layers)

    def new_attention(self, kv: PagedKV) -> AttentionBackend:
        """The fastest attention for this decoder; each worker needs one of its own."""
        if not self.plain:
            return RuledAttention(kv)
        native = self.native or (not self.config.ordinary and decodes_fit(kv))
        return NativeAttention(kv) if native else SdpaAttention(kv)

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
                hidden = self._embed(step.token_ids)
            hidden = self._layers.run(hidden, step, kv, first, stop)
            return hidden if stop < len(self.layers) else self._logits(hidden)

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        table = self._embedding
        rows = self.head.rows(ids) if table is None else table.index_select(0, ids)
        rows = rows.float().contiguous()
        scale = self.config.edges.embedding_scale
        if scale != 1.0:  # in the type that the embedding has
            rows *= torch.tensor(scale, dtype=self.dtype).item()
        return rows

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, hidden_size] -> [R, vocab], fp32."""
        if not self.native:
            logits = self.head(self.norm(hidden)).float()
            cap = self.config.edges.logit_cap
            return logits.div_(cap).tanh_().mul_(cap) if cap else logits
        norm = self.norm
        normed = fused.rms_norm(hidden, norm.weight, norm.eps, self.dtype)
        return self.head(normed, out_dtype=torch.float32)
