"""A GPU on paper that computes on CPU tensors: streams with clocks of their own, marks, graphs.

Work is computed at once, so that tokens are right, and takes virtual time: a mark is reached when
the host's virtual clock has passed its stream's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from fake_driver import FakeDriver

from nexusbench.core.request import Request
from nexusbench.devices._cuda_driver import GpuFacts
from nexusbench.devices._cuda_memory import MemoryPlan
from nexusbench.devices._cuda_partitions import GreenPartitions, Side
from nexusbench.devices._cuda_probe import gpu_spec
from nexusbench.devices.base import DeviceOptions
from nexusbench.devices.cuda import Cuda
from nexusbench.kernels.attention.base import PreparedAttention
from nexusbench.kernels.attention.sdpa import SdpaAttention
from nexusbench.models.architecture import load_decoder_config
from nexusbench.models.decoder import Decoder
from nexusbench.testing import serve

GIB = 1024**3
H200 = GpuFacts("NVIDIA H200", 132, (9, 0), round(139.8 * GIB), 60 << 20, driver=13000)
POLL_NS, LAUNCH_NS = 1_000, 30_000  # of the host: looking at a mark, launching a piece


class FixedGather(PreparedAttention):
    """As the Triton backend's: rows beyond the plan are garbage, here the worst there is."""

    def __init__(self, backend: SdpaAttention, batch: int, max_blocks: int) -> None:
        self._backend, self._batch, self._max_blocks = backend, batch, max_blocks
        self._plan: Any = None

    def update(self, plan: Any) -> None:
        assert plan.num_decodes == len(plan.lengths) <= self._batch
        assert plan.blocks.shape[1] <= self._max_blocks
        self._plan = plan

    def run(self, qkv: torch.Tensor, layer: Any) -> torch.Tensor:
        assert len(qkv) == self._batch
        out = qkv.new_full((len(qkv), self._backend.heads.query_size), float("nan"))
        if self._plan is not None:  # None while it is captured
            count = self._plan.num_tokens
            out[:count] = self._backend.prepare(self._plan).run(qkv[:count], layer)
        return out


class Gathering(SdpaAttention):
    """Torch's attention with what a captured step needs."""

    padded_tokens = 1 << 40

    def __init__(self, kv: Any) -> None:
        super().__init__(kv)
        self.padded_tokens = 1 << 40

    def fixed(self, batch: int, max_blocks: int) -> FixedGather:
        return FixedGather(self, batch, max_blocks)


class FakeMark:
    def __init__(self, gpu: FakeGpu, time: int) -> None:
        self._gpu, self.time = gpu, time

    def reached(self) -> bool:
        self._gpu.clock += POLL_NS
        if self._gpu.failure is not None:
            raise self._gpu.failure
        return self._gpu.clock >= self.time

    def ns_since(self, earlier: FakeMark) -> int:
        return self.time - earlier.time


