"""What cannot be spread over GPUs, or over several engines, refused by name."""

from __future__ import annotations

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.layers import ExpertsMlp
from nexusbench.core.parallelism import Parallelism
from nexusbench.core.specs import ModelSpec
from nexusbench.schedulers.base import Scheduler


def check_parallel(config: RunConfig, model: ModelSpec, kind: str) -> None:
    """Raise UsageError for engines or experts over GPUs where the device or the model has none."""
    data, experts = config.data_parallel_size, config.enable_expert_parallel
    if kind != "sim" and (data > 1 or experts):
        flag = "--data-parallel-size" if data > 1 else "--enable-expert-parallel"
        raise UsageError(
            f"{flag} is for simulated devices, --device {kind} is one engine. Leave it out"
        )
    parallel = Parallelism(config.tensor_parallel_size, data, experts)
    layers = [group.mlp for group in model.groups if isinstance(group.mlp, ExpertsMlp)]
    if experts and not layers:
        raise UsageError(
            f"--enable-expert-parallel: {model.name} has no experts. Leave it out, or name a "
            "mixture of experts"
        )
    if experts and parallel.gpus == 1:
        raise UsageError(
            "--enable-expert-parallel spreads experts over several GPUs, this is one: add "
            "--tensor-parallel-size or --data-parallel-size"
        )
    for mlp in layers:
        if mlp.num_experts % parallel.spread:
            raise UsageError(
                f"--enable-expert-parallel: {mlp.num_experts} experts of {model.name} cannot be "
                f"dealt out evenly to {parallel.spread} GPUs"
            )
        if mlp.intermediate_size % parallel.sharded:
            raise UsageError(
                f"experts of {model.name} are {mlp.intermediate_size} wide and cannot be shared by "
                f"{parallel.gpus} GPUs evenly: add --enable-expert-parallel, or take fewer"
            )


def check_policy(config: RunConfig, scheduler: Scheduler, swap_bytes: float) -> None:
    """Raise UsageError for a policy that cannot serve on one of several engines."""
    if config.data_parallel_size == 1:
        return
    if scheduler.num_gpus > 1 or len(scheduler.partitions) > 1:
        raise UsageError(
            f"scheduler '{scheduler.name}' divides its GPU, or runs on several; with "
            "--data-parallel-size choose one that does not, such as vllm"
        )
    if swap_bytes:
        raise UsageError(
            f"with --data-parallel-size requests are recomputed, not swapped: scheduler "
            f"'{scheduler.name}' needs preemption=recompute, and no --swap-space"
        )
