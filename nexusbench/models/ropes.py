"""The rotary position embedding that a config.json describes, in the spellings of transformers 4
and 5.
"""

from __future__ import annotations

import math
from typing import Any

from nexusbench.kernels.ropes import Rope, RopeKind
from nexusbench.models.document import ConfigDocument, shown

_HINT = "Supported rope types: default, linear, llama3, yarn, longrope"
_COMPLETE = "Give the model's complete HF config.json"
_KINDS: dict[str, RopeKind] = {
    "default": "default", "linear": "linear", "llama3": "llama3", "yarn": "yarn",
    "longrope": "longrope", "su": "longrope",
}  # fmt: skip
_NEEDED = {
    "linear": ("factor",),
    "llama3": ("factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings"),
}
_ORIGINAL = "original_max_position_embeddings"


class _Scaling:
    """The object that scales a rope, and where it stands."""

    def __init__(self, config: ConfigDocument, kind: str = "") -> None:
        """``kind``: of layers that have an object of their own (Gemma 3)."""
        self.config = config
        self.field = "rope_parameters" if config.data.get("rope_parameters") else "rope_scaling"
        values: Any = config.data.get(self.field) or {}
        if isinstance(values, dict) and kind and isinstance(values.get(kind), dict):
            self.field, values = f"{self.field}.{kind}", values[kind]
        if not isinstance(values, dict):
            raise config.error(self.field, f"is {shown(values)}, not an object", _HINT)
        self.values: dict[str, Any] = values

    def number(self, name: str, default: float) -> float:
        """A positive number of the object."""
        return self.config.number(f"{self.field}.{name}", default, self.values)

    def needed(self, name: str, kind: str) -> float:
        """One that must be there."""
        if self.values.get(name) is None:
            problem = f"is missing for rope type {kind}"
            raise self.config.error(f"{self.field}.{name}", problem, _COMPLETE)
        return self.number(name, 1.0)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A list of positive numbers of that length."""
        listed = self.values.get(name)
        rows = listed if isinstance(listed, list) else []
        good = all(
            isinstance(one, int | float) and not isinstance(one, bool) and 0 < one < 1e18
            for one in rows
        )
        if not good or len(rows) != length:
            problem = "is missing" if listed is None else f"is {shown(listed)}"
            hint = f"Give a list of {length} positive numbers, one for each rotary pair"
            raise self.config.error(f"{self.field}.{name}", problem, hint)
        return tuple(map(float, rows))


def rope_of(config: ConfigDocument, dim: int, theta: float = 10000.0, kind: str = "") -> Rope:
    """The rope on ``dim`` values of a head, of all layers or of those of ``kind``; ``theta`` where
    the config gives none. Raises InputError for one that is not computed.
    """
    scaling = _Scaling(config, kind)
    theta = config.number("rope_theta", theta)
    theta = scaling.number("rope_theta", theta)
    values = scaling.values
    for key, value in values.items():
        if isinstance(value, dict):
            problem = "is an object: all layers have one rope here"
            raise config.error(f"{scaling.field}.{key}", problem, "Give its keys one level above")
    name = values.get("rope_type", values.get("type", "default")) or "default"
    if not isinstance(name, str) or name not in _KINDS:
        problem = f"{shown(name)} is not supported"
        raise config.error(f"{scaling.field}.rope_type", problem, _HINT)
    of = _KINDS[name]
    if of == "yarn" and "short_factor" in values:  # what the first Phi-3 configs call LongRoPE
        of = "longrope"
    if of == "default":
        return Rope(theta=theta)
    if of == "yarn":
        return _yarn(scaling, theta)
    if of == "longrope":
        return _longrope(scaling, theta, dim)
    numbers = {field: scaling.needed(field, name) for field in _NEEDED[name]}
    return Rope(
        theta=theta,
        kind=of,
        factor=numbers["factor"],
        low_freq_factor=numbers.get("low_freq_factor", 1.0),
        high_freq_factor=numbers.get("high_freq_factor", 4.0),
        original_max_len=int(numbers.get(_ORIGINAL, 8192)),
    )


def rotary_dim(config: ConfigDocument, head_dim: int) -> int:
    """How many values of a head are rotated: all, or the share that ``partial_rotary_factor``
    gives. Raises InputError for an odd number.
    """
    share = config.number("partial_rotary_factor", 1.0)
    scaling = _Scaling(config)
    share = scaling.number("partial_rotary_factor", share)
    dim = int(head_dim * share)
    if share > 1 or dim % 2 or dim == 0:
        field, problem = "partial_rotary_factor", f"is {share:g}: {dim} of {head_dim} values rotate"
        if share == 1:
            field, problem = "head_dim", f"{head_dim} is odd"
        raise config.error(field, problem, "RoPE rotates pairs")
    return dim


def score_factor(config: ConfigDocument) -> float:
    """What YaRN of DeepSeek multiplies attention scores by: (0.1 m ln(factor) + 1) squared, with
    ``mscale_all_dim`` for m (2309.00071, section 3.4; transformers, models/deepseek_v3).
    """
    scaling = _Scaling(config)
    kind = scaling.values.get("rope_type", scaling.values.get("type"))
    if kind in (None, "default") or not scaling.values.get("mscale_all_dim"):
        return 1.0
    return _magnitude(_factor(scaling), scaling.number("mscale_all_dim", 1.0)) ** 2


def _magnitude(factor: float, m: float = 1.0) -> float:
    """Of YaRN's rotations: 0.1 m ln(factor) + 1 (2309.00071, section 3.4)."""
    return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0


def _original(scaling: _Scaling) -> int:
    """Tokens that the model was trained with before its context was extended."""
    config = scaling.config
    if scaling.values.get(_ORIGINAL) is None and config.data.get(_ORIGINAL) is not None:
        return config.count(_ORIGINAL)
    return int(scaling.number(_ORIGINAL, config.count("max_position_embeddings")))


def _factor(scaling: _Scaling) -> float:
    longest = scaling.config.count("max_position_embeddings")
    return scaling.number("factor", longest / _original(scaling))


def _yarn(scaling: _Scaling, theta: float) -> Rope:
    values, factor = scaling.values, _factor(scaling)
    magnitude = _magnitude(factor)
    if values.get("mscale") and values.get("mscale_all_dim"):
        magnitude = _magnitude(factor, scaling.number("mscale", 1.0))
        magnitude /= _magnitude(factor, scaling.number("mscale_all_dim", 1.0))
    truncate = values.get("truncate", True)
    if not isinstance(truncate, bool):
        field = f"{scaling.field}.truncate"
        raise scaling.config.error(field, f"is {shown(truncate)}", "Write true or false")
    return Rope(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_max_len=_original(scaling),
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        truncate=truncate,
        magnitude=scaling.number("attention_factor", magnitude),
    )


def _longrope(scaling: _Scaling, theta: float, dim: int) -> Rope:
    """Of contexts up to the original length: those beyond have other divisors from their first
    token on (transformers, ``longrope_frequency_update``).
    """
    original, factor = _original(scaling), _factor(scaling)
    magnitude = 1.0
    if factor > 1:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original))
    longest = scaling.config.count("max_position_embeddings")
    return Rope(
        theta=theta,
        kind="longrope",
        factor=factor,
        original_max_len=original,
        divisors=scaling.numbers("short_factor", dim // 2),
        magnitude=scaling.number("attention_factor", magnitude),
        longest=original if original < longest else 0,
    )
