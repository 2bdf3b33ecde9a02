"""HF tensors -> the decoder's layout: fused projections, rotary pairs as neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from nexusbench.core.errors import UsageError
from nexusbench.core.machine import require_memory
from nexusbench.core.specs import ModelSpec
from nexusbench.kernels.rotary import interleave_
from nexusbench.models.architecture import DecoderConfig
from nexusbench.models.checkpoint import RandomTensors, TensorSource
from nexusbench.models.designs import DenseDesign, GroupedDesign

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
    """One ordinary layer; weights are [outputs, inputs] in the computing type, norms fp32.

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


class HeadWeights(NamedTuple):
    """Of queries, keys and values: weight [rows, hidden], bias [rows], qk_norm as in
    :class:`LayerWeights`.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    norm: torch.Tensor | None


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
            needed = spec.num_parameters * dtype.itemsize
            if isinstance(source, RandomTensors):  # makes each in fp32 before it has its place
                needed += 4 * _largest(spec)
            require_memory(
                needed,
                f"{spec.name} ({spec.num_parameters / 1e9:.2f} billion parameters in {name})",
                f"Choose a smaller model{smaller} or a machine with more memory",
            )

    def layer(self, index: int) -> LayerWeights:
        """Layer ``index`` of an ordinary decoder."""
        hidden, design = self._config.spec.hidden_size, self._config.layers[index]
        attention, mlp, at = design.attention, design.mlp, f"model.layers.{index}"
        assert isinstance(attention, GroupedDesign)
        assert isinstance(mlp, DenseDesign)
        qkv = self.qkv(f"{at}.self_attn", attention)
        gate_up, gate_up_bias = self.gate_up(f"{at}.mlp", mlp)
        queries = attention.num_heads * attention.head_dim
        output, output_bias = self.linear(
            f"{at}.self_attn.o_proj", hidden, queries, attention.output_bias
        )
        down, down_bias = self.linear(f"{at}.mlp.down_proj", hidden, mlp.size, mlp.bias)
        return LayerWeights(
            input_norm=self.norm(f"{at}.input_layernorm.weight", hidden),
            qkv=qkv.weight,
            qkv_bias=qkv.bias,
            qk_norm=qkv.norm,
            output=output,
            output_bias=output_bias,
            mlp_norm=self.norm(f"{at}.post_attention_layernorm.weight", hidden),
            gate_up=gate_up,
            gate_up_bias=gate_up_bias,
            down=down,
            down_bias=down_bias,
        )

    def qkv(self, at: str, design: GroupedDesign) -> HeadWeights:
        """Queries, keys and values as one, rotary pairs as neighbours, and their norms."""
        hidden, size = self._config.spec.hidden_size, design.head_dim
        queries, keys = design.num_heads * size, design.num_kv_heads * size
        parts = [(f"{at}.q_proj", queries), (f"{at}.k_proj", keys), (f"{at}.v_proj", keys)]
        if design.fused:
            parts = [(f"{at}.qkv_proj", queries + 2 * keys)]
        weight = self.stacked(parts, "weight", (hidden,))
        bias = self.stacked(parts, "bias", ()) if design.qkv_bias else None
        for rows in (weight, bias):
            if rows is not None:
                interleave_(rows[: queries + keys], size, design.rotary_dim)
        return HeadWeights(weight, bias, self._qk_norm(at, design) if design.qk_norm else None)

    def gate_up(self, at: str, design: DenseDesign) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gate and up projection as one, and their biases."""
        hidden = self._config.spec.hidden_size
        parts = [(f"{at}.gate_proj", design.size), (f"{at}.up_proj", design.size)]
        if design.fused:
            parts = [(f"{at}.gate_up_proj", 2 * design.size)]
        bias = self.stacked(parts, "bias", ()) if design.bias else None
        return self.stacked(parts, "weight", (hidden,)), bias

    def linear(
        self, name: str, outputs: int, inputs: int, bias: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight [outputs, inputs] of a module, and its bias."""
        made = self.matrix(f"{name}.weight", outputs, inputs)
        return made, self.vector(f"{name}.bias", outputs) if bias else None

    def matrix(
        self, name: str, outputs: int, inputs: int, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """A weight [outputs, inputs], a copy of its own."""
        return self._copy(self._read(name, (outputs, inputs)), dtype or self.dtype)

    def norm(self, name: str, size: int) -> torch.Tensor:
        """A norm's weight [size], fp32."""
        made = self._copy(self._read(name, (size,)), torch.float32)
        return made.add_(1.0) if self._config.edges.unit_offset else made

    def vector(self, name: str, size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Any other values [size]."""
        return self._copy(self._read(name, (size,)), dtype or self.dtype)

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Values of any shape, in their own type; not a copy."""
        return self._read(name, shape)

    def _copy(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return tensor.to(device=self.device, dtype=dtype, copy=True)

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self._source.read(self._config.prefix + name, shape)

    def stacked(
        self, parts: list[tuple[str, int]], kind: str, inputs: tuple[int, ...]
    ) -> torch.Tensor:
        """The rows of several modules, one below the other; (name, rows) each."""
        total = sum(rows for _, rows in parts)
        stacked = torch.empty(total, *inputs, dtype=self.dtype, device=self.device)
        first = 0
        for name, rows in parts:
            found = self._read(f"{name}.{kind}", (rows, *inputs))
            stacked[first : first + rows].copy_(found)
            first += rows
        return stacked

    def _qk_norm(self, at: str, design: GroupedDesign) -> torch.Tensor:
        both = []
        for name, heads in (("q", design.num_heads), ("k", design.num_kv_heads)):
            weight = self.norm(f"{at}.{name}_norm.weight", design.head_dim)
            interleave_(weight, design.head_dim, design.rotary_dim)
            both.append(weight.view(1, -1).expand(heads, -1))
        return torch.cat(both)


def _largest(spec: ModelSpec) -> int:
    """Values of the largest tensor."""
    rows = max(spec.vocab_size, spec.num_heads * spec.head_dim, spec.intermediate_size)
    return rows * spec.hidden_size
