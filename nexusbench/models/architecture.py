"""What the decoder needs beyond a ModelSpec: rope, norms, biases, end tokens; same config.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from nexusbench.core.specs import ModelSpec
from nexusbench.models.document import ConfigDocument, open_config, shown
from nexusbench.models.families.base import computed_families, family_of
from nexusbench.models.packing import Packing, packing_of
from nexusbench.models.quantisation import unquantised

_ROPE_HINT = "Supported rope types: default, linear, llama3"


class Rope(msgspec.Struct, frozen=True):
    """Rotary position embedding: base ``theta`` and how its frequencies are scaled.

    ``linear`` divides all by ``factor`` (Position Interpolation, arXiv 2306.15595); ``llama3``
    divides those of wavelengths beyond ``original_max_len / low_freq_factor`` and blends up to
    ``original_max_len / high_freq_factor`` (Llama 3.1's reference code).
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_len: int = 8192


class DecoderConfig(msgspec.Struct, frozen=True):
    """A dense decoder of the Llama or Qwen family, complete enough to compute it.

    ``folder`` is where its weights lie; None for a shipped description. ``family`` is the
    ``model_type``; the projections that have biases and whether queries and keys are normalised
    (Qwen3) follow from it and the config. ``packing`` is that of its files, whose matrices are
    dequantised when they are read: ``spec`` has the data types that are computed in.
    """

    spec: ModelSpec
    family: str
    rope: Rope
    rms_norm_eps: float
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    eos_token_ids: tuple[int, ...]
    file: str
    folder: Path | None = None
    packing: Packing | None = None

    @property
    def built_in(self) -> bool:
        """A configuration of ours, for which no checkpoint exists: its weights are random."""
        return self.spec.source.startswith("built in")


def load_decoder_config(name_or_path: str | os.PathLike[str]) -> DecoderConfig:
    """The decoder of a shipped name, a ``config.json``, or a folder that holds one.

    Raises InputError naming file, line and field for an architecture that cannot be computed.
    """
    config = open_config(name_or_path)
    family = family_of(config)
    packing, biases = packing_of(config), family.biases
    spec = family.describe(unquantised(config))
    if biases is None or spec.stack is not UNSET:
        if biases is not None:
            raise config.error(
                "model_type",
                "has layers that are not alike, or of other kinds than full attention",
                "With real tokens: models whose layers all have full attention",
            )
        raise config.error(
            "model_type",
            f"'{config.data['model_type']}' is described but not computed",
            f"With real tokens: {', '.join(computed_families())}",
        )
    if spec.head_dim % 2:
        raise config.error("head_dim", f"{spec.head_dim} is odd", "RoPE rotates pairs")
    attention_bias = config.flag("attention_bias")
    return DecoderConfig(
        spec=spec,
        family=str(config.data["model_type"]),
        rope=_rope(config),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        qkv_bias=attention_bias if biases.qkv is None else biases.qkv,
        output_bias=attention_bias if biases.output is None else biases.output,
        mlp_bias=config.flag("mlp_bias") if biases.mlp is None else biases.mlp,
        qk_norm=family.qk_norm,
        eos_token_ids=_eos(config),
        file=config.file,
        folder=config.folder,
        packing=packing,
    )


def _rope(config: ConfigDocument) -> Rope:
    """The rope of ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling``."""
    field = "rope_parameters" if config.data.get("rope_parameters") else "rope_scaling"
    scaling: Any = config.data.get(field) or {}
    if not isinstance(scaling, dict):
        raise config.error(field, f"is {shown(scaling)}, not an object", _ROPE_HINT)
    theta = config.number("rope_theta", 10000.0)
    theta = config.number(f"{field}.rope_theta", theta, scaling)
    for where in (config.data, scaling):
        if where.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise config.error("partial_rotary_factor", "is not 1", "Only full rope is supported")
    kind = scaling.get("rope_type", scaling.get("type", "default")) or "default"
    if kind == "default":
        return Rope(theta=theta)
    if kind not in ("linear", "llama3"):
        problem = f"{shown(kind)} is not supported"
        raise config.error(f"{field}.rope_type", problem, _ROPE_HINT)
    wanted = {"factor"}
    if kind == "llama3":
        wanted |= {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    for name in sorted(wanted):
        if scaling.get(name) is None:
            hint = "Give the model's complete HF config.json"
            raise config.error(f"{field}.{name}", f"is missing for rope type {kind}", hint)
    numbers = {name: config.number(f"{field}.{name}", 1.0, scaling) for name in sorted(wanted)}
    return Rope(
        theta=theta,
        kind="linear" if kind == "linear" else "llama3",
        factor=numbers["factor"],
        low_freq_factor=numbers.get("low_freq_factor", 1.0),
        high_freq_factor=numbers.get("high_freq_factor", 4.0),
        original_max_len=int(numbers.get("original_max_position_embeddings", 8192)),
    )


def _eos(config: ConfigDocument) -> tuple[int, ...]:
    """The token ids that end a sequence: one, several or none."""
    value = config.data.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int):
            problem = f"{shown(token)} is not a token id"
            raise config.error("eos_token_id", problem, "Give a token id, a list of them, or null")
    return tuple(ids)
