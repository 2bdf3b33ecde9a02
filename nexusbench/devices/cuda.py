"""A CUDA GPU: a real model, real tokens, partitions that are real SMs."""

from __future__ import annotations

import functools
import os
from array import array
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Self

from nexusbench.core.batch import Batch, BatchShape, Chunk, Split, StepOutput
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.request import Request
from nexusbench.core.specs import DeviceSpec, GpuSpec, ModelSpec
from nexusbench.core.units import MIB, NS_PER_MS
from nexusbench.core.work import HostGap
from nexusbench.devices._cuda_driver import (
    QUEUES_VARIABLE,
    Argument,
    has_bindings,
    has_driver,
    missing,
    parse_argument,
    read_facts,
)
from nexusbench.devices._cuda_memory import MemoryPlan, decode_buckets, plan_memory
from nexusbench.devices._prompts import Prompts
from nexusbench.devices.base import Device, DeviceCheck, DeviceOptions, Serving

# torch and what is built on it are imported when a GPU is opened: listing devices must work
# without.
if TYPE_CHECKING:
    from nexusbench.devices._cuda_partitions import Partitions
    from nexusbench.devices._cuda_queue import LaunchQueue
    from nexusbench.devices._cuda_runtime import Runtime
    from nexusbench.devices._cuda_steps import PieceMaker
    from nexusbench.devices._executor import Served
    from nexusbench.models.decoder import Decoder

# With nothing on its way there is only an arrival or Ctrl-C to wake up for.
IDLE_NAP_NS = 5 * NS_PER_MS
_WARM_UP_TOKENS = 32
_WARM_UP_INDEX = 1 << 40  # of a request that is in no trace


