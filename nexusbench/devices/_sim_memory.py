"""What the memory of a simulated GPU has left for KV blocks."""

from __future__ import annotations

from nexusbench.core.errors import UsageError
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.core.units import GIB
from nexusbench.devices.base import DeviceOptions

# CUDA context, graphs and workspaces of a real engine. With the activations below it reproduces the
# 2,588 KV blocks that a recorded vLLM 0.19 run resolved on a 24 GB card with Llama-3.1-8B
# (LLMServingSim data set, MIT).
RESERVED_BYTES = 0.86 * GIB


def kv_bytes(gpu: GpuSpec, model: ModelSpec, options: DeviceOptions) -> float:
    """Bytes for KV blocks over all GPUs of the group, as vLLM sizes them: a share of memory less
    weights and peaks; of a pipeline, as the stage that has least for each of its layers allows.

    Raises UsageError if nothing is left.
    """
    parallel = options.parallel
    shares = []
    for layers in parallel.stages(model.num_layers):
        left = _bytes_left(gpu, model, options, parallel.weight_bytes(model, layers))
        shares.append(left / ((layers[1] - layers[0]) / model.num_layers))
    return min(shares) * parallel.tensor


def _bytes_left(gpu: GpuSpec, model: ModelSpec, options: DeviceOptions, weights: float) -> float:
    """What a GPU with these weights has left. Raises UsageError if that is nothing."""
    tp = options.tensor_parallel
    usable = options.gpu_memory_utilization * gpu.hbm_gib * GIB
    # Widest live tensors of a step: gate and up, a few hidden states, and the logits in float32.
    activations = (
        2.0 * options.max_num_batched_tokens * (2 * model.wide / tp + 4 * model.hidden_size)
        + 4.0 * options.max_num_seqs * model.vocab_size
    )
    left = usable - weights - activations - RESERVED_BYTES
    if left <= 0:
        raise UsageError(
            f"{model.name} does not fit {gpu.name}: weights {weights / GIB:.1f} GiB, activations "
            f"{activations / GIB:.1f}, reserve {RESERVED_BYTES / GIB:.1f}, of "
            f"{usable / GIB:.1f} GiB usable. Raise --tensor-parallel-size or "
            "--gpu-memory-utilization, or pick a larger GPU"
        )
    return left
