"""Logits that are NaN or infinite: no token may be drawn from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from nexusbench.kernels.paged import PagedKV


def broken_rows(logits: torch.Tensor) -> list[int]:
    """Rows of ``logits`` [R, vocab] with a value that is not finite.

    One pass over them: NaN and infinities survive a sum, and what only its sum makes infinite is
    looked at again. By numpy, since waking torch's threads takes longer than the sum of a step.
    """
    with np.errstate(all="ignore"):
        if math.isfinite(float(logits.detach().numpy().sum())):
            return []
    rows = (~torch.isfinite(logits)).any(dim=1).nonzero().flatten()
    return [int(row) for row in rows]


def whence(kv: PagedKV, blocks: Sequence[int]) -> str:
    """In which layer a request whose logits are broken went wrong, as far as its keys tell."""
    places = torch.as_tensor(list(blocks), dtype=torch.int64)
    for index, layer in enumerate(kv.layers):
        if not bool(torch.isfinite(layer.blocks.index_select(0, places)).all()):
            return (
                f"its keys and values are finite below layer {index} (of 0 to {len(kv.layers) - 1})"
                if index
                else "its keys and values are not finite from layer 0 on"
            )
    return "its keys and values are all finite: the last layer or the output head made them"
