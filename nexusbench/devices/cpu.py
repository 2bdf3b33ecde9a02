"""The CPU: a real model, real tokens, partitions that are sets of cores."""

from __future__ import annotations

import queue
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Self

from nexusbench.core.batch import Batch, BatchShape, Chunk, Split, StepOutput
from nexusbench.core.clock import now_ns
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.machine import threads_per_core, usable_cores
from nexusbench.core.parts import parts_of
from nexusbench.core.request import Request
from nexusbench.core.specs import DeviceSpec, GpuSpec, ModelSpec
from nexusbench.core.units import GIB, NS_PER_S
from nexusbench.devices._cpu_shares import PERCENT, core_splits, nice_of, shared_splits
from nexusbench.devices._prompts import Prompts
from nexusbench.devices.base import Device, DeviceOptions, Serving

# torch and what is built on it are imported when a CPU device is opened: listing devices must work
# without.
if TYPE_CHECKING:
    from nexusbench.devices._cpu_workers import Ended, Seat, Worker
    from nexusbench.devices._executor import Served, StepRunner
    from nexusbench.models.decoder import Decoder

MOST_KV_BYTES = 4 * GIB  # as vLLM's CPU build by default; more only makes starting slow
SWITCH_INTERVAL_S = 1e-4  # of the interpreter's lock: a worker waits 5 ms for it otherwise
SHARED = "shared"
_MISSING = (
    "torch and safetensors, with which it computes, are not installed: pip install "
    "'nexusbench[torch]'"
)
_WARM_UP_TOKENS = 32
_WARM_UP_INDEX = 1 << 40  # of a request that is in no trace


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

        self._decoder, self._options, self.shared = decoder, options, shared
        dummy = options.load_format == "dummy"
        self.random_weights = dummy or (options.load_format == "auto" and decoder.config.built_in)
        self.cores = usable_cores()
        units = PERCENT if shared else len(self.cores)
        dtype = str(decoder.dtype).removeprefix("torch.")
        self.gpu = describe_cpu(dtype, units)
        per_core, longest = threads_per_core(self.cores), decoder.config.longest
        self.spec = DeviceSpec(
            name=f"cpu:{SHARED}" if shared else "cpu",
            kind="cpu",
            simulated=False,
            num_sms=units,
            splits=shared_splits() if shared else core_splits(units, per_core),
            whole=Split(("all",), (units,)),
            depth=1,
            kv_bytes=_kv_bytes(options),
            num_layers=model.num_layers,
            makes_tokens=True,
            stop_tokens=decoder.config.eos_token_ids,
            kv_token_bytes=decoder.kv_bytes_per_token,
            longest_context=0 if longest == model.max_model_len else longest,
        )
        self._ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        self._workers: dict[Seat, Worker] = {}
        self._runners: dict[str, StepRunner] = {}
        self._in_flight: dict[int, str] = {}  # step -> partition
        self._began = now_ns()
        self._latest = 0
        self._served: Served | None = None
        self._outputs: dict[int, array[int]] = {}
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)

    @classmethod
    def describe(cls, argument: str) -> GpuSpec:
        """The machine's cores and memory, measured. Raises UsageError for another argument."""
        shared = _check_argument(argument)
        from nexusbench.devices._cpu_probe import describe_cpu

        return describe_cpu("bfloat16", PERCENT if shared else len(usable_cores()))

    @classmethod
    def usable(cls) -> bool:
        """Whether torch and safetensors are installed."""
        return all(find_spec(name) is not None for name in ("torch", "safetensors"))

    @classmethod
    def lacks(cls, argument: str) -> list[str]:
        """Packages."""
        return [] if cls.usable() else [_MISSING]

    @classmethod
    def open(cls, argument: str, model: ModelSpec, options: DeviceOptions) -> Self:
        """``cpu`` or ``cpu:shared``. Loads the weights; raises UsageError or InputError if they are
        missing, broken or larger than memory.
        """
        shared = _check_argument(argument)
        from nexusbench.models.architecture import load_decoder_config
        from nexusbench.models.decoder import Decoder

        if options.tensor_parallel > 1:
            raise UsageError("--device cpu serves on one machine: leave --tensor-parallel-size out")
        if options.kernel_table is not None:
            raise UsageError("--kernel-table is for simulated devices; a CPU takes its own time")
        config = load_decoder_config(options.model_name or model.name)
        decoder = Decoder.load(
            config, dtype=options.dtype, load_format=options.load_format, seed=options.seed
        )
        return cls(decoder, config.spec, options, shared=shared)

    def environment(self) -> dict[str, str]:
        """What the times depend on besides the code."""
        from nexusbench.kernels.native import bindings

        return {
            "processor": self.gpu.name,
            "cores": ",".join(map(str, self.cores)),
            "splits": "time-shared by thread priority" if self.shared else "spatial, by cores",
            "torch": version("torch"),
            "kernels": bindings.note(),
            "layers": "whole, by native kernels"
            if self._decoder.native
            else "one by one: products by the kernels above, the rest by torch",
            "attention": "over the whole context"
            if self._decoder.plain
            else "by each layer's rule (windows, soft caps, sinks, latents), by torch",
            "dtype": str(self._decoder.dtype).removeprefix("torch."),
        }

    def prepare(self, serving: Serving) -> None:
        """Allocate the KV pool and run every likely launch once. Raises UsageError if the pool does
        not fit into memory.
        """
        from nexusbench.devices._executor import Served
        from nexusbench.models.sampling import TokenSampling

        spec = self._decoder.config.spec
        options = self._options
        self._served = Served(
            self._decoder,
            self._decoder.new_kv(serving.num_blocks, serving.block_size),
            Prompts(serving, spec.vocab_size),
            TokenSampling(options.temperature, options.top_p, serving.seed),
            again=serving.again,
        )
        tokens = min(_WARM_UP_TOKENS, serving.num_blocks * serving.block_size - 1)
        for partition, sms in serving.launches:
            if tokens > 0:
                self._warm_up(partition, sms, tokens, serving.block_size)

    def start(self) -> None:
        """The run begins now."""
        self._began, self._latest = now_ns(), 0

    def now(self) -> int:
        """Real nanoseconds since the start."""
        self._latest = max(self._latest, now_ns() - self._began)
        return self._latest

    def submit(self, step: int, batch: Batch, sms: int) -> None:
        """Hand the batch to the worker of its partition and cores; returns at once."""
        if not 0 < sms <= self.spec.num_sms:
            what = f"{self.spec.num_sms} {parts_of(self.spec.name)}"
            raise NexusbenchError(f"{self.spec.name} has {what}, not {sms}")
        if batch.partition in self._in_flight.values():
            raise NexusbenchError(f"partition '{batch.partition}' of {self.spec.name} is busy")
        runner = self._runner(batch.partition)
        self._in_flight[step] = batch.partition

        def job(report: Callable[[StepOutput], None]) -> None:
            runner.run(step, batch, report)

        self._worker(batch.partition, sms).submit(step, job)

    def wait(self, until: int | None) -> list[StepOutput]:
        """Block until something ended, the clock reaches ``until`` or :meth:`interrupt` is called.

        Raises NexusbenchError if a step failed, naming it.
        """
        if not self._in_flight and until is None:
            return []
        ended = self._next(until)
        outputs: list[StepOutput] = []
        while ended is not None:
            output = self._book(ended)
            if output is not None:
                outputs.append(output)
            try:
                ended = self._ended.get_nowait()
            except queue.Empty:
                break
        outputs.sort(key=lambda output: output.end_ns)
        # The engine may have looked at the clock after a step ended and before it heard of it; for
        # the engine it ends when it hears, and two ends are two moments.
        for output in outputs:
            self._latest = output.end_ns = max(self._latest + 1, output.end_ns)
        return outputs

    def interrupt(self) -> None:
        """Let a ``wait`` that is under way return; callable from a signal handler."""
        from nexusbench.devices._cpu_workers import Ended

        self._ended.put(Ended())

    def forget(self, request: Request) -> None:
        """Keep what it generated, and nothing else."""
        served = self._served
        if served is None:
            return
        self._outputs[request.index] = served.prompts.generated(request)
        served.prompts.forget(request)
        served.halfway.pop(request.index, None)
        for runner in self._runners.values():
            runner.forget(request)

    def generated(self) -> Mapping[int, Sequence[int]]:
        """Token ids that were made for each request that has ended."""
        return self._outputs

    def close(self) -> None:
        """End the workers; a running step is given up at its next layer."""
        sys.setswitchinterval(self._interval)
        workers, self._workers = self._workers, {}
        if self._served is not None:
            self._served.stop.set()
        for worker in workers.values():
            worker.stop()
        for worker in workers.values():
            worker.join()
        self._runners.clear()
        self._in_flight.clear()
        self._served = None

    def _runner(self, partition: str) -> StepRunner:
        from nexusbench.devices._executor import StepRunner

        if self._served is None:
            # It was not prepared, as in the conformance check: a pool for a handful of requests.
            self.prepare(Serving(num_blocks=1024, block_size=16, seed=self._options.seed))
        assert self._served is not None
        runner = self._runners.get(partition)
        if runner is None:
            runner = self._runners[partition] = StepRunner(self._served)
        return runner

    def _worker(self, partition: str, sms: int) -> Worker:
        from nexusbench.devices._cpu_workers import Seat, Worker, seat_for

        if self.shared:
            seat = Seat(partition, self.cores, nice_of(sms))
        else:
            seat = seat_for(partition, sms, self.cores)
        worker = self._workers.get(seat)
        if worker is None:
            worker = self._workers[seat] = Worker(seat, self._ended)
        return worker

    def _warm_up(self, partition: str, sms: int, tokens: int, block_size: int) -> None:
        """A prompt and a decode on scrap blocks: thread teams start, kernels are made."""
        blocks = list(range(-(-(tokens + 1) // block_size)))
        request = Request("warm-up", _WARM_UP_INDEX, 0, tokens, 1, tokens + 1, blocks=blocks)
        request.num_tokens = tokens
        shape = BatchShape(0, 0, ((tokens, 0),))
        self._run_now(Batch(partition, [], [Chunk(request, tokens, 0)], shape), sms)
        request.num_tokens += 1
        self._run_now(Batch(partition, [request], [], BatchShape(1, tokens)), sms)
        self.forget(request)
        del self._outputs[_WARM_UP_INDEX]

    def _run_now(self, batch: Batch, sms: int) -> None:
        self.submit(-1, batch, sms)
        while self._in_flight:
            self.wait(None)

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

    def _book(self, ended: Ended) -> StepOutput | None:
        """An output on the run's clock. Raises NexusbenchError for a worker that failed."""
        if ended.error is not None:
            assert ended.seat is not None
            error, where = ended.error, f"partition '{ended.seat.partition}'"
            text = (str(error).splitlines() or [""])[0]
            if not isinstance(error, NexusbenchError):
                text = f"{type(error).__name__}: {text}"
            step = f"step {ended.step}" if ended.step >= 0 else "the warm-up"
            raise NexusbenchError(f"{step} on {where} failed: {text}") from error
        output = ended.output
        if output is None:
            return None
        output.end_ns -= self._began
        if output.last:
            del self._in_flight[output.step]
        return output


def _check_argument(argument: str) -> bool:
    """Whether cores are shared. Raises UsageError for an unknown word, too few cores, or without
    torch.
    """
    if not Cpu.usable():
        raise UsageError(
            f"--device cpu cannot be used here: {_MISSING}, or simulate with --device sim:l20"
        )
    if argument not in ("", SHARED):
        raise UsageError(f"--device cpu:{argument} is unknown: write cpu or cpu:{SHARED}")
    if len(usable_cores()) < 2 and argument != SHARED:
        raise UsageError(
            f"one core makes no two partitions: use --device cpu:{SHARED}, where thread priorities "
            "share it"
        )
    return argument == SHARED


def _kv_bytes(options: DeviceOptions) -> float:
    """Memory for KV blocks: a share of what the weights left, within a limit."""
    from nexusbench.core.machine import available_memory

    return min(float(MOST_KV_BYTES), options.gpu_memory_utilization * available_memory())
