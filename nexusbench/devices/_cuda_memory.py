"""What a GPU's memory is kept for besides weights and KV blocks, and which decode sizes get graphs.

Plain arithmetic. Sources of the constants stand beside them; what a GPU really takes is measured
when it is opened, and told in the manifest's environment.
"""

from __future__ import annotations

from bisect import bisect_left

import msgspec

from nexusbench.core.errors import UsageError
from nexusbench.core.specs import DTYPE_BYTES, ModelSpec
from nexusbench.core.units import GIB, MIB

# Decodes that get a CUDA graph of their own size; a batch takes the next larger. Up to 64 rows the
# dense layers read the same weights in the same tiles whatever the number, so few sizes do; beyond,
# steps stay below 2 so that less than half of a graph's rows are padding, and beyond 256, where
# rows begin to cost as much as the weights (H200: 989 TFLOP/s over 4.8 TB/s is 206 FLOP per byte,
# that is rows in bf16), below 1.5.
BUCKETS = (1, 4, 16, 64, 128, 256, 384, 512, 768, 1024)
# For the driver's copies of a graph's kernels. MuxWise (arXiv 2504.14489) adds 6.2 % of memory for
# graphs captured per partition; vLLM's logs of 8B models say 0.3 to 1 GiB for 67 sizes, that is
# about 10 MiB each. What is captured is measured and counts against this; then no more is captured.
GRAPH_BYTES = 1 * GIB
# torch gives every (cuBLAS handle, stream) a workspace: on Hopper the 32 MiB that NVIDIA recommends
# (pytorch PR 83461), elsewhere 8,320 KiB (:4096:2:16:8).
_WORKSPACE_BYTES = {9: 32 * MIB, 10: 32 * MIB}
_WORKSPACE_ELSEWHERE = 8320 * 1024
# MuxWise measures 4 MB for a green-context group; a few more for queues and streams.
CONTEXT_BYTES = 8 * MIB
# torch keeps freed memory for the stream it was used on, and every number of SMs has a stream of
# its own. So many sides of prefill may keep their activations; when more were used and memory is
# short, torch gives all that is cached back, for which it waits for the whole GPU.
CACHED_SIDES = 4
# Fragments of the caching allocator, kernels that are loaded when first used.
SLACK_BYTES = 1 * GIB


class MemoryPlan(msgspec.Struct, frozen=True):
    """Bytes of one GPU, by purpose. ``used`` is what was taken when the plan was made: the weights,
    the CUDA context, and other processes.
    """

    total: int
    used: int
    limit: int  # --gpu-memory-utilization of the total
    activations: int
    workspaces: int
    contexts: int
    graphs: int
    slack: int = SLACK_BYTES

    @property
    def reserved(self) -> int:
        """All that KV blocks may not have besides what is used."""
        return self.activations + self.workspaces + self.contexts + self.graphs + self.slack

    @property
    def kv_bytes(self) -> int:
        """What is left for KV blocks; below 0 if the rest does not fit."""
        return self.limit - self.used - self.reserved

    def __str__(self) -> str:
        parts = {
            "KV": self.kv_bytes, "weights and others": self.used, "activations": self.activations,
            "cuBLAS": self.workspaces, "contexts": self.contexts, "graphs": self.graphs,
            "slack": self.slack,
        }  # fmt: skip
        return ", ".join(f"{name} {size / GIB:.1f} GiB" for name, size in parts.items())


def plan_memory(
    total: int,
    free: int,
    utilization: float,
    model: ModelSpec,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    *,
    streams: int,
    contexts: int,
    capability: tuple[int, int],
    graphs: bool,
) -> MemoryPlan:
    """How the memory of a GPU is shared out, ``free`` of it free with the weights loaded.

    ``streams`` of ``contexts`` green contexts may run a GEMM. Raises UsageError if nothing is left
    for KV blocks.
    """
    workspace = _WORKSPACE_BYTES.get(capability[0], _WORKSPACE_ELSEWHERE)
    plan = MemoryPlan(
        total=total,
        used=total - free,
        limit=int(utilization * total),
        activations=activation_bytes(model, max_num_batched_tokens, max_num_seqs),
        workspaces=streams * workspace,
        contexts=contexts * CONTEXT_BYTES,
        graphs=GRAPH_BYTES if graphs else 0,
    )
    if plan.kv_bytes <= 0:
        raise UsageError(
            f"{model.name} leaves no memory for KV blocks: of {total / GIB:.1f} GiB, "
            f"{utilization:.0%} may be used, {plan.used / GIB:.1f} are taken and "
            f"{plan.reserved / GIB:.1f} are needed besides. Raise --gpu-memory-utilization, lower "
            "--max-num-batched-tokens, or choose a smaller model"
        )
    return plan


def activation_bytes(model: ModelSpec, max_num_batched_tokens: int, max_num_seqs: int) -> int:
    """The most that activations take: ``CACHED_SIDES`` prompts, and decodes with their logits.

    A token of a layer holds the residual stream and an increment to it, the fused projection and an
    fp32 copy of it to rotate, attention's output, and both wings of the MLP with their product. A
    sequence's logits are held in the data type, in fp32, and once more to draw from.
    """
    size = DTYPE_BYTES[model.dtypes.activations]
    query, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    token = (
        model.hidden_size * (4 + 2 * size)
        + (query + 2 * kv) * (4 + size)
        + query * size
        + model.intermediate_size * 4 * size
    )
    decodes = max_num_seqs * (token + model.vocab_size * (8 + size))
    return int(CACHED_SIDES * max_num_batched_tokens * token + decodes)


def decode_buckets(max_num_seqs: int) -> tuple[int, ...]:
    """The sizes that graphs are captured for: those of ``BUCKETS`` up to the budget, and it."""
    return (*(size for size in BUCKETS if size < max_num_seqs), max_num_seqs)


def bucket_for(num_decodes: int, buckets: tuple[int, ...]) -> int | None:
    """The smallest bucket that holds so many decodes; None if all are too small."""
    place = bisect_left(buckets, num_decodes)
    return buckets[place] if place < len(buckets) else None
