"""The few things of CUDA that launching needs, behind a seam: streams, marks, graphs, naps.

``TorchRuntime`` does them on a GPU. Tests put another in its place, on CPU tensors, whose marks are
reached when the test says so.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any, Protocol

import torch

from nexusbench.core.clock import now_ns, sleep
from nexusbench.core.units import NS_PER_MS, NS_PER_S
from nexusbench.devices._cuda_partitions import Side
from nexusbench.kernels.attention.base import AttentionBackend
from nexusbench.kernels.attention.sdpa import SdpaAttention
from nexusbench.kernels.paged import PagedKV


class Mark(Protocol):
    """A place in a stream."""

    def reached(self) -> bool:
        """All work before it has ended; never waits. Raises what that work failed of."""
        ...

    def ns_since(self, earlier: Any) -> int:
        """GPU time between two marks that were reached."""
        ...


class Runtime(Protocol):
    """What the executor asks of the GPU."""

    device: torch.device

    def on(self, side: Side) -> AbstractContextManager[Any]:
        """Torch's work inside goes to the side's stream, and so do its temporaries."""
        ...

    def mark(self, side: Side) -> Mark:
        """A mark at the end of what the stream holds now."""
        ...

    def capture(self, side: Side, pool: str, work: Callable[[], None]) -> Callable[[], None]:
        """Run ``work`` once, then capture it; the result replays it on the current stream.

        Captures of one ``pool`` share their memory and must not replay at a time.
        """
        ...

    def adopt(self, tensor: torch.Tensor, side: Side) -> None:
        """``tensor`` comes from another stream; its memory is not reused before this one is done.

        Its maker must have ended: the executor launches nothing before it has heard of that.
        """
        ...

    def pinned(self, size: int) -> torch.Tensor:
        """Host memory [size], int64, that copies to and from the GPU need not wait for."""
        ...

    def attention(self, kv: PagedKV, side: Side) -> AttentionBackend:
        """A backend for the side's SMs."""
        ...

    def memory(self) -> tuple[int, int]:
        """Free and all bytes of the GPU."""
        ...

    def settle(self) -> None:
        """Wait until the whole GPU is idle."""
        ...

    def release(self) -> None:
        """Give memory that nothing holds any more back to the GPU; it must be idle."""
        ...

    def now(self) -> int:
        """The host's clock in ns; differences only."""
        ...

    def rest(self, ns: int) -> None:
        """Leave the core to others for about so long."""
        ...


class _EventMark:
    __slots__ = ("_event",)

    def __init__(self, event: Any) -> None:
        self._event = event

    def reached(self) -> bool:
        return bool(self._event.query())

    def ns_since(self, earlier: _EventMark) -> int:
        return round(float(earlier._event.elapsed_time(self._event)) * NS_PER_MS)


class TorchRuntime:
    """:class:`Runtime` on GPU ``index`` through torch, which may take ``share`` of its memory: what
    it caches must leave the driver room to load kernels.
    """

    def __init__(self, index: int, share: float) -> None:
        self.device = torch.device("cuda", index)
        torch.cuda.set_per_process_memory_fraction(share, self.device)
        self._pools: dict[str, Any] = {}

    def on(self, side: Side) -> AbstractContextManager[Any]:
        """As :meth:`Runtime.on`."""
        return torch.cuda.stream(side.stream)

    def mark(self, side: Side) -> Mark:
        """As :meth:`Runtime.mark`; with a time, so that gaps can be told."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(side.stream)
        return _EventMark(event)

    def capture(self, side: Side, pool: str, work: Callable[[], None]) -> Callable[[], None]:
        """As :meth:`Runtime.capture`. The capturing stream fixes the SMs of every node (CUDA
        programming guide 4.6.5), so a graph is one partition's whatever stream replays it.
        """
        with torch.cuda.stream(side.stream):
            work()  # compiles kernels, makes cuBLAS handles and workspaces: not capturable
            side.stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            if pool not in self._pools:
                self._pools[pool] = torch.cuda.graph_pool_handle()
            # Not ``torch.cuda.graph``: it waits for the whole GPU, and so for the other side.
            graph.capture_begin(pool=self._pools[pool], capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        return graph.replay

    def adopt(self, tensor: torch.Tensor, side: Side) -> None:
        """As :meth:`Runtime.adopt`."""
        tensor.record_stream(side.stream)

    def pinned(self, size: int) -> torch.Tensor:
        """As :meth:`Runtime.pinned`."""
        return torch.zeros(size, dtype=torch.int64, pin_memory=True)

    def attention(self, kv: PagedKV, side: Side) -> AttentionBackend:
        """Our Triton kernels, or where Triton is not installed torch's (without graphs)."""
        if find_spec("triton") is None:
            return SdpaAttention(kv)
        from nexusbench.kernels.attention.paged_triton import TritonAttention

        made = TritonAttention(kv, side.sms)
        made.warm_up()  # every variant now, not in the middle of a run
        return made

    def memory(self) -> tuple[int, int]:
        """As :meth:`Runtime.memory`."""
        return torch.cuda.mem_get_info(self.device)

    def settle(self) -> None:
        """As :meth:`Runtime.settle`."""
        torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """As :meth:`Runtime.release`, with the workspaces that torch keeps for each stream."""
        self._pools.clear()
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)  # no public name
        if clear is not None:
            clear()
        torch.cuda.empty_cache()

    def now(self) -> int:
        """As :meth:`Runtime.now`."""
        return now_ns()

    def rest(self, ns: int) -> None:
        """As :meth:`Runtime.rest`. Linux adds about 50 us of timer slack."""
        sleep(ns / NS_PER_S)
