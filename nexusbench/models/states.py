"""Layers with a recurrent state, read from the keys of config.json."""

from __future__ import annotations

from typing import Literal

from nexusbench.core.mixers import Projection, StateMixer
from nexusbench.models.document import ConfigDocument, shown

StateDtype = Literal["float32", "bfloat16", "float16"]
_KNOWN: tuple[StateDtype, ...] = ("float32", "bfloat16", "float16")


def state_dtype(config: ConfigDocument, field: str, default: StateDtype) -> StateDtype:
    """The data type that ``field`` names; of ``dtype`` also under its older name."""
    value = config.data.get(field)
    if value is None and field == "dtype":
        field, value = "torch_dtype", config.data.get("torch_dtype")
    if value is None:
        return default
    for known in _KNOWN:
        if str(value).removeprefix("torch.") == known:
            return known
    raise config.error(field, f"is {shown(value)}", f"Supported: {', '.join(_KNOWN)}")


def _mamba2_sizes(config: ConfigDocument) -> tuple[int, int, int]:
    """(heads, values of all heads, channels of the convolution)."""
    heads = config.count("mamba_num_heads")
    inner = heads * config.count("mamba_head_dim")
    return heads, inner, inner + 2 * config.count("n_groups") * config.count("ssm_state_size")


def mamba2(config: ConfigDocument) -> StateMixer:
    """A Mamba2 block (2405.21060) under the keys of Nemotron-H."""
    heads, inner, channels = _mamba2_sizes(config)
    hidden = config.count("hidden_size")
    return StateMixer(
        kind="Mamba2", heads=heads, key_dim=config.count("mamba_head_dim"),
        value_dim=config.count("ssm_state_size"),
        matrices=(
            Projection("mamba_in", hidden, inner + channels + heads),
            Projection("mamba_out", inner, hidden),
        ),
        conv_values=channels * (config.count("conv_kernel") - 1),
        state_dtype=state_dtype(config, "mamba_ssm_cache_dtype", "float32"),
        conv_dtype=state_dtype(config, "dtype", "bfloat16"),
    )  # fmt: skip


def mamba2_vectors(config: ConfigDocument) -> int:
    """Its convolution, three values a head, and its norm."""
    heads, inner, channels = _mamba2_sizes(config)
    bias = channels if config.flag("use_conv_bias", default=True) else 0
    return channels * config.count("conv_kernel") + bias + 3 * heads + inner