class FakeGpu:
    """The runtime seam on CPU tensors. ``log`` is what was done on which side, in order:
    ("launch" | "capture" | "replay" | "adopt", partition, SMs).

    A forward pass takes ``ns[partition]`` on the GPU; ``hangs``: it never ends (and naps are long,
    so that tests are short); ``failure``: what the next look at a mark raises.
    ``graph_bytes`` is what a capture takes of ``free``.
    """

    device = torch.device("cpu")

    def __init__(self, ns: dict[str, int] | None = None, graphs: bool = True) -> None:
        self.ns = {"prefill": 2_000_000, "decode": 500_000, "all": 1_000_000, **(ns or {})}
        self.clock, self.log = 0, list[tuple[str, str, int]]()
        self.hangs, self.failure = False, None
        self.free, self.graph_bytes = 100 * GIB, 10 << 20
        self.graphs, self.settled, self.rests = graphs, 0, list[int]()
        self._ends: dict[tuple[str, int], int] = {}
        self._current: Side | None = None

    @contextmanager
    def on(self, side: Side) -> Iterator[None]:
        before, self._current = self._current, side
        yield
        self._current = before

    def computed(self) -> None:
        """A forward pass was launched on the current stream."""
        side = self._current
        assert side is not None, "work outside any stream runs on all SMs"
        key = side.partition, side.sms
        self.clock += LAUNCH_NS
        took = 10**15 if self.hangs else self.ns[side.partition]
        self._ends[key] = max(self._ends.get(key, 0), self.clock) + took
        self.log.append(("launch", *key))

    def mark(self, side: Side) -> FakeMark:
        key = side.partition, side.sms
        return FakeMark(self, max(self._ends.get(key, 0), self.clock))

    def capture(self, side: Side, pool: str, work: Callable[[], None]) -> Callable[[], None]:
        assert pool == side.partition
        work()
        self.free -= self.graph_bytes
        self.log.append(("capture", side.partition, side.sms))

        def replay() -> None:
            self.log.append(("replay", side.partition, side.sms))
            work()

        return replay

    def adopt(self, tensor: torch.Tensor, side: Side) -> None:
        self.log.append(("adopt", side.partition, side.sms))

    def pinned(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.int64)

    def attention(self, kv: Any, side: Side) -> SdpaAttention:
        return Gathering(kv) if self.graphs else SdpaAttention(kv)

    def memory(self) -> tuple[int, int]:
        return self.free, 140 * GIB

    def settle(self) -> None:
        self.settled += 1
        self.clock = max([self.clock, *self._ends.values()])

    def release(self) -> None:
        pass

    def now(self) -> int:
        self.clock += 100
        return self.clock

    def rest(self, ns: int) -> None:
        assert ns > 0
        self.rests.append(ns)
        self.clock += 1000 * ns if self.hangs else ns


def green(driver: Any = None, capability: tuple[int, int] = (9, 0)) -> GreenPartitions:
    """Partitions of a fake driver; a stream is its number, a context takes 4 MiB."""
    driver = driver if driver is not None else FakeDriver()
    return GreenPartitions(
        driver, 0, wrap=lambda handle: ("stream", handle),
        free_bytes=lambda: (1 << 40) - (len(driver.sms) << 22), capability=capability,
    )  # fmt: skip


def fake_cuda(gpu: FakeGpu | None = None, model: str = "tiny", **options: Any) -> Cuda:
    """An open CUDA device of an H200 on paper; fp32 unless told."""
    gpu = gpu if gpu is not None else FakeGpu()
    given = DeviceOptions(8, 64, model_name=model, **{"dtype": "float32", **options})
    config = load_decoder_config(model)
    decoder = Decoder.load(config, dtype=given.dtype, load_format="auto", seed=given.seed)
    forward = decoder.forward

    def timed(*arguments: Any, **named: Any) -> torch.Tensor:
        gpu.computed()
        return forward(*arguments, **named)

    decoder.forward = timed  # type: ignore[method-assign]
    memory = MemoryPlan(140 * GIB, 40 * GIB, 126 * GIB, GIB, GIB, GIB, GIB if given.graphs else 0)
    return Cuda(
        decoder, config.spec, given, gpu, green(), gpu_spec(H200, (8, 8)), memory,
        facts={"gpu": H200.name},
    )  # fmt: skip


def served(
    requests: Sequence[Request],
    scheduler: Any,
    partitioner: str | None = None,
    *,
    gpu: FakeGpu | None = None,
    setting: Any = None,
    **options: Any,
) -> tuple[Any, dict[int, list[int]]]:
    """The engine after the run, and what each request got."""
    device = fake_cuda(gpu, **options)
    try:
        engine = serve(
            requests, scheduler, partitioner, setting=setting, device=device,
            seed=options.get("seed", 0),
        )  # fmt: skip
        return engine, {index: list(tokens) for index, tokens in device.generated().items()}
    finally:
        device.close()
