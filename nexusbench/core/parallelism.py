"""How a model is spread over GPUs: tensor, data and expert parallelism, and what each GPU holds."""

from __future__ import annotations

import msgspec

from nexusbench.core.layers import ExpertsMlp
from nexusbench.core.specs import ModelSpec


class Parallelism(msgspec.Struct, frozen=True):
    """``data`` engines of ``tensor`` GPUs each.

    The experts of a mixture are spread over all of them, as vLLM does it: with ``experts`` each
    expert lies whole on one GPU, else each GPU has a share of every expert's width. The engines
    then step together. Those of other models share nothing.
    """

    tensor: int = 1
    data: int = 1
    experts: bool = False

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.tensor * self.data

    @property
    def spread(self) -> int:
        """GPUs that the experts of a layer are dealt out to, each of them whole."""
        return self.gpus if self.experts else 1

    @property
    def sharded(self) -> int:
        """GPUs that share the width of each expert."""
        return 1 if self.experts else self.gpus

    def in_lockstep(self, model: ModelSpec) -> bool:
        """Whether the engines step together: the tokens of all meet at the experts."""
        return self.data > 1 and any(isinstance(group.mlp, ExpertsMlp) for group in model.groups)

    def weight_bytes(self, model: ModelSpec) -> float:
        """Bytes of weights on each GPU: a share of the experts', and of the rest that of a tensor
        parallel group, which each engine has whole.
        """
        experts = 0.0
        for linear in model.linears:
            if linear.name.startswith("expert"):
                experts += linear.inputs * linear.outputs * linear.count * linear.bytes_each
        return (model.weight_bytes - experts) / self.tensor + experts / self.gpus
