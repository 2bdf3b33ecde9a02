"""The CPU: a real model, real tokens, partitions that are sets of cores."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Self

from nexusbench.core.batch import Batch, Split, StepOutput
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.request import Request
from nexusbench.core.specs import DeviceSpec, GpuSpec, ModelSpec
from nexusbench.core.units import GIB, NS_PER_S
from nexusbench.devices._cpu_shares import PERCENT, core_splits, nice_of, shared_splits
from nexusbench.devices._prompts import Prompts
from nexusbench.devices._stopwatch import stopwatch_ns
from nexusbench.devices.base import Device, DeviceOptions, Serving

# torch and what is built on it are imported when a CPU device is opened: listing devices must work
# without.
if TYPE_CHECKING:
    from nexusbench.devices._cpu_workers import Ended, Seat, Worker
    from nexusbench.devices._executor import StepRunner
    from nexusbench.models.decoder import Decoder

MOST_KV_BYTES = 4 * GIB  # as vLLM's CPU build by default; more only makes starting slow
SWITCH_INTERVAL_S = 1e-4  # of the interpreter's lock: a worker waits 5 ms for it otherwise
SHARED = "shared"


class Cpu(Device):
    """``cpu``: a core is an SM, and a split gives each side its own cores. ``cpu:shared``: both
    sides run on all cores and a split is their thread priorities, which is time-sharing and named
    so; for machines with few cores.

    The clock is the real one. Worker threads are made when a partition first needs them.
    """

    source: ClassVar[str] = "torch and native kernels on cores; docs/cpu.md"

    def __init__(
        self, decoder: Decoder, model: ModelSpec, options: DeviceOptions, *, shared: bool
    ) -> None:
        from nexusbench.devices._cpu_probe import describe_cpu
        from nexusbench.devices._cpu_workers import usable_cores

        self._decoder, self._options, self.shared = decoder, options, shared
        self._cores = usable_cores()
        self.gpu = describe_cpu(model.dtypes.weights)
        units = PERCENT if shared else len(self._cores)
        self.spec = DeviceSpec(
            name="cpu:shared" if shared else "cpu",
            kind="cpu",
            simulated=False,
            num_sms=units,
            splits=shared_splits() if shared else core_splits(units),
            whole=Split(("all",), (units,)),
            depth=1,
            kv_bytes=_kv_bytes(options),
            num_layers=model.num_layers,
            makes_tokens=True,
            stop_tokens=decoder.config.eos_token_ids,
        )
        self._ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        self._workers: dict[Seat, Worker] = {}
        self._runners: dict[str, StepRunner] = {}
        self._busy: dict[str, int] = {}
        self._partition_of: dict[int, str] = {}
        self._began = stopwatch_ns()
        self._latest = 0
        self._prompts: Prompts | None = None
        self.outputs: dict[int, list[int]] = {}
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)

    @classmethod
    def describe(cls, argument: str) -> GpuSpec:
        """The machine's cores and memory, measured. Raises UsageError for another argument."""
        _check_argument(argument)
        from nexusbench.devices._cpu_probe import describe_cpu

        return describe_cpu("float32")

    @classmethod
    def usable(cls) -> bool:
        """Whether torch is installed."""
        return find_spec("torch") is not None

    @classmethod
    def open(cls, argument: str, model: ModelSpec, options: DeviceOptions) -> Self:
        """``cpu`` or ``cpu:shared``. Loads the weights; raises UsageError or InputError if they are
        missing, broken or larger than memory.
        """
        shared = _check_argument(argument)
        from nexusbench.devices._cpu_workers import usable_cores
        from nexusbench.models.architecture import load_decoder_config
        from nexusbench.models.decoder import Decoder

        if options.tensor_parallel > 1:
            raise UsageError("--device cpu serves on one machine: leave --tensor-parallel-size out")
        if options.kernel_table is not None:
            raise UsageError("--kernel-table is for simulated devices; a CPU takes its own time")
        if len(usable_cores()) < 2 and not shared:
            raise UsageError(
                "one core makes no two partitions: use --device cpu:shared, where thread "
                "priorities share it"
            )
        config = load_decoder_config(options.model_name or model.name)
        decoder = Decoder.load(
            config, dtype=options.dtype, load_format=options.load_format, seed=options.seed
        )
        return cls(decoder, config.spec, options, shared=shared)

    def environment(self) -> dict[str, str]:
        """What the times depend on besides the code."""
        return {
            "processor": self.gpu.name,
            "cores": ",".join(map(str, self._cores)),
            "torch": version("torch"),
            "dtype": str(self._decoder.dtype).removeprefix("torch."),
        }

    def prepare(self, serving: Serving) -> None:
        """Allocate the KV pool; one runner for each partition."""
        from nexusbench.devices._executor import StepRunner

        vocab = self._decoder.config.spec.vocab_size
        self._prompts = Prompts(serving, vocab)
        kv = self._decoder.new_kv(serving.num_blocks, serving.block_size)
        for partition in ("all", "prefill", "decode"):
            self._runners[partition] = StepRunner(self._decoder, kv, self._prompts)

    def start(self) -> None:
        """The run begins now."""
        self._began, self._latest = stopwatch_ns(), 0

    def now(self) -> int:
        """Real nanoseconds since the start."""
        self._latest = max(self._latest, stopwatch_ns() - self._began)
        return self._latest

    def submit(self, step: int, batch: Batch, sms: int) -> None:
        """Hand the batch to the worker of its partition and cores; returns at once."""
        if not 0 < sms <= self.spec.num_sms:
            raise NexusbenchError(f"{self.spec.name} has {self.spec.num_sms} SMs, not {sms}")
        partition = batch.partition
        if self._busy.get(partition, 0) >= self.spec.depth:
            raise NexusbenchError(f"partition '{partition}' of {self.spec.name} is busy")
        if not self._runners:
            self.prepare(_small_serving(self._options))
        runner = self._runners[partition]
        self._busy[partition] = self._busy.get(partition, 0) + 1
        self._partition_of[step] = partition

        def job(report: Callable[[StepOutput], None]) -> None:
            runner.run(step, batch, report)

        self._worker(partition, sms).submit(job)

    def wait(self, until: int | None) -> list[StepOutput]:
        """Block until something ended or the clock reaches ``until``."""
        if not self._partition_of:
            if until is None:
                return []
            self._sleep(until)
            return []
        ended = self._next(until)
        if ended is None:
            return []
        outputs = [self._book(ended)]
        while True:
            try:
                outputs.append(self._book(self._ended.get_nowait()))
            except queue.Empty:
                break
        outputs.sort(key=lambda output: output.end_ns)
        # The engine may have looked at the clock after a step ended and before it heard of it.
        for output in outputs:
            self._latest = output.end_ns = max(self._latest, output.end_ns)
        return outputs

    def forget(self, request: Request) -> None:
        """Keep what it generated, in ``outputs``, and nothing else."""
        if self._prompts is not None:
            for runner in self._runners.values():
                runner.forget(request)
            tokens = self._prompts.forget(request)
            self.outputs[request.index] = tokens[: request.num_output_tokens]

    def close(self) -> None:
        """End the workers; a step that is running is let finish."""
        sys.setswitchinterval(self._interval)
        workers, self._workers = self._workers, {}
        for worker in workers.values():
            worker.close()
        self._runners.clear()
        self._partition_of.clear()
        self._busy.clear()

    def _worker(self, partition: str, sms: int) -> Worker:
        from nexusbench.devices._cpu_workers import Seat, Worker, seat_for

        if self.shared:
            nice = 0 if partition == "all" else nice_of(sms)
            seat = Seat(partition, self._cores, nice)
        else:
            seat = seat_for(partition, sms, self._cores)
        worker = self._workers.get(seat)
        if worker is None:
            worker = self._workers[seat] = Worker(seat, self._ended)
        return worker

    def _next(self, until: int | None) -> Ended | None:
        if until is None:
            return self._ended.get()
        while True:
            left = until - self.now()
            try:
                return self._ended.get(timeout=max(0.0, left / NS_PER_S))
            except queue.Empty:
                if self.now() >= until:
                    return None

    def _sleep(self, until: int) -> None:
        """Until the clock is there; nothing is in flight that could end."""
        while (left := until - self.now()) > 0:
            try:
                self._book(self._ended.get(timeout=left / NS_PER_S))
            except queue.Empty:
                continue

    def _book(self, ended: Ended) -> StepOutput:
        """An output on the run's clock. Raises NexusbenchError for a worker that failed."""
        if ended.output is None:
            seat = ended.seat
            where = "" if seat is None else f" of partition '{seat.partition}'"
            error = ended.error
            if isinstance(error, NexusbenchError):
                raise error
            raise NexusbenchError(
                f"the worker{where} failed: {type(error).__name__}: {error}"
            ) from error
        output = ended.output
        output.end_ns -= self._began
        if output.last:
            partition = self._partition_of.pop(output.step)
            self._busy[partition] -= 1
        return output


def _check_argument(argument: str) -> bool:
    """Whether cores are shared. Raises UsageError for an unknown word, or without torch."""
    if not Cpu.usable():
        raise UsageError(
            "--device cpu computes with torch, which is not installed: pip install "
            "'nexusbench[torch]', or simulate with --device sim:l20"
        )
    if argument not in ("", SHARED):
        raise UsageError(f"--device cpu:{argument} is unknown: write cpu or cpu:{SHARED}")
    return argument == SHARED


def _kv_bytes(options: DeviceOptions) -> float:
    """Memory for KV blocks: a share of what the weights left, within a limit."""
    from nexusbench.models.memory import available_memory

    return min(float(MOST_KV_BYTES), options.gpu_memory_utilization * available_memory())


def _small_serving(options: DeviceOptions) -> Serving:
    """A pool for a device that nobody prepared, as in the conformance check."""
    return Serving(num_blocks=1024, block_size=16, seed=options.seed)
