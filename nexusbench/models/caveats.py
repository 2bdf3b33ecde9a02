"""What must be known of a model's simulated times: said on every screen, in files and on stderr."""

from __future__ import annotations

import logging
import multiprocessing

from nexusbench.core.specs import ModelSpec

_LOG = logging.getLogger("nexusbench")
_EXPERTS = (
    "NOT VALIDATED: a mixture of experts. Its times assume that every token picks its experts at "
    "random, and no run of such a model was measured against them (docs/fidelity.md)"
)


def caveats(model: ModelSpec) -> list[str]:
    """One sentence each; none for dense models whose weights have the type they compute in."""
    found = [_EXPERTS] if model.moe is not None else []
    types = model.dtypes
    if types.weights != types.activations:
        found.append(
            f"{types.weights} weights count as bytes only: matrix products take the time of "
            "bfloat16 ones, up to twice (4 bits: four times) what a GPU with units for "
            f"{types.weights} takes for a prefill"
        )
    return found


def warn(model: ModelSpec) -> None:
    """Log the caveats as warnings; the workers of a sweep leave it to the process they serve."""
    if multiprocessing.parent_process() is None:
        for text in caveats(model):
            _LOG.warning("%s", text)
