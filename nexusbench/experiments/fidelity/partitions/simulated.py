"""All that the tables of partitions ask of the simulated GPU: operators alone on some SMs, and two
sequences of kernels beside each other. Times are ns unless a name says otherwise.
"""

from __future__ import annotations

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.models.config import load_model
from nexusbench.physics.attention import Attention
from nexusbench.physics.gemm import Gemm
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.physics.operators import (
    NOTHING,
    OperatorClass,
    attainable,
    clock,
    scaled_sum,
    total,
)
from nexusbench.physics.sharing import LaunchLoad

SAME_OPERANDS = 1  # a benchmark repeats a kernel on one set of operands
VALUE_BYTES = 2.0  # bfloat16 and float16
LONG_KERNEL = 1e6  # ns of a streaming or computing kernel whose own length is not told


class Corun(msgspec.Struct, frozen=True):
    """Two sequences launched together: the time of each until it is done, in the unit of their
    lengths, and how fast either progresses while both run (1 = as alone on all SMs).
    """

    ends: tuple[float, float]
    speeds: tuple[float, float]


_OF_THE_VERSION = (
    "attention_efficiency", "attention_tile_us", "attention_block_us", "attention_empty_us",
    "attention_tail", "attention_overlap", "attention_combine_us", "attention_swap_us",
)  # fmt: skip


class AttentionLayout(msgspec.Struct, frozen=True):
    """The heads of an attention kernel, and which kernel it is (see SimConstants): a benchmark of
    one kernel has no pages.
    """

    heads: int
    kv_heads: int
    head_size: int
    kernel: str = "contiguous"


