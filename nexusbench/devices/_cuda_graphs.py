"""Decode steps as CUDA graphs: captured once for a side and a size, replayed with new inputs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import torch

from nexusbench.core.units import ceil_div
from nexusbench.devices._cuda_memory import bucket_for
from nexusbench.devices._cuda_partitions import Side
from nexusbench.devices._cuda_runtime import Runtime
from nexusbench.devices._executor import PlannedStep
from nexusbench.kernels.attention.base import AttentionBackend
from nexusbench.kernels.paged import PagedKV
from nexusbench.models.decoder import Decoder
from nexusbench.models.step import Step, check_tokens

_INPUTS = 3  # token ids, positions, slots


class DecodeGraph:
    """A decode step of ``size`` rows on one side: static inputs, a graph, its logits.

    ``fixed`` is the backend's attention for decodes whose grids and addresses never change: its
    ``update(plan)`` puts a step's plan where the captured launches look for it, in the order of the
    current stream. Rows beyond the batch compute nonsense into the last block of the cache, which
    belongs to no request.
    """

    def __init__(
        self, runtime: Runtime, decoder: Decoder, kv: PagedKV, side: Side, size: int, fixed: Any
    ) -> None:
        self.size, self._decoder, self._kv, self._fixed = size, decoder, kv, fixed
        self._scrap = kv.num_blocks * kv.block_size - 1
        self._device = runtime.device
        self._inputs = torch.zeros(_INPUTS * size, dtype=torch.int64, device=runtime.device)
        ids, positions, slots = self._inputs.view(_INPUTS, size)
        slots.fill_(self._scrap)
        self._ids = ids
        longest = decoder.config.spec.max_model_len - 1
        self._step = Step(ids, positions, slots, fixed, None, longest)
        self._logits: torch.Tensor | None = None
        self._replay: Callable[[], None] = runtime.capture(side, side.partition, self._compute)

    def _compute(self) -> None:
        self._logits = self._decoder.forward(self._step, self._kv)

    def launch(
        self, planned: PlannedStep, staging: torch.Tensor, carried: torch.Tensor | None
    ) -> torch.Tensor:
        """Replay with the planned step; its logits [decodes, vocab] in the caller's order, valid
        until the next launch.

        ``staging`` is pinned memory that nothing else uses until this launch has ended. ``carried``
        are tokens of the repetition before, still on the GPU, to compute next.
        """
        plan, size = planned.plan, self.size
        count, order = plan.num_tokens, plan.order
        view = staging[: _INPUTS * size].view(_INPUTS, size).numpy()
        ids = np.fromiter(
            chain.from_iterable(map(planned.tokens.__getitem__, order.tolist())), np.int64, count
        )
        check_tokens(ids, self._decoder.config.spec.vocab_size)
        view[0, :count], view[0, count:] = ids, 0
        view[1, :count], view[1, count:] = plan.positions, 0
        view[2, :count], view[2, count:] = plan.slots, self._scrap
        with torch.inference_mode():
            self._inputs.copy_(staging[: _INPUTS * size], non_blocking=True)
            if carried is not None:
                self._ids[:count].copy_(carried[torch.from_numpy(order).to(self._device)])
            self._fixed.update(plan)
            self._replay()
            assert self._logits is not None
            if np.array_equal(order, np.arange(count)):
                return self._logits[:count]
            rows = torch.from_numpy(plan.last_rows).to(self._device)
            return self._logits.index_select(0, rows)


class DecodeGraphs:
    """The graphs of a device by (partition, SMs, size), captured when first needed.

    ``budget`` bounds the GPU memory that all take together; when it is spent, no more are captured
    and what has none runs without. ``taken`` is what they took.
    """

    def __init__(
        self,
        runtime: Runtime,
        decoder: Decoder,
        kv: PagedKV,
        buckets: tuple[int, ...],
        budget: int,
    ) -> None:
        self._runtime, self._decoder, self._kv = runtime, decoder, kv
        self._buckets, self._budget = buckets, budget
        longest = min(decoder.config.spec.max_model_len, kv.num_blocks * kv.block_size)
        self._max_blocks = ceil_div(longest, kv.block_size)
        self._graphs: dict[tuple[str, int, int], DecodeGraph] = {}
        self.taken = 0

    @property
    def num_captured(self) -> int:
        """Graphs there are."""
        return len(self._graphs)

    def find(
        self, side: Side, attention: AttentionBackend, num_decodes: int, width: int = 0
    ) -> DecodeGraph | None:
        """The graph for so many decodes of up to ``width`` blocks, captured now if need be.

        None if there cannot be one: too many, too wide, no memory, or a backend that offers no
        ``fixed(batch, max_blocks)``.
        """
        size = bucket_for(num_decodes, self._buckets)
        if size is None or width > self._max_blocks or not hasattr(attention, "fixed"):
            return None
        graph = self._graphs.get((side.partition, side.sms, size))
        if graph is None and self.taken < self._budget:
            before = self._runtime.memory()[0]
            with self._runtime.on(side):
                fixed = attention.fixed(size, self._max_blocks)
                graph = DecodeGraph(self._runtime, self._decoder, self._kv, side, size, fixed)
            self._graphs[side.partition, side.sms, size] = graph
            self.taken += max(0, before - self._runtime.memory()[0])
        return graph

    def capture_all(self, side: Side, attention: AttentionBackend) -> None:
        """Every size for one side, before the run; the largest first, whose memory serves all."""
        for size in reversed(self._buckets):
            self.find(side, attention, size)
