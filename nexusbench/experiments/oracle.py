"""The truth of a simulated device, asked as if it were a belief: perfect knowledge."""

from __future__ import annotations

from nexusbench.core.batch import BatchShape
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.specs import ModelSpec
from nexusbench.costs.base import CostModel
from nexusbench.devices.base import Device
from nexusbench.devices.sim import Sim
from nexusbench.results.resolved import BeliefFacts


class Oracle(CostModel):
    """A device's own times, without its noise. An upper bound for beliefs, never one of them: it
    cannot be chosen by name, and its prediction errors are not scored.
    """

    monotone = False  # whole waves of tiles: a few more SMs can be no faster

    def __init__(self, device: Sim) -> None:
        self.options, self.parameters = self.Options(), None
        self._physics = device.physics

    @property
    def name(self) -> str:
        """Not a registered name."""
        return "oracle (the truth itself)"

    def predict(
        self, shape: BatchShape, sms: int, neighbour: tuple[BatchShape, int] | None = None
    ) -> float:
        """Nanoseconds if the neighbour ran throughout."""
        load = self._physics.load(shape, sms)
        slow = 1.0
        if neighbour is not None:
            slow = self._physics.slowdown(load, self._physics.load(*neighbour))
        return load.solo * slow * shape.repeat


def simulated(device: Device) -> Sim:
    """``device``, if it can say what it did not do. Raises UsageError for a real one."""
    if not isinstance(device, Sim):
        raise not_simulated(device.spec.name)
    return device


def not_simulated(device: str) -> UsageError:
    """What is wrong with a real device, before or after it is opened."""
    return UsageError(
        f"{device} is not simulated: only a simulated device knows what the splits that were not "
        "chosen would have cost. Use --device sim:GPU"
    )


def make_oracle(
    config: RunConfig, device: Device, model: ModelSpec
) -> tuple[CostModel, BeliefFacts]:
    """A belief factory for ``assemble``."""
    oracle = Oracle(simulated(device))
    return oracle, BeliefFacts(cost_model=oracle.name, profile=None, recalibrate=False)
