"""HF ``config.json`` -> :class:`ModelSpec`: shipped models, or any file of a known family."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
from collections.abc import Iterable
from functools import cache

from msgspec import UNSET

from nexusbench.core.layers import ExpertsMlp
from nexusbench.core.mixers import (
    CompressedAttention,
    LatentAttention,
    SparseAttention,
    StateMixer,
)
from nexusbench.core.specs import ModelSpec
from nexusbench.models.document import model_names, open_config
from nexusbench.models.families.base import family_of

__all__ = ["caveats", "describe_model", "load_model", "missing_quantisation", "model_names"]

_LOG = logging.getLogger("nexusbench")
_EXPERTS = (
    "NOT VALIDATED: a mixture of experts. Its kernels follow measured ones, but every token is "
    "assumed to pick its experts at random; in the one recorded run of such a model that was "
    "compared, TPOT comes out 8 % too low; means of servers in closed loops: docs/fidelity.md"
)
_PICKED = (
    "attention to chosen tokens or compressed entries: kernels as vLLM's modules of DeepSeek-V3.2, "
    "GLM-5, MiniMax-M3 and DeepSeek-V4 were measured on Hopper and Blackwell, by analogy on other "
    "GPUs; no run of such a model was compared (docs/fidelity.md)"
)
_DELTA = (
    "recurrent states: kernels as those of the gated delta rule and of KDA were measured; no run "
    "of such a model was compared (docs/fidelity.md)"
)
_BY_ANALOGY = (
    "NOT VALIDATED: {} takes the constants of kernels of the gated delta rule, by analogy: none of "
    "its own was measured (docs/fidelity.md)"
)
# Types of weights of the servers whose means in closed loops were compared (docs/fidelity.md).
_SERVED_TYPES = frozenset({"fp8", "fp8_block", "mxfp4", "nvfp4"})
_MEASURED_STATES = ("gated delta net", "Kimi delta attention")

# What checkpoints of quantised weights are called.
_NAMED_TYPE = re.compile(r"nvfp4|mxfp4|fp8|fp4|awq|gptq|int4|int8|w4a16|w8a8", re.IGNORECASE)


def load_model(name_or_path: str | os.PathLike[str]) -> ModelSpec:
    """The model of a shipped name (any case), a ``config.json``, or a folder that holds one.

    As :func:`describe_model`, and logs a warning about what its times are not.
    """
    model = describe_model(name_or_path)
    warn(caveats(model))
    return model


def describe_model(name_or_path: str | os.PathLike[str]) -> ModelSpec:
    """The model of a shipped name (any case), a ``config.json``, or a folder that holds one.

    A shipped name wins over a folder of the same name; write ``./NAME`` for the folder.
    ``max_model_len`` is ``max_position_embeddings`` as written, or what YaRN makes of the length
    that it extends. Raises InputError naming file, line and field for anything that cannot be
    described exactly.
    """
    name = os.fspath(name_or_path).lower()
    if name in model_names():
        return _shipped(name)
    config = open_config(name_or_path)
    return family_of(config).describe(config)


@cache
def _shipped(name: str) -> ModelSpec:
    """A shipped model, whose file does not change while this process runs."""
    config = open_config(name)
    return family_of(config).describe(config)


def caveats(model: ModelSpec, *, dequantised: bool = False) -> list[str]:
    """One sentence each; none for dense models whose weights have the type they compute in.
    ``dequantised``: that is so because they are dequantised when they are loaded.
    """
    experts = any(isinstance(group.mlp, ExpertsMlp) for group in model.groups)
    found = [_EXPERTS] if experts else []
    mixers = [group.mixer for group in model.groups]
    if any(isinstance(one, SparseAttention | CompressedAttention) for one in mixers):
        found.append(_PICKED)
    kinds = {one.kind for one in mixers if isinstance(one, StateMixer)}
    if kinds & set(_MEASURED_STATES):
        found.append(_DELTA)
    found += [_BY_ANALOGY.format(kind) for kind in sorted(kinds - set(_MEASURED_STATES))]
    types = _weight_types(model) - {model.dtypes.activations}
    if not dequantised and (promised := missing_quantisation(model)):
        found.append(promised)
    if types:
        named, runs = " and ".join(sorted(types)), "no run of such a model was compared"
        if types <= _SERVED_TYPES:
            runs = "of runs only means of servers in closed loops were compared"
        found.append(
            f"{named} weights: products as kernels of such a type were measured, or by "
            f"analogy where none were; {runs} (docs/fidelity.md)"
        )
    if model.dtypes.kv != model.dtypes.activations:
        how = "attention over it as kernels of full attention were measured (held out, decodes are "
        how += "8 to 18 % off, prompts 13 to 30 %)"
        if any(isinstance(one, LatentAttention | CompressedAttention) for one in mixers):
            how = "of latents and entries the bytes count, no other kernel"
        found.append(
            f"{model.dtypes.kv} KV cache: {how}; no run of such a model was compared "
            "(docs/fidelity.md)"
        )
    return found


def missing_quantisation(model: ModelSpec) -> str:
    """What is said of a model whose name has a type of quantised weights that its description
    does not have; '' of others.
    """
    promised = _NAMED_TYPE.search(model.name)
    if promised is None or _weight_types(model) - {model.dtypes.activations}:
        return ""
    return (
        f"its name says {promised[0]}, but its description names no quantisation: weights count as "
        f"{model.dtypes.weights}. Put the checkpoint's hf_quant_config.json beside its config.json"
    )


def _weight_types(model: ModelSpec) -> set[str]:
    """Data types of the layers' weights."""
    if model.stack is UNSET:
        return {model.dtypes.weights}
    hidden = model.hidden_size
    return {group.dtypes.of(one) for group in model.groups for one in group.projections(hidden)}


def warn(texts: Iterable[str]) -> None:
    """Log caveats as warnings; the workers of a sweep leave it to the process they serve."""
    if multiprocessing.parent_process() is None:
        for text in texts:
            _LOG.warning("%s", text)
