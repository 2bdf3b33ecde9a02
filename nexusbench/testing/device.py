"""check_device: the contract of a device, from the outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nexusbench.core.batch import Batch, BatchShape, Chunk, Split, StepOutput
from nexusbench.core.errors import NexusbenchError
from nexusbench.core.units import NS_PER_MS
from nexusbench.devices.base import Device
from nexusbench.kv.manager import KVCacheManager
from nexusbench.testing._errors import ConformanceError, named
from nexusbench.testing._harness import offer

DeviceFactory = Callable[[], Device]
Timeline = list[tuple[int, int, bool]]
MOST_WAITS = 10_000


def check_device(factory: DeviceFactory) -> None:
    """Drive a device by hand. ``factory`` opens a new one each time, always with the same seed.

    Checked are: a clock that never runs back and ``wait(until)`` (I2), the depth of its queues and
    the range of SMs (I5), outputs in order, one a repetition, the last one marked, two partitions
    that never speed each other up, closing twice, and, where it says simulated, the same times each
    time (I6). Raises ConformanceError.
    """
    checks = (
        _check_idle_clock,
        _check_one_launch,
        _check_wait_until,
        _check_limits,
        _check_repeat,
        _check_partitions,
    )
    for check in checks:
        with named(check.__name__.removeprefix("_check_").replace("_", " ")), _opened(factory) as d:
            check(d)
    with named("same seed, same times"):
        _check_deterministic(factory)
    with named("two at once"):
        _check_no_speed_up(factory)


@contextmanager
def _opened(factory: DeviceFactory) -> Iterator[Device]:
    device = factory()
    try:
        yield device
    finally:
        device.close()
        device.close()


class CheckedDevice:
    """Makes batches for one device, with real block numbers and growing step numbers."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.kv = KVCacheManager(64, 16)
        self.steps = 0
        self.requests = 0

    def submit(
        self, partition: str, sms: int, *, decodes: int = 0, prompt: int = 0, repeat: int = 1
    ) -> int:
        """Launch that many decodes (of 20 tokens) and a prompt; returns the step's number."""
        # A decode computes the last known token; here it is the prompt's, since none was generated.
        first, count = self.requests, decodes + bool(prompt)
        requests = [offer(first + i, 0, 21, 30) for i in range(count)]
        self.requests += count
        for request in requests[:decodes]:
            request.num_tokens, request.num_computed_tokens = 21, 20
            self.kv.allocate(request, 20 + repeat, [])
        chunks = []
        if prompt:
            last = requests[-1]
            last.num_prompt_tokens = last.num_tokens = prompt
            last.stop_len = prompt + 1
            self.kv.allocate(last, prompt, [])
            chunks = [Chunk(last, prompt, 0)]
        for request in requests:
            request.in_flight = True
        sizes = tuple([(chunk.num_tokens, chunk.context) for chunk in chunks])
        shape = BatchShape(decodes, 20 * decodes, sizes, None, repeat)
        batch = Batch(partition, requests[:decodes], chunks, shape, None, repeat)
        step = self.steps
        self.device.submit(step, batch, sms)
        self.steps += 1
        return step

    def drain(self, launches: int) -> list[StepOutput]:
        """Wait until that many launches ended. Raises ConformanceError if they do not."""
        outputs: list[StepOutput] = []
        for _ in range(MOST_WAITS):
            if sum(output.last for output in outputs) == launches:
                return outputs
            before = self.device.now()
            outputs += self.device.wait_for_steps(None)
            _check_clock(self.device, before, outputs)
        raise ConformanceError("contract", f"{launches} launches do not end in {MOST_WAITS} waits")


def _check_clock(device: Device, before: int, outputs: list[StepOutput]) -> None:
    now = device.now()
    if now < before:
        raise ConformanceError("I2", f"the clock went from {before} back to {now} ns")
    ends = [output.end_ns for output in outputs]
    if ends != sorted(ends):
        raise ConformanceError("I2", f"outputs are not in order of their ends: {ends}")
    if ends and ends[-1] > now:
        raise ConformanceError("I2", f"an output ends at {ends[-1]}, after now, {now} ns")


def _check_idle_clock(device: Device) -> None:
    start = device.now()
    if not isinstance(start, int) or start < 0:
        raise ConformanceError("I2", f"now() is {start!r}, not a number of ns since the start")
    if device.wait(None) != []:
        raise ConformanceError("contract", "wait(None) with nothing in flight gives outputs")
    until = device.now() + 3 * NS_PER_MS
    if device.wait(until) != []:
        raise ConformanceError("contract", "wait(until) with nothing in flight gives outputs")
    if device.now() < until:
        raise ConformanceError("I2", f"wait({until}) returned at {device.now()} ns, too early")
    before = device.now()
    device.wait(0)
    _check_clock(device, before, [])


def _check_one_launch(device: Device) -> None:
    desk, spec = CheckedDevice(device), device.spec
    start = device.now()
    step = desk.submit("all", spec.whole.of("all"), decodes=2, prompt=40)
    (output,) = desk.drain(1)
    if output.step != step or not output.last:
        raise ConformanceError("contract", f"the output of step {step} is {output}")
    if output.end_ns <= start:
        raise ConformanceError("I2", f"a launch at {start} ended at {output.end_ns} ns")
    if output.tokens is not None and len(output.tokens) != 3:
        raise ConformanceError("I4", f"3 items gave {len(output.tokens)} tokens")
    if device.wait(None) != []:
        raise ConformanceError("contract", "an ended launch gives a second output")


