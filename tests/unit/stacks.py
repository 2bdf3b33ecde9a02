"""Models of groups of layers, and nothing of note beside them."""

from __future__ import annotations

from nexusbench.core.layers import DenseMlp, LayerGroup, LayerStack
from nexusbench.core.mixers import Mixer
from nexusbench.core.specs import ModelSpec


def stack(*parts: tuple[int, Mixer | None]) -> ModelSpec:
    """A model of groups of (layers, mixer)."""
    groups = tuple(
        LayerGroup(count=count, mixer=mixer, mlp=DenseMlp(intermediate_size=64))
        for count, mixer in parts
    )
    order = tuple(i for i, (count, _) in enumerate(parts) for _ in range(count))
    return ModelSpec(
        "made-up", len(order), 256, 8, 2, 64, 64, 1000, 4096,
        stack=LayerStack(groups=groups, order=order),
    )  # fmt: skip