class Cuda(Device):
    """``cuda`` (or ``cuda:N``): partitions are green contexts, so a split is a number of SMs for
    each side. ``cuda:streams``: no partitions, both sides on all SMs; for GPUs and drivers without
    green contexts, and as a baseline.

    The clock is the real one; launching and waiting happen in the engine's thread (docs/cuda.md).
    """

    source: ClassVar[str] = "green contexts and CUDA graphs on NVIDIA GPUs; docs/cuda.md"

    def __init__(
        self,
        decoder: Decoder,
        model: ModelSpec,
        options: DeviceOptions,
        runtime: Runtime,
        partitions: Partitions,
        gpu: GpuSpec,
        memory: MemoryPlan,
        *,
        name: str = "cuda",
        facts: Mapping[str, str] | None = None,
    ) -> None:
        self._decoder: Decoder | None = decoder
        self._options, self._runtime = options, runtime
        self._dtype = str(decoder.dtype).removeprefix("torch.")
        self.partitions, self.gpu, self.memory = partitions, gpu, memory
        dummy = options.load_format == "dummy"
        self.random_weights = dummy or (options.load_format == "auto" and decoder.config.built_in)
        self._facts = dict(facts or {})
        self.spec = DeviceSpec(
            name=name,
            kind="cuda",
            simulated=False,
            num_sms=partitions.num_sms,
            splits=partitions.splits,
            whole=Split(("all",), (partitions.num_sms,)),
            depth=1,
            kv_bytes=float(memory.kv_bytes),
            num_layers=model.num_layers,
            makes_tokens=True,
            stop_tokens=decoder.config.eos_token_ids,
        )
        self._served: Served | None = None
        self._maker: PieceMaker | None = None
        self._queue: LaunchQueue | None = None
        self._outputs: dict[int, array[int]] = {}
        self._gaps: dict[str, HostGap] = {}
        self._began = runtime.now()
        self._latest = 0
        self._woken = False

    @classmethod
    def describe(cls, argument: str) -> GpuSpec:
        """The GPU's published numbers where it is shipped, else the driver's. Raises UsageError."""
        chosen = _check_argument(argument)
        from nexusbench.devices._cuda_probe import gpu_spec

        partitions = _partitions(*chosen)
        granularity = partitions.minimum, partitions.multiple
        return gpu_spec(read_facts(chosen.gpu), granularity)

    @classmethod
    def usable(cls) -> bool:
        """Whether GPU 0 can be partitioned and computed on. Without a driver nothing is imported to
        tell.
        """
        return has_driver() and has_bindings() and find_spec("torch") is not None and not missing()

    @classmethod
    def lacks(cls, argument: str) -> list[str]:
        """Driver, packages, a GPU that is new enough. Raises UsageError for an unknown word."""
        chosen = parse_argument(argument)
        return missing(chosen.gpu, green=chosen.green)

    @classmethod
    def check_up(cls, argument: str) -> list[DeviceCheck]:
        """Driver, SMs, legal splits, what contexts weigh, permitted counters."""
        from nexusbench.devices._cuda_probe import check_gpu

        chosen, gpu = parse_argument(argument), cls.describe(argument)
        return list(check_gpu(read_facts(chosen.gpu), _partitions(*chosen), gpu))

    @classmethod
    def open(cls, argument: str, model: ModelSpec, options: DeviceOptions) -> Self:
        """``cuda``, ``cuda:N`` or ``cuda:streams``. Loads the weights; raises UsageError or
        InputError for a machine that lacks something, and weights that are missing or too large.
        """
        chosen = _check_argument(argument)
        import torch

        if options.tensor_parallel > 1:
            raise UsageError("--device cuda serves on one GPU: leave --tensor-parallel-size out")
        if options.kernel_table is not None:
            raise UsageError("--kernel-table is for simulated devices; a GPU takes its own time")
        from nexusbench.devices._cuda_runtime import TorchRuntime
        from nexusbench.models.architecture import load_decoder_config, require_ordinary
        from nexusbench.models.decoder import Decoder

        config = load_decoder_config(options.model_name or model.name)
        require_ordinary(config, "--device cuda")
        partitions = _partitions(*chosen)
        runtime = TorchRuntime(chosen.gpu, options.gpu_memory_utilization)
        facts = read_facts(chosen.gpu)
        runtime.release()  # what an earlier device of this process has left
        try:
            decoder = Decoder.load(
                config, dtype=options.dtype, load_format=options.load_format, seed=options.seed,
                device=runtime.device,
            )  # fmt: skip
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"{config.spec.name} does not fit into the memory of {facts.name}: "
                f"{str(error).splitlines()[0]}. Choose a smaller model or --dtype bfloat16"
            ) from None
        runtime.settle()
        runtime.release()
        free, total = runtime.memory()
        sides = 2 * len(partitions.splits) + 1
        memory = plan_memory(
            total, free, options.gpu_memory_utilization, model, options.max_num_batched_tokens,
            options.max_num_seqs, streams=sides,
            contexts=sides - partitions.num_contexts if chosen.green else 0,
            capability=facts.capability, graphs=options.graphs,
        )  # fmt: skip
        told = {
            "gpu": facts.name,
            "driver": facts.driver_version if facts.driver else "unknown",
            "queues": os.environ[QUEUES_VARIABLE],
        }
        name = f"cuda:{argument}" if argument else "cuda"
        made = cls(
            decoder, config.spec, options, runtime, partitions, cls.describe(argument), memory,
            name=name, facts=told,
        )  # fmt: skip
        made.gpu_uuid, made.gpu_number = facts.uuid, chosen.gpu
        return made

    def environment(self) -> dict[str, str]:
        """What the times depend on besides the code."""
        partitions, weight = self.partitions, self.partitions.memory_per_context
        disjoint = sum(not split.overlapping for split in partitions.splits)
        return {
            **self._facts,
            "torch": version("torch"),
            "dtype": self._dtype,
            "splits": f"{disjoint} of green contexts"
            if disjoint
            else "none: two streams share all SMs",
            "context_memory": "none made" if weight is None else f"{weight / MIB:.1f} MiB each",
            "decode": "CUDA graphs" if self._options.graphs else "without CUDA graphs",
            "triton": version("triton") if find_spec("triton") is not None else "not installed",
            "memory": str(self.memory),
        }

    def prepare(self, serving: Serving) -> None:
        """Make contexts and the KV pool, run every likely launch once, capture their graphs. Raises
        UsageError if the pool does not fit.
        """
        from nexusbench.devices._cuda_graphs import DecodeGraphs
        from nexusbench.devices._cuda_queue import LaunchQueue
        from nexusbench.devices._cuda_steps import PieceMaker
        from nexusbench.devices._executor import Served
        from nexusbench.models.sampling import TokenSampling

        decoder, options, runtime = self._decoder, self._options, self._runtime
        assert decoder is not None, "the device is closed"
        spec = decoder.config.spec
        if any(partition in ("prefill", "decode") for partition, _ in serving.launches):
            self.partitions.make_all()
        # One block more than the engine has: where the idle rows of a graph write.
        kv = decoder.new_kv(serving.num_blocks + 1, serving.block_size)
        self._served = Served(
            decoder, kv, Prompts(serving, spec.vocab_size),
            TokenSampling(options.temperature, options.top_p, serving.seed), again=serving.again,
        )  # fmt: skip
        # Its growth would free a table that another stream still reads.
        decoder.rotary.table(spec.max_model_len - 1)
        runtime.settle()
        graphs = None
        if options.graphs:
            buckets = decode_buckets(options.max_num_seqs)
            graphs = DecodeGraphs(runtime, decoder, kv, buckets, self.memory.graphs)
        self._maker = PieceMaker(runtime, self._served, graphs)
        self._queue = LaunchQueue(runtime, self._maker)
        tokens = min(_WARM_UP_TOKENS, serving.num_blocks * serving.block_size - 1)
        for partition, sms in serving.launches:
            if tokens > 0:
                self._warm_up(partition, sms, tokens, serving.block_size)
            if graphs is not None and partition != "prefill":
                side = self.partitions.side(partition, sms)
                graphs.capture_all(side, self._maker.attention(side))
        runtime.settle()
        self._queue.gaps.clear()

    def start(self) -> None:
        """The run begins now."""
        self._began, self._latest = self._runtime.now(), 0

    def now(self) -> int:
        """Real nanoseconds since the start."""
        self._latest = max(self._latest, self._runtime.now() - self._began)
        return self._latest

    def submit(self, step: int, batch: Batch, sms: int) -> None:
        """Take a batch; decodes are on the GPU when this returns."""
        if not 0 < sms <= self.spec.num_sms:
            raise NexusbenchError(f"{self.spec.name} has {self.spec.num_sms} SMs, not {sms}")
        queue = self._ready()
        if queue.busy(batch.partition):
            raise NexusbenchError(f"partition '{batch.partition}' of {self.spec.name} is busy")
        queue.add(step, batch, self.partitions.side(batch.partition, sms))

    def wait(self, until: int | None) -> list[StepOutput]:
        """Launch what is left to launch until something ended, the clock reaches ``until`` or
        :meth:`interrupt` is called.

        Raises NexusbenchError if a step failed or hangs, naming it.
        """
        queue = self._queue
        if queue is None or not len(queue):
            return self._idle(until)
        queue.turn()
        queue.advance()  # before looking: what has ended already must not hold up the others
        waiting_since = self._runtime.now()
        while True:
            outputs = queue.collect()
            if outputs:
                return self._book(outputs)
            launched = queue.advance()
            now = self.now()
            if self._looked_up() or (until is not None and now >= until):
                return []
            if launched:
                waiting_since = self._runtime.now()
                continue
            queue.watch()
            left = None if until is None else until - now
            queue.nap(self._runtime.now() - waiting_since, left)

    def interrupt(self) -> None:
        """Let a ``wait`` that is under way return; callable from a signal handler."""
        self._woken = True

    def forget(self, request: Request) -> None:
        """Keep what it generated, and nothing else."""
        served, maker = self._served, self._maker
        if served is None or maker is None:
            return
        self._outputs[request.index] = served.prompts.generated(request)
        served.prompts.forget(request)
        served.halfway.pop(request.index, None)
        maker.planner.forget(request)

    def generated(self) -> Mapping[int, array[int]]:
        """Token ids that were made for each request that has ended."""
        return self._outputs

    def host_gaps(self) -> dict[str, HostGap]:
        """Measured by the GPU, between the last mark of a launch and the first of the next."""
        return dict(self._gaps if self._queue is None else self._queue.gaps)

    def close(self) -> None:
        """Give up what is not launched, wait for what is, and free the GPU's memory.

        Contexts and their streams stay for the process's next device: destroying one that torch
        still knows is not safe, and they are as good as new.
        """
        hung = self._queue is not None and self._queue.hung
        if self._queue is not None:
            self._gaps = dict(self._queue.gaps)
            self._queue.clear()
        # A GPU that has failed fails here again; the error of the step is the one to tell.
        with suppress(RuntimeError):
            if not hung:
                self._runtime.settle()
            # The weights too, now: whoever still knows this device, the next one needs the memory.
            self._served, self._maker, self._queue, self._decoder = None, None, None, None
            if not hung:
                self._runtime.release()

    def _ready(self) -> LaunchQueue:
        if self._served is None:
            # It was not prepared, as in the conformance check: a pool for a handful of requests.
            self.prepare(Serving(num_blocks=1024, block_size=16, seed=self._options.seed))
        assert self._queue is not None
        return self._queue

    def _idle(self, until: int | None) -> list[StepOutput]:
        """Nothing is on its way: sleep to ``until``."""
        if self._queue is not None:
            self._queue.turn()
        while until is not None and not self._looked_up():
            left = until - self.now()
            if left <= 0:
                break
            self._runtime.rest(min(left, IDLE_NAP_NS))
        return []

    def _looked_up(self) -> bool:
        """Whether :meth:`interrupt` was called since the last time."""
        woken, self._woken = self._woken, False
        return woken

    def _book(self, outputs: list[StepOutput]) -> list[StepOutput]:
        """On the run's clock: a step ends when the host hears of it; two ends are two moments."""
        outputs.sort(key=lambda output: output.end_ns)
        for output in outputs:
            self._latest = output.end_ns = max(self._latest + 1, output.end_ns - self._began)
        return outputs

    def _warm_up(self, partition: str, sms: int, tokens: int, block_size: int) -> None:
        """A prompt and a decode on scrap blocks: kernels are compiled and loaded."""
        blocks = list(range(-(-(tokens + 1) // block_size)))
        request = Request("warm-up", _WARM_UP_INDEX, 0, tokens, 1, tokens + 1, blocks=blocks)
        request.num_tokens = tokens
        prompt = BatchShape(0, 0, ((tokens, 0),))
        self._run_now(Batch(partition, [], [Chunk(request, tokens, 0)], prompt), sms)
        if partition != "prefill":
            request.num_tokens += 1
            self._run_now(Batch(partition, [request], [], BatchShape(1, tokens)), sms)
        self.forget(request)
        del self._outputs[_WARM_UP_INDEX]

    def _run_now(self, batch: Batch, sms: int) -> None:
        self.submit(-1, batch, sms)
        while not self.wait(None):
            pass


def _check_argument(argument: str) -> Argument:
    """Raises UsageError for an unknown word, or with all that this machine lacks."""
    chosen, lacks = parse_argument(argument), Cuda.lacks(argument)
    if lacks:
        raise UsageError(
            f"--device cuda cannot be used here: {'; '.join(lacks)}. To simulate a GPU instead: "
            "--device sim:h200"
        )
    return chosen


@functools.cache
def _partitions(index: int, green: bool) -> Partitions:
    """One set per GPU and process: contexts are made once and never destroyed."""
    from nexusbench.devices._cuda_partitions import open_partitions

    return open_partitions(index, green=green)