def _check_wait_until(device: Device) -> None:
    """``until`` is reached first, in the past too; the launch is unharmed."""
    desk = CheckedDevice(device)
    desk.submit("all", device.spec.whole.of("all"), prompt=60)
    start = device.now()
    outputs = device.wait_for_steps(start + 1)
    if not outputs and device.now() < start + 1:
        raise ConformanceError("I2", "wait(until) returned nothing before until")
    before = device.now()
    outputs += device.wait_for_steps(max(0, before - NS_PER_MS))
    _check_clock(device, before, outputs)
    if not outputs:
        outputs = desk.drain(1)
    if [output.last for output in outputs] != [True]:
        raise ConformanceError("contract", f"one launch gave {len(outputs)} outputs")


def _check_limits(device: Device) -> None:
    desk, sms = CheckedDevice(device), device.spec.num_sms
    for wrong in (0, -1, sms + 1):
        with _refusal(f"{wrong} of {sms} SMs"):
            desk.submit("all", wrong, decodes=1)
    for _ in range(device.spec.depth):
        desk.submit("all", sms, decodes=1)
    with _refusal(f"a launch beyond its depth of {device.spec.depth}"):
        desk.submit("all", sms, decodes=1)
    desk.drain(device.spec.depth)
    desk.submit("all", sms, decodes=1)
    desk.drain(1)


@contextmanager
def _refusal(what: str) -> Iterator[None]:
    """Expect a NexusbenchError."""
    try:
        yield
    except NexusbenchError:
        return
    raise ConformanceError("I5", f"submit accepts {what}")


def _check_repeat(device: Device) -> None:
    desk = CheckedDevice(device)
    step = desk.submit("all", device.spec.whole.of("all"), decodes=3, repeat=4)
    outputs = desk.drain(1)
    if [(x.step, x.last) for x in outputs] != [(step, i == 3) for i in range(4)]:
        marks = [x.last for x in outputs]
        raise ConformanceError("contract", f"repeat=4 gives outputs with last={marks}")
    ends = [output.end_ns for output in outputs]
    if len(set(ends)) != 4:
        raise ConformanceError("contract", f"repetitions end at the same time: {ends}")


def _disjoint(device: Device) -> Split | None:
    """The most even legal split without overlap, or None."""
    splits = [split for split in device.spec.splits if not split.overlapping]
    return min(splits, key=lambda split: abs(split.sms[0] - split.sms[1]), default=None)


def _check_partitions(device: Device) -> None:
    """Splits are within the device; two partitions run at once, each with its own queue."""
    spec = device.spec
    for split in spec.splits:
        over = sum(split.sms) > spec.num_sms
        if over != split.overlapping or min(split.sms) < 1 or max(split.sms) > spec.num_sms:
            raise ConformanceError("I5", f"split {split} does not fit {spec.num_sms} SMs")
    even = _disjoint(device)
    if even is None:
        return
    desk = CheckedDevice(device)
    steps = {desk.submit("prefill", even.of("prefill"), prompt=60)}
    steps.add(desk.submit("decode", even.of("decode"), decodes=4, repeat=3))
    outputs = desk.drain(2)
    if {output.step for output in outputs} != steps or len(outputs) != 4:
        raise ConformanceError("contract", f"two launches gave {outputs}")


def _timeline(device: Device) -> Timeline:
    desk, split = CheckedDevice(device), _disjoint(device)
    prefill, decode = split.sms if split is not None else (0, device.spec.num_sms)
    times: list[StepOutput] = []
    for turn in range(4):
        if prefill:
            desk.submit("prefill", prefill, prompt=20 * (turn + 1))
        desk.submit("decode", decode, decodes=turn + 1, repeat=1 + turn % 2)
        times += desk.drain(1 + bool(prefill))
    return [(output.step, output.end_ns, output.last) for output in times]


def _check_deterministic(factory: DeviceFactory) -> None:
    lines: list[Timeline] = []
    for _ in range(2):
        with _opened(factory) as device:
            if not device.spec.simulated:
                return
            lines.append(_timeline(device))
    if lines[0] != lines[1]:
        raise ConformanceError("I6", "a simulated device with the same seed gives other times")


def _check_no_speed_up(factory: DeviceFactory) -> None:
    """The first of two launches takes at least as long as the same one alone (simulated only)."""
    with _opened(factory) as device:
        if not device.spec.simulated:
            return
        splits = device.spec.splits
    for split in (splits[0], splits[len(splits) // 2], splits[-1]):
        for first in ("prefill", "decode"):
            alone = _first_ends(factory, split, first, neighbour=False)
            beside = _first_ends(factory, split, first, neighbour=True)
            if beside < alone:
                problem = f"{first} ends at {beside} ns beside a neighbour, alone at {alone}"
                raise ConformanceError("contract", f"a neighbour speeds up: {problem} ({split})")


def _first_ends(factory: DeviceFactory, split: Split, first: str, *, neighbour: bool) -> int:
    with _opened(factory) as device:
        desk = CheckedDevice(device)
        work = {"prefill": {"prompt": 60}, "decode": {"decodes": 8}}
        step = desk.submit(first, split.of(first), **work[first])
        if neighbour:
            other = "decode" if first == "prefill" else "prefill"
            desk.submit(other, split.of(other), **work[other])
        outputs = desk.drain(1 + neighbour)
        return next(output.end_ns for output in outputs if output.step == step)
