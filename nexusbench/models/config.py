"""HF ``config.json`` -> :class:`ModelSpec`: shipped models, or any file of a known family."""

from __future__ import annotations

import logging
import multiprocessing
import os
from functools import cache

from nexusbench.core.specs import ModelSpec
from nexusbench.models.document import model_names, open_config
from nexusbench.models.families.base import family_of

__all__ = ["caveats", "load_model", "model_names"]

_LOG = logging.getLogger("nexusbench")
_EXPERTS = (
    "NOT VALIDATED: a mixture of experts. Its kernels follow measured ones, but every token is "
    "assumed to pick its experts at random, and no run of such a model was compared "
    "(docs/fidelity.md)"
)


def load_model(name_or_path: str | os.PathLike[str]) -> ModelSpec:
    """The model of a shipped name (any case), a ``config.json``, or a folder that holds one.

    A shipped name wins over a folder of the same name; write ``./NAME`` for the folder.
    ``max_model_len`` is ``max_position_embeddings`` as written; rope scaling does not stretch it.
    Logs a warning about what its times are not. Raises InputError naming file, line and field for
    anything that cannot be described exactly.
    """
    name = os.fspath(name_or_path).lower()
    if name in model_names():
        model = _shipped(name)
    else:
        config = open_config(name_or_path)
        model = family_of(config).describe(config)
    warn(model)
    return model


@cache
def _shipped(name: str) -> ModelSpec:
    """A shipped model, whose file does not change while this process runs."""
    config = open_config(name)
    return family_of(config).describe(config)


def caveats(model: ModelSpec) -> list[str]:
    """One sentence each; none for dense models whose weights have the type they compute in."""
    found = [_EXPERTS] if model.moe is not None else []
    types = model.dtypes
    if types.weights != types.activations:
        found.append(
            f"{types.weights} weights: products as kernels of such a type were measured, or by "
            "analogy where none were; no run of such a model was compared (docs/fidelity.md)"
        )
    return found


def warn(model: ModelSpec) -> None:
    """Log the caveats as warnings; the workers of a sweep leave it to the process they serve."""
    if multiprocessing.parent_process() is None:
        for text in caveats(model):
            _LOG.warning("%s", text)
