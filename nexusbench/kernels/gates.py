"""What stands between the products of a feed-forward part: a gate, and what it is applied to."""

from __future__ import annotations

from typing import Literal

import msgspec

GateKind = Literal["silu", "gelu_tanh", "gelu", "clamped"]


class Gate(msgspec.Struct, frozen=True):
    """``act(gate) * up``: of SiLU, of GELU (exactly, or by tanh), or ``clamped``: with the gate at
    most ``limit`` and ``up`` within it, ``gate * sigmoid(alpha * gate) * (up + 1)`` (gpt-oss).
    """

    kind: GateKind = "silu"
    alpha: float = 1.0
    limit: float = 0.0