class SimulatedGpu:
    """One simulated GPU; its attention kernel is the one that a table measured."""

    def __init__(self, gpu: GpuSpec) -> None:
        self.gpu = gpu
        self._gemm = Gemm(gpu)
        self._attentions: dict[AttentionLayout, Attention] = {}
        self._steps: dict[tuple[ModelSpec, int, str], Physics] = {}
        # Sharing and element-wise kernels do not depend on a model.
        self._physics = Physics(gpu, load_model("llama-3.1-8b"))

    def cut(self, sms: int) -> SimulatedGpu:
        """A GPU that consists of ``sms`` of this one's SMs and what bandwidth these draw: two
        launches that are both confined to the same SMs have all of it.
        """
        gpu = self.gpu
        if sms == gpu.num_sms:
            return self
        share, drawn = sms / gpu.num_sms, self.bandwidth(sms) / self.bandwidth(gpu.num_sms)

        def first(curve: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
            kept = [(x / share, y / drawn) for x, y in curve if x < share and y < drawn]
            return (*kept, (1.0, 1.0)) if curve else ()

        sim = msgspec.structs.replace(
            gpu.sim,
            bandwidth_curve=first(gpu.sim.bandwidth_curve),
            weights_curve=first(gpu.sim.weights_curve),
        )
        return SimulatedGpu(
            msgspec.structs.replace(
                gpu,
                num_sms=sms,
                peak_tflops=gpu.peak_tflops * share,
                hbm_gbps=gpu.hbm_gbps * drawn,
                sim=sim,
            )
        )

    def bandwidth(self, sms: int) -> float:
        """Bytes per ns that a streaming kernel on ``sms`` SMs draws alone."""
        return attainable(self.gpu, sms)

    # -- one operator ------------------------------------------------------------------------------

    def streaming(self, sms: int, ns: float = LONG_KERNEL) -> LaunchLoad:
        """A kernel that reads as many bytes on any number of SMs, ``ns`` long on all, and computes
        nothing; one wave of tiles on every SM.
        """
        size = ns * self.bandwidth(self.gpu.num_sms)
        time = size / self.bandwidth(sms)
        return _load(sms, dense=OperatorClass(time, 0.0, time, 0.0, size, 1.0, 1.0, time))

    def computing(self, sms: int, ns: float = LONG_KERNEL) -> LaunchLoad:
        """A kernel that computes all the time, with as much work on any number of SMs, ``ns`` long
        on all; one wave of tiles on every SM.
        """
        share = sms / self.gpu.num_sms
        time = ns / (share * clock(self.gpu.sim.clock_gain, share))
        return _load(sms, dense=OperatorClass(time, time, 0.0, time, 0.0, 1.0, 1.0, time))

    def gemm(self, rows: int, inputs: int, outputs: int, sms: int) -> OperatorClass:
        """``[rows, inputs] x [inputs, outputs]``, repeated on the same operands."""
        return self._gemm.time(
            rows, inputs, outputs, VALUE_BYTES, VALUE_BYTES, sms,
            attainable(self.gpu, sms, weights=True), copies=SAME_OPERANDS,
        )  # fmt: skip

    def gated_mlp(self, rows: int, hidden: int, wide: int, sms: int) -> OperatorClass:
        """Two products up, the gate between them, one down."""
        up, down = self.gemm(rows, hidden, wide, sms), self.gemm(rows, wide, hidden, sms)
        gate = self._physics.streamed(3 * wide * rows * VALUE_BYTES, sms)
        return total([scaled_sum(up, 2.0, gate), down])

    def decode_attention(
        self, layout: AttentionLayout, batch: int, context: int, sms: int
    ) -> OperatorClass:
        """One layer: ``batch`` sequences of ``context`` keys each."""
        return self._attention(layout).time(
            (), batch, batch * context, sms, self.bandwidth(sms), copies=SAME_OPERANDS
        )

    def prefill_attention(
        self, layout: AttentionLayout, tokens: int, sms: int, *, causal: bool = True
    ) -> OperatorClass:
        """One layer: a prompt of ``tokens``. Without a causal mask every token reads all keys,
        which is what tokens after half as many others read on average.
        """
        before = 0 if causal else tokens // 2
        return self._attention(layout).time(
            ((tokens, before),), 0, 0, sms, self.bandwidth(sms), copies=SAME_OPERANDS
        )

    def step(
        self, model: ModelSpec, gpus: int, shape: BatchShape, sms: int, kernel: str = ""
    ) -> LaunchLoad:
        """A step of a whole model over ``gpus`` GPUs, each of them on ``sms`` SMs."""
        key = model, gpus, kernel
        physics = self._steps.get(key)
        if physics is None:
            gpu = self._with_kernel(kernel)
            physics = self._steps[key] = Physics(gpu, model, gpus)
        return physics.load(shape, sms)

    def _attention(self, layout: AttentionLayout) -> Attention:
        known = self._attentions.get(layout)
        if known is None:
            gpu = self._with_kernel(layout.kernel)
            heads = layout.heads, layout.kv_heads, layout.head_size
            known = self._attentions[layout] = Attention(gpu, *heads)
        return known

    def _with_kernel(self, kernel: str) -> GpuSpec:
        """The GPU with another attention kernel; its own if none is named.

        The times of tiles belong to the version of FlashAttention. A GPU of the other version takes
        them over from the A100, on which version 2 was fitted.
        """
        sim = self.gpu.sim
        if kernel in ("", sim.attention_kernel):
            return self.gpu
        changes: dict[str, object] = {"attention_kernel": kernel}
        if sim.attention_kernel in ("fa3", "trtllm"):
            version_2 = load_gpu("a100").sim
            changes |= {key: getattr(version_2, key) for key in _OF_THE_VERSION}
        changed = msgspec.structs.replace(sim, **changes)
        return msgspec.structs.replace(self.gpu, sim=changed)

    # -- two at once -------------------------------------------------------------------------------

    def slowdown(self, side: LaunchLoad, other: LaunchLoad) -> float:
        """How many times longer ``side`` takes beside ``other`` than alone on the same SMs."""
        return self._physics.slowdown(side, other)

    def corun(
        self,
        lengths: tuple[float, float],
        whole: tuple[LaunchLoad, LaunchLoad],
        parts: tuple[LaunchLoad, LaunchLoad],
    ) -> Corun:
        """Two sequences of kernels that take ``lengths`` alone on all SMs, launched together.

        ``whole`` are their loads on all SMs, ``parts`` on the SMs that each has here. A fluid: both
        at their slowed speed until one is done, the other undisturbed on its SMs for the rest.
        """
        alone = [
            n * part.solo / all_.solo for n, part, all_ in zip(lengths, parts, whole, strict=True)
        ]
        slowed = [alone[0] * self.slowdown(*parts), alone[1] * self.slowdown(*parts[::-1])]
        first = min(slowed)
        ends = [first + (1.0 - first / slowed[i]) * alone[i] for i in (0, 1)]
        speeds = lengths[0] / slowed[0], lengths[1] / slowed[1]
        return Corun((ends[0], ends[1]), speeds)


def of_dense(sms: int, dense: OperatorClass) -> LaunchLoad:
    """A launch of dense layers alone, without what a serving loop adds to a step."""
    return _load(sms, dense=dense)


def of_attention(sms: int, attention: OperatorClass) -> LaunchLoad:
    """A launch of attention alone."""
    return _load(sms, attention=attention)


def _load(
    sms: int, dense: OperatorClass = NOTHING, attention: OperatorClass = NOTHING
) -> LaunchLoad:
    return LaunchLoad(dense.time + attention.time, sms, dense, attention)
