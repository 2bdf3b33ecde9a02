"""HF tensors -> the decoder's layout: fused projections, rotary pairs as neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nexusbench.core.errors import UsageError
from nexusbench.core.machine import require_memory
from nexusbench.core.specs import ModelSpec
from nexusbench.kernels.rotary import interleave
from nexusbench.models.architecture import DecoderConfig
from nexusbench.models.checkpoint import TensorSource

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def torch_dtype(name: str) -> torch.dtype:
    """The data type called ``name``. Raises UsageError if the decoder cannot compute in it."""
    if name not in DTYPES:
        raise UsageError(f"no data type '{name}' to compute in. Known: {', '.join(DTYPES)}")
    return DTYPES[name]


@dataclass(slots=True)
class LayerWeights:
    """One layer; weights are [outputs, inputs] in the computing type, norms fp32.

    ``qkv`` has the rows of all query heads, all key heads (both with each head's rotary pairs as
    neighbours) and all value heads; ``gate_up`` those of the gate, then of the up projection.
    ``qk_norm`` [heads + KV heads, head_dim] scales each query and key head.
    """

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    qk_norm: torch.Tensor | None
    output: torch.Tensor
    output_bias: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


class WeightReader:
    """Reads a model part by part, each straight into its place.

    Checks first that memory suffices for all of it. Errors as of the source, and UsageError.
    """

    def __init__(
        self,
        config: DecoderConfig,
        source: TensorSource,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self._config, self._source, self.dtype, self.device = config, source, dtype, device
        if torch.device(device).type == "cpu":
            spec = config.spec
            name = str(dtype).removeprefix("torch.")
            smaller = ", --dtype bfloat16" if dtype.itemsize > 2 else ""
            needed = spec.num_parameters * dtype.itemsize + source.working_bytes(_largest(spec))
            require_memory(
                needed,
                f"{spec.name} ({spec.num_parameters / 1e9:.2f} billion parameters in {name})",
                f"Choose a smaller model{smaller} or a machine with more memory",
            )

    def layer(self, index: int) -> LayerWeights:
        """Layer ``index``."""
        config, spec = self._config, self._config.spec
        hidden, size, wide = spec.hidden_size, spec.head_dim, spec.intermediate_size
        queries, keys = spec.num_heads * size, spec.num_kv_heads * size
        at = f"model.layers.{index}"
        rows = {"q": queries, "k": keys, "v": keys}
        heads = [
            (f"{at}.self_attn.{name}_proj", count, name != "v") for name, count in rows.items()
        ]
        wings = [(f"{at}.mlp.{name}_proj", wide, False) for name in ("gate", "up")]
        out = f"{at}.self_attn.o_proj"
        down = f"{at}.mlp.down_proj"
        return LayerWeights(
            input_norm=self.norm(f"{at}.input_layernorm.weight", hidden),
            qkv=self._fused(heads, "weight", (hidden,)),
            qkv_bias=self._fused(heads, "bias", ()) if config.qkv_bias else None,
            qk_norm=self._qk_norm(at) if config.qk_norm else None,
            output=self.matrix(f"{out}.weight", hidden, queries),
            output_bias=self._vector(f"{out}.bias", hidden) if config.output_bias else None,
            mlp_norm=self.norm(f"{at}.post_attention_layernorm.weight", hidden),
            gate_up=self._fused(wings, "weight", (hidden,)),
            gate_up_bias=self._fused(wings, "bias", ()) if config.mlp_bias else None,
            down=self.matrix(f"{down}.weight", hidden, wide),
            down_bias=self._vector(f"{down}.bias", hidden) if config.mlp_bias else None,
        )

    def matrix(self, name: str, outputs: int, inputs: int) -> torch.Tensor:
        """A weight [outputs, inputs], a copy of its own."""
        return self._copy(self._source.read(name, (outputs, inputs)), self.dtype)

    def norm(self, name: str, size: int) -> torch.Tensor:
        """A norm's weight [size], fp32."""
        return self._copy(self._source.read(name, (size,)), torch.float32)

    def _vector(self, name: str, size: int) -> torch.Tensor:
        return self._copy(self._source.read(name, (size,)), self.dtype)

    def _copy(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return tensor.to(device=self.device, dtype=dtype, copy=True)

    def _fused(
        self, parts: list[tuple[str, int, bool]], kind: str, inputs: tuple[int, ...]
    ) -> torch.Tensor:
        """The rows of several projections, one below the other; (name, rows, interleaved) each."""
        total = sum(rows for _, rows, _ in parts)
        fused = torch.empty(total, *inputs, dtype=self.dtype, device=self.device)
        first = 0
        for name, rows, interleaved in parts:
            target = fused[first : first + rows]
            found = self._source.read(f"{name}.{kind}", (rows, *inputs))
            if interleaved:
                pairs = interleave(found, self._config.spec.head_dim)
                target.view(pairs.shape).copy_(pairs)
            else:
                target.copy_(found)
            first += rows
        return fused

    def _qk_norm(self, at: str) -> torch.Tensor:
        spec = self._config.spec
        both = []
        for name, heads in (("q", spec.num_heads), ("k", spec.num_kv_heads)):
            weight = self.norm(f"{at}.self_attn.{name}_norm.weight", spec.head_dim)
            both.append(interleave(weight, spec.head_dim).reshape(1, -1).expand(heads, -1))
        return torch.cat(both)


def _largest(spec: ModelSpec) -> int:
    """Values of the largest tensor."""
    rows = max(spec.vocab_size, spec.num_heads * spec.head_dim, spec.intermediate_size)
    return rows * spec.hidden_size
