"""The cost-model seam: a belief about how long a batch takes on some SMs, beside some neighbour."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.registry import Registry
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.profiles.points import Point


class CostModelOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a cost model; the base has none."""


class FittedParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The result of a fit: plain numbers, kept in a profile. The base has none."""


class Target(msgspec.Struct, frozen=True):
    """What a cost model is about: the GPU and the model as published, and over how many GPUs."""

    gpu: GpuSpec
    model: ModelSpec
    tensor_parallel: int = 1


class CostModel(ABC):
    """A belief. It is built from published numbers or fitted to a profile, never from the device it
    is asked about.

    ``parameters`` None means not fitted, which only a model with ``works_unfitted`` allows.
    Predictions use plain arithmetic only, so equal parameters decide equally on every machine (I6).
    """

    Options: ClassVar[type[CostModelOptions]] = CostModelOptions
    Parameters: ClassVar[type[FittedParameters]] = FittedParameters
    works_unfitted: ClassVar[bool] = False
    found_by_fit: ClassVar[tuple[str, ...]] = ()  # options that mean nothing once it is fitted
    monotone: bool = True  # more SMs are never believed to take longer
    learns: bool = False  # :meth:`observe` is called after each launch
    source: ClassVar[str] = ""

    def __init__(
        self,
        options: CostModelOptions | None = None,
        *,
        gpu: GpuSpec,
        model: ModelSpec,
        tensor_parallel: int = 1,
        parameters: FittedParameters | None = None,
    ) -> None:
        self.options = options if options is not None else self.Options()
        self.parameters = parameters

    @property
    def name(self) -> str:
        """The name on the command line: that of its module."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @abstractmethod
    def predict(
        self, shape: BatchShape, sms: int, neighbour: tuple[BatchShape, int] | None = None
    ) -> float:
        """Nanoseconds that ``shape`` takes on ``sms`` SMs while ``neighbour`` (shape, SMs) runs
        beside it.
        """

    def predict_splits(
        self,
        shape: BatchShape,
        sms: Sequence[int],
        neighbour: BatchShape | None = None,
        neighbour_sms: Sequence[int] = (),
    ) -> list[float]:
        """:meth:`predict` for many splits at once: ``shape`` on ``sms[i]`` SMs beside ``neighbour``
        on ``neighbour_sms[i]``. Models override it where arrays are faster.
        """
        if neighbour is None:
            return [self.predict(shape, own) for own in sms]
        return [
            self.predict(shape, own, (neighbour, other))
            for own, other in zip(sms, neighbour_sms, strict=True)
        ]

    def observe(  # noqa: B027 - most beliefs do not learn while they serve
        self, shape: BatchShape, sms: int, predicted_ns: float, actual_ns: float
    ) -> None:
        """A launch on ``sms`` SMs that was predicted has ended. Beliefs that learn online override
        this.
        """

    @classmethod
    def fit(
        cls, points: Sequence[Point], target: Target, options: CostModelOptions
    ) -> FittedParameters:
        """Parameters from measured points (held-out ones are not among them).

        Raises UsageError if the points do not determine them, naming what to measure.
        """
        raise NotImplementedError(f"{cls.__module__} has nothing to fit")


cost_models = Registry("nexusbench.costs", "cost model", "CostModel")
