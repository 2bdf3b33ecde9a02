"""What the decoder needs beyond a ModelSpec: how layers are computed, norms, end tokens."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.mixers import CompressedAttention, SparseAttention, StateMixer
from nexusbench.core.specs import ModelSpec
from nexusbench.models.design_reading import NotComputed
from nexusbench.models.designs import Edges, LatentDesign, LayerDesign
from nexusbench.models.document import ConfigDocument, open_config, shown
from nexusbench.models.families.base import computed_families, family_of
from nexusbench.models.packing import Packing, packing_of
from nexusbench.models.quantisation import unquantised


class DecoderConfig(msgspec.Struct, frozen=True):
    """A decoder, complete enough to compute it: ``layers`` says how each one is computed, ``edges``
    what is done around them. ``family`` is the ``model_type``, ``folder`` where its weights lie
    (None for a shipped description), ``prefix`` what their names begin with. ``packing`` is that of
    its files, whose matrices are dequantised when they are read: ``spec`` has the data types that
    are computed in.
    """

    spec: ModelSpec
    family: str
    layers: tuple[LayerDesign, ...]
    edges: Edges
    rms_norm_eps: float
    eos_token_ids: tuple[int, ...]
    file: str
    folder: Path | None = None
    prefix: str = ""
    packing: Packing | None = None

    @property
    def built_in(self) -> bool:
        """A configuration of ours, for which no checkpoint exists: its weights are random."""
        return self.spec.source.startswith("built in")

    @property
    def ordinary(self) -> bool:
        """Layers all alike, of full attention and SwiGLU as in Llama and Qwen."""
        first = self.layers[0]
        alike = all(layer == first for layer in self.layers) and self.edges == Edges()
        return alike and first.ordinary

    @property
    def longest(self) -> int:
        """Tokens of a sequence that can be computed."""
        ends = (layer.attention.rope.longest for layer in self.layers)
        return min([self.spec.max_model_len, *(end for end in ends if end)])

    @property
    def kv_values(self) -> int:
        """Values that are kept of a token: a window keeps the tokens that it has passed, too."""
        return sum(
            layer.attention.kv_rank + layer.attention.rope_dim
            if isinstance(layer.attention, LatentDesign)
            else 2 * layer.attention.num_kv_heads * layer.attention.head_dim
            for layer in self.layers
        )


def load_decoder_config(name_or_path: str | os.PathLike[str]) -> DecoderConfig:
    """The decoder of a shipped name, a ``config.json``, or a folder that holds one.

    Raises InputError naming file, line and field for an architecture that cannot be computed.
    """
    config = open_config(name_or_path)
    family = family_of(config)
    spec = family.describe(unquantised(config))
    if family.biases is None:
        raise _not_computed(config, f"is described but not computed{_because(spec)}")
    packing = packing_of(config)
    inner = family.decoder_of(config)
    plans = family.layers(inner, spec.num_layers)
    try:
        layers = tuple(family.design(inner, index, plan) for index, plan in enumerate(plans))
    except NotComputed as part:
        raise _not_computed(config, f"has {part}, which is described but not computed") from None
    return DecoderConfig(
        spec=spec,
        family=str(config.data["model_type"]),
        layers=layers,
        edges=family.edges(inner),
        rms_norm_eps=inner.number("rms_norm_eps", 1e-6),
        eos_token_ids=_eos(inner if config.data.get("eos_token_id") is None else config),
        file=config.file,
        folder=config.folder,
        prefix=family.prefix,
        packing=packing,
    )


def require_ordinary(config: DecoderConfig, device: str) -> None:
    """Raise UsageError unless the decoder is one that ``device`` has kernels for."""
    if not config.ordinary:
        raise UsageError(
            f"{device} computes dense models of full attention, and '{config.spec.name}' is not "
            "one. Serve it with --device cpu, or on a simulated GPU"
        )
    if config.longest < config.spec.max_model_len:
        raise UsageError(
            f"{device} computes no model whose LongRoPE has other frequencies beyond "
            f"{config.longest:,} tokens, as '{config.spec.name}' has. Serve it with --device cpu "
            f"--max-model-len {config.longest}, or on a simulated GPU"
        )


def _not_computed(config: ConfigDocument, problem: str) -> InputError:
    hint = f"With real tokens: {', '.join(computed_families())}"
    return config.error("model_type", f"'{config.data['model_type']}' {problem}", hint)


def _because(spec: ModelSpec) -> str:
    """The first kind of attention that no decoder here has."""
    for group in spec.groups:
        if isinstance(group.mixer, SparseAttention | CompressedAttention | StateMixer):
            return f": {group.mixer.label}"
    return ""


def _eos(config: ConfigDocument) -> tuple[int, ...]:
    """The token ids that end a sequence: one, several or none."""
    value = config.data.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int):
            problem = f"{shown(token)} is not a token id"
            raise config.error("eos_token_id", problem, "Give a token id, a list of them, or null")
    return tuple(ids)
