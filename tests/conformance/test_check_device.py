"""check_device passes the simulated GPUs, and fails what is wrong with the right name."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest

from nexusbench.core.batch import Split, StepOutput
from nexusbench.devices.sim import Sim
from nexusbench.physics.gpus import gpu_names
from nexusbench.testing import ConformanceError, check_device, tiny_device, tiny_gpu, tiny_model
from nexusbench.testing.__main__ import device_factory, main


def test_made_up_gpu():
    check_device(tiny_device)


@pytest.mark.parametrize("name", gpu_names())
@pytest.mark.slow
def test_shipped_gpus(name):
    check_device(device_factory(f"sim:{name}", seed=3))


def wrong(cls):
    """A factory of ``cls`` in place of Sim."""
    honest = tiny_device()
    options = honest_options()
    return lambda: cls(tiny_gpu(), tiny_model(), options, name=honest.gpu.name)


def honest_options():
    from nexusbench.devices.base import DeviceOptions

    return DeviceOptions(8, 64, seed=1)


class ClockRunsBack(Sim):
    def wait(self, until):
        if until is not None:
            self._now = until
            return []
        return super().wait(until)


class ClockStandsStill(Sim):
    def wait(self, until):
        return [] if not self._launches else super().wait(until)


class NoDepth(Sim):
    def submit(self, step, batch, sms):
        batch.partition = f"{batch.partition} {step}"
        super().submit(step, batch, sms)


class AnySms(Sim):
    def submit(self, step, batch, sms):
        super().submit(step, batch, min(max(sms, 1), self.gpu.num_sms))


class AllAreLast(Sim):
    def wait(self, until):
        return [msgspec.structs.replace(output, last=True) for output in super().wait(until)]


class OneOutputForAll(Sim):
    def submit(self, step, batch, sms):
        batch.repeat = 1
        super().submit(step, batch, sms)


class TellsTwice(Sim):
    told: list[StepOutput] = []

    def wait(self, until):
        outputs = super().wait(until)
        if not outputs and not self._launches and until is None and self.told:
            return [self.told.pop()]
        self.told = list(outputs)
        return outputs


class Unseeded(Sim):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._noise = random.Random()


class SpeedsUp(Sim):
    def submit(self, step, batch, sms):
        super().submit(step, batch, sms)
        for launch in self._launches[:-1]:
            launch.left *= 0.5
            self._retime(self._now)


class Overcommits(Sim):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        split = Split(("prefill", "decode"), (10, 10))
        self.spec = msgspec.structs.replace(self.spec, splits=(split, *self.spec.splits))


class ClosesOnce(Sim):
    counter = itertools.count()

    def close(self):
        self.closed = getattr(self, "closed", 0) + 1
        if self.closed > 1:
            raise OSError("already closed")


@pytest.mark.parametrize(
    ("cls", "begins"),
    [
        (ClockRunsBack, "I2: "),
        (ClockStandsStill, "I2: "),
        (NoDepth, "I5: "),
        (AnySms, "I5: "),
        (AllAreLast, "contract: "),
        (OneOutputForAll, "contract: "),
        (TellsTwice, "contract: "),
        (Unseeded, "I6: "),
        (SpeedsUp, "contract: a neighbour speeds up"),
        (Overcommits, "I5: "),
        (ClosesOnce, "contract: raises OSError"),
    ],
)
def test_bad_devices_fail_by_name(cls, begins):
    with pytest.raises(ConformanceError) as caught:
        check_device(wrong(cls))
    assert str(caught.value).startswith(begins)


def test_command_line(capsys):
    assert main(["device", "sim:l20"]) == 0
    assert main(["device", "sim:l21"]) == 2
    assert "l20" in capsys.readouterr().err
