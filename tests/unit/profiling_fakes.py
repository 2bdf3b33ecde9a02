"""A device whose times are a function of batch and SMs, and sizes small enough to reason about."""

from __future__ import annotations

from nexusbench.core.batch import Split, StepOutput
from nexusbench.core.specs import DeviceSpec
from nexusbench.core.state import Limits
from nexusbench.devices.base import Device
from nexusbench.physics.gpus import load_gpu
from nexusbench.profiling.desk import Pool

SPLITS = (*(Split(("prefill", "decode"), (p, 16 - p)) for p in range(2, 15, 2)),)
SPEC = DeviceSpec(
    name="fake", kind="fake", simulated=True, num_sms=16,
    splits=(*SPLITS, Split(("prefill", "decode"), (16, 16), overlapping=True)),
    whole=Split(("all",), (16,)), depth=1, kv_bytes=1e9, num_layers=2,
)  # fmt: skip
POOL = Pool(4000, 16, Limits(64, 512, 4096))


class FakeDevice(Device):
    """``duration(batch, sms)`` gives ns; ``late`` reports a partition's ends that much too late,
    so that it idles meanwhile.
    """

    def __init__(self, duration, late=None, spec=SPEC):
        self.spec, self.gpu = spec, load_gpu("l20")
        self._duration, self._late = duration, late or {}
        self._now = 0
        self._flying = []  # (reported at, really ends, step)
        self.launched = []

    @classmethod
    def describe(cls, argument):
        return load_gpu("l20")

    @classmethod
    def open(cls, argument, model, options):
        return cls(lambda batch, sms: 1000)

    def now(self):
        return self._now

    def submit(self, step, batch, sms):
        self.launched.append((batch.partition, sms, batch.shape))
        end = self._now
        for repetition in range(batch.repeat):
            end += round(self._duration(batch, sms))
            seen = end + self._late.get(batch.partition, 0)
            last = repetition == batch.repeat - 1
            self._flying.append((seen, StepOutput(step, end, -1, last)))

    def wait(self, until):
        if not self._flying:
            return []
        self._now = min(seen for seen, _ in self._flying)
        ended = [output for seen, output in self._flying if seen <= self._now]
        self._flying = [(seen, output) for seen, output in self._flying if seen > self._now]
        return sorted(ended, key=lambda output: output.end_ns)

    def close(self):
        pass
