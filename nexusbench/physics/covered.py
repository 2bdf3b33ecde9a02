"""Which layers the physics has kernels for."""

from __future__ import annotations

from nexusbench.core.errors import UsageError
from nexusbench.core.layers import LayerGroup
from nexusbench.core.mixers import (
    CompressedAttention,
    SparseAttention,
    StateMixer,
)
from nexusbench.core.specs import ModelSpec

# Kinds that have no kernel here yet, and their names; a kernel that is added takes its line away.
_NO_KERNEL: tuple[tuple[type, str], ...] = (
    (SparseAttention, "sparse attention with an indexer"),
    (CompressedAttention, "compressed attention (DeepSeek-V4)"),
    (StateMixer, "linear attention or a state-space layer"),
)


def check_covered(model: ModelSpec) -> None:
    """Raises UsageError that names the first layer group of ``model`` that no kernel of the physics
    computes.
    """
    lacking = not_covered(model)
    if lacking:
        raise UsageError(
            f"{model.name} has {lacking}, which simulated devices have no kernel for. 'nexusbench "
            "model show' says what it is made of; to simulate, take a model whose layers have "
            "full, windowed or latent attention"
        )


def not_covered(model: ModelSpec) -> str:
    """The first layers that no kernel computes, in words; '' if there are none."""
    for group in model.groups:
        missing = _missing(group)
        if missing:
            return f"{group.count} layers of {missing}"
    return ""


def _missing(group: LayerGroup) -> str:
    """What of a layer has no kernel; '' if all of it has."""
    for kind, name in _NO_KERNEL:
        if isinstance(group.mixer, kind):
            return name
    if group.others:
        return f"'{group.others[0].name}', a matrix beside attention and feed-forward part,"
    return ""
