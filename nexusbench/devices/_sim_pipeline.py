"""The stages of a simulated pipeline: batches follow each other through the layers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec

from nexusbench.core.batch import Batch, BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.core.host import US, EngineHost
from nexusbench.core.parallelism import Parallelism
from nexusbench.physics.collectives import Collectives

if TYPE_CHECKING:
    from nexusbench.devices.sim import Sim

HANDED_ON = 2.0  # values a hidden one: vLLM sends the residual beside it


class Pipeline:
    """Times the launches of ``sim``, whose physics has no host time of its own.

    A batch computes on a stage when the one before it has left it and its hidden states are there;
    these cross a link while the stage goes on with the next batch. The one host process plans a
    batch at a time, ahead of the first stage if ``host`` schedules asynchronously; each stage waits
    for its launch (``gap_us``; without a host, the GPU file's step_overhead_us).
    """

    def __init__(self, sim: Sim, parallel: Parallelism, host: EngineHost | None, seed: int) -> None:
        gpu, model = sim.gpu, sim.model
        self._sim, self._host, self._noise = sim, host, random.Random(seed)
        self._stages = parallel.stages(model.num_layers)
        self._free = [0.0] * len(self._stages)  # ns from which a stage can take a batch
        self._planned = 0.0  # ns at which the host had planned the last batch
        self._gap = (gpu.sim.step_overhead_us if host is None else host.gap_us) * US
        # Each GPU of a stage sends its share; those of the next one put them together.
        values = HANDED_ON * model.hidden_size * sim.physics.activation_bytes
        self._latency = gpu.link_latency_us * US
        self._per_token = values / parallel.tensor / gpu.link_gbps
        self._gathered = values if parallel.tensor > 1 else 0.0
        self._gather = Collectives(gpu, parallel.tensor) if parallel.tensor > 1 else None
        sim.taker = self.submit

    def submit(self, step: int, batch: Batch) -> None:
        """Start ``batch``. Raises UsageError for a launch of some layers or of several steps."""
        sim, shape = self._sim, batch.shape
        if shape.layers is not None or shape.repeat > 1 or shape.remote is not None:
            raise UsageError(
                "a pipeline launches whole steps, one at a time; choose another scheduler, such as "
                "vllm, or leave --pipeline-parallel-size away"
            )
        now, jitter = sim.now(), sim.gpu.sim.jitter
        ready = self._plan(now, shape)
        handed = self._handed(shape.num_tokens)
        for stage, layers in enumerate(self._stages):
            load = sim.physics.load(msgspec.structs.replace(shape, layers=layers), sim.gpu.num_sms)
            taken = load.solo * (1.0 + jitter * (2.0 * self._noise.random() - 1.0)) + self._gap
            ready = max(ready + (handed if stage else 0.0), self._free[stage]) + taken
            self._free[stage] = ready
        # It waits for others on each stage: what it takes alone is not the time from here to there.
        sim.launch(step, batch, load, ready - now).solo_ns = -1

    def _plan(self, now: int, shape: BatchShape) -> float:
        """When the host has planned and launched the batch."""
        host = self._host
        if host is None:
            return float(now)
        prompted = self._sim.physics.model.num_layers if shape.chunks else 0
        work = host.work_ns(shape.num_decodes + len(shape.chunks), prompted)
        if host.asynchronous:
            self._planned = max(float(now), self._planned + work)
        else:
            self._planned = max(float(now), self._planned) + work
        return self._planned

    def _handed(self, tokens: int) -> float:
        """Ns from the end of a stage to the begin of the next one, for ``tokens`` tokens."""
        made = self._latency + tokens * self._per_token
        return (
            made
            if self._gather is None
            else made + self._gather.all_gather(tokens * self._gathered)
        )
