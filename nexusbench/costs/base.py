"""The cost-model seam: a belief about how long a batch takes on some SMs, beside some neighbour."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.registry import Registry
from nexusbench.core.specs import GpuSpec, ModelSpec


class CostModelOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a cost model; the base has none."""


class CostModel(ABC):
    """A belief. It is built from published numbers or fitted to a profile, never from the device it
    is asked about.
    """

    Options: ClassVar[type[CostModelOptions]] = CostModelOptions
    source: ClassVar[str] = ""

    def __init__(
        self,
        options: CostModelOptions | None = None,
        *,
        gpu: GpuSpec,
        model: ModelSpec,
        tensor_parallel: int = 1,
    ) -> None:
        self.options = options if options is not None else self.Options()

    @property
    def name(self) -> str:
        """The name the user types."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @abstractmethod
    def predict(
        self, shape: BatchShape, sms: int, neighbour: tuple[BatchShape, int] | None = None
    ) -> float:
        """Nanoseconds that ``shape`` takes on ``sms`` SMs while ``neighbour`` (shape, SMs) runs
        beside it.
        """


cost_models = Registry("nexusbench.costs", "cost model", "CostModel")
