"""What a layer's attention sees of its keys, and what becomes of the scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class AttentionRule:
    """Scores are products times ``scale``.

    With a ``window`` a token sees that many tokens, itself the last of them (0: all). Scores are
    held within ``soft_cap`` by a tanh (0: they are not; Gemma 2, 2408.00118, section 2). ``sinks``
    [heads] in fp32 are scores that take part in a head's softmax and have no value (gpt-oss,
    2508.10925, section 2.2).
    """

    scale: float
    window: int = 0
    soft_cap: float = 0.0
    sinks: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        """Nothing but the scale."""
        return not self.window and not self.soft_cap and self.sinks is None
