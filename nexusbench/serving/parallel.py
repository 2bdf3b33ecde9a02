"""What cannot be spread over GPUs, or over several engines, refused by name."""

from __future__ import annotations

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.layers import ExpertsMlp
from nexusbench.core.parallelism import Parallelism
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.physics.link_kinds import link_of
from nexusbench.schedulers.base import Scheduler

GPUS_OF_SERVER, GPUS_OF_RACK, RACK_LINK = 8, 72, "nvlink5-nvl72"


def check_parallel(config: RunConfig, model: ModelSpec, kind: str) -> None:
    """Raise UsageError for engines or experts over GPUs where the device or the model has none."""
    data, experts = config.data_parallel_size, config.enable_expert_parallel
    stages = config.pipeline_parallel_size
    if kind != "sim" and (data > 1 or stages > 1 or experts):
        flag = "--pipeline-parallel-size" if stages > 1 else "--enable-expert-parallel"
        flag = "--data-parallel-size" if data > 1 else flag
        raise UsageError(
            f"{flag} is for simulated devices, --device {kind} is one engine. Leave it out"
        )
    if stages > 1:
        _check_stages(stages, data, model)
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


def caveats_of(config: RunConfig, model: ModelSpec, gpu: GpuSpec) -> list[str]:
    """What is not as in a real deployment over several GPUs; one sentence each."""
    found = []
    parallel = Parallelism(config.tensor_parallel_size, config.data_parallel_size)
    together = parallel.gpus if parallel.in_lockstep(model) else parallel.tensor
    # Links are those of one server, and collectives were measured there; but for racks of 72.
    most = GPUS_OF_RACK if link_of(gpu)[0] == RACK_LINK else GPUS_OF_SERVER
    if together > most:
        found.append(
            f"{together} GPUs: NOT VALIDATED, collectives between servers are timed as if all were "
            f"in one, which has {most}"
        )
    if config.pipeline_parallel_size > 1:
        found.append(
            "pipeline stages: NOT VALIDATED, no such run was compared; chunks of one prompt wait "
            "for each other, which vLLM sends through the stages one behind the other, so that "
            "TTFT of prompts beyond max_num_batched_tokens is too long"
        )
    return found


def _check_stages(stages: int, data: int, model: ModelSpec) -> None:
    """Raise UsageError for a pipeline whose stages would not be alike in what they keep."""
    if stages > model.num_layers:
        raise UsageError(
            f"--pipeline-parallel-size {stages}: {model.name} has {model.num_layers} layers. Give "
            "at most as many stages"
        )
    if len({group.mixer for group in model.groups}) > 1:
        raise UsageError(
            f"--pipeline-parallel-size: layers of {model.name} differ in what they keep of a "
            "sequence, and stages of them cannot be simulated. Leave it out"
        )
    if Parallelism(data=data).in_lockstep(model):
        raise UsageError(
            "--pipeline-parallel-size: data-parallel engines of a mixture of experts cannot be "
            "simulated with several stages each. Leave it or --data-parallel-size out"
        )


def check_policy(config: RunConfig, scheduler: Scheduler, swap_bytes: float) -> None:
    """Raise UsageError for a policy that cannot serve on one of several engines."""
    if config.data_parallel_size == 1 and config.pipeline_parallel_size == 1:
        return
    flag = "--pipeline-parallel-size" if config.pipeline_parallel_size > 1 else ""
    flag = "--data-parallel-size" if config.data_parallel_size > 1 else flag
    if scheduler.num_gpus > 1 or len(scheduler.partitions) > 1:
        raise UsageError(
            f"scheduler '{scheduler.name}' divides its GPU, or runs on several; with "
            f"{flag} choose one that does not, such as vllm"
        )
    if swap_bytes:
        raise UsageError(
            f"with {flag} requests are recomputed, not swapped: scheduler "
            f"'{scheduler.name}' needs preemption=recompute, and no --swap-space"
        )
