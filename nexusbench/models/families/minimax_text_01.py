"""MiniMax-01 and M1 under the names of their own code."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.minimax import MinimaxFamily


class MinimaxText01Family(MinimaxFamily):
    """The same under another ``model_type``."""

    architecture: ClassVar[str] = "MiniMaxText01ForCausalLM"
