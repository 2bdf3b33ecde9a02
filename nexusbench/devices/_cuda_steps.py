"""From a batch to pieces of work on a GPU: a decode step as its graph, a prompt layer by layer."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch

from nexusbench.core.batch import Batch
from nexusbench.devices._cuda_graphs import DecodeGraphs
from nexusbench.devices._cuda_partitions import Side
from nexusbench.devices._cuda_runtime import Mark, Runtime
from nexusbench.devices._executor import PlannedStep, Served, StepPlanner, contexts_of
from nexusbench.kernels.attention.base import AttentionBackend
from nexusbench.models.sampling import draw

# Pieces of a launch that may be on the GPU and not have ended: enough that it never runs dry while
# the host decides something, few enough that a decode never waits long for its turn on the host.
AHEAD = 4
# Launching a layer takes the host some 0.1 ms (15 kernels); MuxWise reports 1.5 % for layer-wise
# launching.
LAYERS_PER_PIECE = 2


@dataclass(slots=True)
class Piece:
    """Work that was launched up to ``mark``; with ``planned``, a forward pass ends there and its
    tokens are in ``host``.
    """

    mark: Mark
    planned: PlannedStep | None = None
    host: torch.Tensor | None = None


class PieceMaker:
    """Turns batches into pieces. Call ``next`` on what :meth:`pieces` gives with the side's stream
    current: all temporaries then belong to it.
    """

    def __init__(self, runtime: Runtime, served: Served, graphs: DecodeGraphs | None) -> None:
        self._runtime, self._served, self.graphs = runtime, served, graphs
        self.planner = StepPlanner(served)
        self._attention: dict[tuple[str, int], AttentionBackend] = {}
        self._staging: dict[tuple[str, str, int], torch.Tensor] = {}

    def attention(self, side: Side) -> AttentionBackend:
        """The side's own backend: its scratch memory must belong to its stream."""
        key = side.partition, side.sms
        if key not in self._attention:
            with self._runtime.on(side):
                self._attention[key] = self._runtime.attention(self._served.kv, side)
        return self._attention[key]

    def pieces(self, batch: Batch, side: Side) -> Iterator[Piece]:
        """Launch ``batch`` piece by piece."""
        served, attention = self._served, self.attention(side)
        # The engine counts tokens as soon as it hears of a repetition, so places are taken now.
        contexts = contexts_of(batch)
        carried = None
        for turn in range(batch.repeat):
            planned = self.planner.plan(
                batch, [context + turn for context in contexts], attention.padded_tokens
            )
            graph, logits = None, None
            if self.graphs is not None and not batch.chunks:
                count, width = planned.plan.blocks.shape
                graph = self.graphs.find(side, attention, count, width)
            if graph is not None:
                staging = self._pinned((batch.partition, "in", turn), 3 * graph.size)
                logits = graph.launch(planned, staging, carried)
            else:
                logits = yield from self._layers(planned, batch, side, carried)
            host = None
            if logits is not None and planned.makers:
                carried = draw(logits, served.sampling, *planned.drawn_for)
                host = self._pinned((batch.partition, "out", turn), len(carried))[: len(carried)]
                host.copy_(carried, non_blocking=True)
            yield Piece(self._runtime.mark(side), planned, host)

    def _layers(
        self, planned: PlannedStep, batch: Batch, side: Side, carried: torch.Tensor | None
    ) -> Generator[Piece, None, torch.Tensor | None]:
        """The forward pass a few layers at a time; returns the wanted logits, or None."""
        served, runtime = self._served, self._runtime
        step = self.planner.load(planned, self.attention(side))
        if carried is not None:
            order = torch.from_numpy(planned.plan.order).to(carried.device)
            step.token_ids.copy_(carried[order])
        num_layers = served.decoder.config.spec.num_layers
        first, stop = batch.layers or (0, num_layers)
        hidden = None
        if first:
            for request in planned.requests:
                runtime.adopt(served.halfway[request.index], side)
            hidden = self.planner.resume(planned)
        while first < stop:
            last = min(first + LAYERS_PER_PIECE, stop)
            hidden = served.decoder.forward(step, served.kv, (first, last), hidden)
            first = last
            if first < stop:
                yield Piece(runtime.mark(side))
        if stop == num_layers:
            return hidden
        assert hidden is not None
        self.planner.put_off(planned, hidden)
        return None

    def _pinned(self, use: tuple[str, str, int], size: int) -> torch.Tensor:
        """Pinned memory of at least ``size`` for a (partition, direction, repetition). As many are
        kept as pieces may be on their way, so the one returned serves none of them.
        """
        key = (*use[:2], use[2] % AHEAD)
        found = self._staging.get(key)
        if found is None or len(found) < size:
            found = self._staging[key] = self._runtime.pinned(size)
        return found
