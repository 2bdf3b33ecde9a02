"""Data-parallel ranks of a mixture of experts, which step together.

Attention and all that every token uses run on each rank for its own tokens. Before the experts of a
layer the tokens of all ranks are gathered on every GPU, which computes its share of the experts (or
of their width) for all of them; after, each rank gets the sums of its tokens (all-gather and
reduce-scatter: vLLM's ``allgather_reducescatter``, its default backend; vLLM 0.19,
distributed/device_communicators/all2all.py). The slowest rank's own part sets the pace of a layer.
A rank without work computes one token all the same. While every rank can replay a CUDA graph, all
compute as many tokens as the smallest graph has that holds those of each (v1/worker/dp_utils.py);
the rows that are filled up hold tokens of steps before, which choose experts as others do.
"""

from __future__ import annotations

from collections.abc import Sequence

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.core.host import EngineHost
from nexusbench.core.layers import ExpertsMlp
from nexusbench.core.parallelism import Parallelism
from nexusbench.core.specs import GpuSpec
from nexusbench.physics.collectives import Collectives
from nexusbench.physics.launches import Physics
from nexusbench.physics.operators import scaled_sum
from nexusbench.physics.sharing import LaunchLoad

_MOST_GRAPH_TOKENS = 512  # the most tokens that vLLM captures a graph for by default
_DUMMY = BatchShape(1, 0)
# The host of a rank, whose time is counted once for all of them.
IDLE = EngineHost(
    name="idle", about="no host time", scheduler="vllm", asynchronous=True, gap_us=0.0,
    step_us=0.0, sequence_us=0.0, request_us=0.0, prompt_token_us=0.0, reply_us=0.0,
)  # fmt: skip


class Lockstep:
    """Times of steps that ``parallel.data`` ranks take together.

    ``physics`` is that of one rank without host time and without its routed experts; ``host`` the
    engines', None for the GPU file's step_overhead_us; ``max_num_seqs`` of each engine.
    """

    def __init__(
        self, gpu: GpuSpec, physics: Physics, parallel: Parallelism, host: EngineHost | None,
        max_num_seqs: int,
    ) -> None:  # fmt: skip
        self._gpu, self._physics, self._parallel, self._host = gpu, physics, parallel, host
        self._graph_tokens = min(_MOST_GRAPH_TOKENS, 2 * max_num_seqs)
        self._everywhere = Collectives(gpu, parallel.gpus)
        model = physics.model
        self._own = Collectives(gpu, parallel.tensor) if parallel.tensor > 1 else None
        self._exchanges: list[tuple[int, int, int]] = []  # layers; values of a token, of its router
        for group in model.groups:
            if isinstance(group.mlp, ExpertsMlp):
                width = group.mlp.latent or model.hidden_size
                self._exchanges.append((group.count, width, group.mlp.num_experts))

    def load(self, shapes: Sequence[BatchShape | None]) -> LaunchLoad:
        """One step of all ranks on all SMs; None: that rank has nothing to compute. Its operator
        classes are those of the slowest rank, and of the experts.

        Raises UsageError for a launch of some layers or of several steps.
        """
        physics, sms = self._physics, self._gpu.num_sms
        most = tokens = sequences = prompted = 0
        for shape in shapes:
            if shape is None:
                shape = _DUMMY
            if shape.layers is not None or shape.repeat > 1 or shape.remote is not None:
                raise UsageError(
                    "engines that step together launch whole steps, one at a time; choose another "
                    "scheduler, such as vllm, or leave --data-parallel-size away"
                )
            tokens += shape.num_tokens
            most = max(most, shape.num_tokens)
            sequences = max(sequences, shape.num_decodes + len(shape.chunks))
            prompted = physics.model.num_layers if shape.chunks else prompted
        slowest = None
        for shape in shapes:
            load = physics.load(shape or _DUMMY, sms)
            if slowest is None or load.solo > slowest.solo:
                slowest = load
        assert slowest is not None  # there is a rank
        if most <= self._graph_tokens:
            tokens = _captured(most) * len(shapes)
        routed = physics.routed(tokens, sms)
        solo = slowest.solo + routed.time + self._exchanged(tokens)
        if self._host is None:
            solo += self._gpu.sim.step_overhead_us * 1e3
        else:
            solo = self._host.step_ns(solo, sequences, prompted)
        return LaunchLoad(solo, sms, scaled_sum(routed, 1.0, slowest.dense), slowest.attention)

    def _exchanged(self, tokens: int) -> float:
        """Ns of gathering ``tokens`` tokens (and their routers' outputs) and scattering the sums,
        in all layers. Where an engine has several GPUs, each takes part for a share of the
        engine's tokens, and they share the sums.
        """
        each, every, made = self._physics.activation_bytes, self._everywhere, 0.0
        for layers, width, routed in self._exchanges:
            once = every.all_gather(tokens * (width + routed) * each)
            once += every.reduce_scatter(tokens * width * each)
            if self._own is not None:
                once += self._own.all_gather(tokens * width * each / self._parallel.data)
            made += layers * once
        return made


def _captured(tokens: int) -> int:
    """Tokens of the smallest graph that holds ``tokens`` of them: vLLM's sizes are 1, 2, 4, then
    every eighth, from 256 on every sixteenth number (0.19, config/vllm.py).
    """
    if tokens <= 4:
        return tokens if tokens < 3 else 4
    step = 8 if tokens <= 256 else 16
    return -(-tokens // step) * step
