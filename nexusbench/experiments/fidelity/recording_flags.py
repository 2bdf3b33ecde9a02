"""What a recorded vLLM engine was configured with, key by key: replayed, without effect on times,
or refused, since a replay without it would be scored as another deployment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from nexusbench.core.errors import InputError

Values = Mapping[str, object]
# Values of a key that is off.
_OFF: tuple[object, ...] = (None, False, 0, "", "auto", "none", "None")
# Read by recording.py and replayed.
HONOURED = frozenset({
    "model", "tensor_parallel_size", "data_parallel_size", "pipeline_parallel_size",
    "enable_expert_parallel", "max_num_seqs", "max_num_batched_tokens", "max_model_len",
    "block_size", "num_gpu_blocks", "num_gpu_blocks_override", "gpu_memory_utilization",
    "enable_prefix_caching", "async_scheduling", "scheduler_reserve_full_isl",
})  # fmt: skip
# Refused unless off, or one of these: what no simulated run has, in words.
REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "dtype": (("bfloat16", "float16", "half", "torch.bfloat16", "torch.float16"),
              "another data type than 16 bit"),
    "cache_dtype": (("bfloat16", "float16"), "a KV cache in another data type"),
    "kv_cache_dtype": (("bfloat16", "float16"), "a KV cache in another data type"),
    "quantization": ((), "weights that are quantised when they are loaded; give --model the "
                     "quantised model, and a recording that says no more than its name"),
    "enforce_eager": ((), "steps that are launched kernel by kernel"),
    "policy": (("fcfs",), "scheduling by another order than that of arrival"),
    "scheduler_cls": ((), "a scheduler of its own"),
    "long_prefill_token_threshold": ((), "a limit on the tokens of long prompts"),
    "max_num_partial_prefills": ((1,), "several prompts in mid-prefill by a rule of their own"),
    "max_long_partial_prefills": ((1,), "several prompts in mid-prefill by a rule of their own"),
    "runner_type": (("generate",), "anything but generation"),
    "runner": (("generate",), "anything but generation"),
    "num_scheduler_steps": ((1,), "several steps for each decision"),
    "speculative_config": ((), "speculative decoding"),
    "speculative_model": ((), "speculative decoding"),
    "num_speculative_tokens": ((), "speculative decoding"),
    "lora_config": ((), "LoRA adapters"),
    "enable_lora": ((), "LoRA adapters"),
    "kv_transfer_config": ((), "KV transfers between engines"),
    "ec_transfer_config": ((), "transfers of encodings between engines"),
    "kv_offloading_size": ((), "KV blocks in host memory"),
    "cpu_offload_gb": ((0.0,), "weights in host memory"),
    "swap_space": ((4, 4.0), "KV blocks in host memory"),
    "kv_sharing_fast_prefill": ((), "layers that share keys and values"),
    "mamba_cache_mode": ((), "states that are kept for prefixes"),
    "hf_overrides": (({},), "a model with other properties than its config.json"),
    "disable_sliding_window": ((), "a model without its sliding window"),
    "decode_context_parallel_size": ((1,), "context parallelism"),
    "prefill_context_parallel_size": ((1,), "context parallelism"),
    "enable_dbo": ((), "two micro-batches at a time"),
    "ubatch_size": ((), "micro-batches"),
    "enable_eplb": ((), "experts that are moved to balance load"),
    "nnodes": ((1,), "several machines"),
    "device_type": (("cuda",), "another device than CUDA GPUs"),
    "use_prefill_decode_attention": ((), "another attention kernel"),
}  # fmt: skip
# Keys of which the recorded value changes kernels here and there, but no rule: said, not refused.
SAID = {
    "backend": "attention_config", "flash_attn_version": "attention_config",
    "use_trtllm_attention": "attention_config", "moe_backend": "", "all2all_backend": "",
    "disable_custom_all_reduce": "", "optimization_level": "", "performance_mode": "",
}  # fmt: skip
_USUAL = {
    "all2all_backend": "allgather_reducescatter", "optimization_level": 2,
    "performance_mode": "balanced",
}  # fmt: skip
# Sections without effect on when tokens come: how weights are loaded, what is observed, how
# processes are named and reached, and settings of kernels that the rules above do not name.
_SECTIONS = (
    "scheduler_config", "cache_config", "model_config", "parallel_config", "device_config",
    "attention_config", "kernel_config",
)  # fmt: skip
_MOST_SAID = 8
_HINT = "Give a recording without it"


def check_flags(meta: Values, path: Path) -> list[str]:
    """Notes on what differs without being replayed, of a whole ``meta.json``. Raises InputError
    that names the first key whose value no simulated run has.
    """
    notes = []
    for place, key, value in _keys(meta):
        if key in REFUSED and not _is_off(value):
            usual, words = REFUSED[key]
            if value not in usual:
                raise InputError(
                    f"was {_short(value)}: simulated runs do not have {words}", file=path,
                    field=f"{place}.{key}".lstrip("."), hint=_HINT,
                )  # fmt: skip
        in_place = key in SAID and place.endswith(SAID[key])
        if in_place and not _is_off(value) and value != _USUAL.get(key):
            notes.append(f"{place}.{key} was {_short(value)}, which is not simulated")
    _check_pairs(meta, path)
    more = len(notes) - _MOST_SAID
    return [*notes[:_MOST_SAID], f"{more} more keys are not simulated"] if more > 0 else notes


def _check_pairs(meta: Values, path: Path) -> None:
    """What has no key of its own, or is on unless it is turned off."""
    config, asked = _part(meta, "resolved_config"), _part(meta, "engine_kwargs")
    scheduler = _part(config, "scheduler_config")
    for place, flags in (("resolved_config.scheduler_config", scheduler), ("engine_kwargs", asked)):
        if flags.get("enable_chunked_prefill") is False:
            raise InputError(
                "was false: simulated vLLM computes prompts in chunks", file=path,
                field=f"{place}.enable_chunked_prefill", hint=_HINT,
            )  # fmt: skip
    compiled = _part(config, "compilation_config").get("cudagraph_mode")
    if compiled in (0, "NONE", "none", [0, 0]):
        raise InputError(
            f"was {compiled}: simulated runs do not have steps that are launched kernel by kernel",
            file=path, field="resolved_config.compilation_config.cudagraph_mode", hint=_HINT,
        )  # fmt: skip
    most, budget = (
        scheduler.get("max_num_scheduled_tokens"),
        scheduler.get("max_num_batched_tokens"),
    )
    if isinstance(most, int) and isinstance(budget, int) and most < budget:
        raise InputError(
            f"was {most}, less than max_num_batched_tokens {budget}: simulated runs have one "
            "budget", file=path, field="resolved_config.scheduler_config.max_num_scheduled_tokens",
            hint=_HINT,
        )  # fmt: skip
    offloaded = str(_part(config, "offload_config").get("uva") or "")
    if "cpu_offload_gb=" in offloaded and "cpu_offload_gb=0.0" not in offloaded:
        raise InputError(
            f"was {_short(offloaded)}: simulated runs do not have weights in host memory",
            file=path, field="resolved_config.offload_config.uva", hint=_HINT,
        )  # fmt: skip


def _keys(meta: Values) -> Iterator[tuple[str, str, object]]:
    """(where, key, value) of the arguments, and of the resolved sections that matter."""
    for place in ("engine_kwargs", "kv_cache"):
        for key, value in _part(meta, place).items():
            yield place, key, value
    config = _part(meta, "resolved_config")
    for key, value in config.items():
        place = f"resolved_config.{key}"
        if key in _SECTIONS and isinstance(value, dict):
            for inner, found in value.items():
                yield place, inner, found
        else:
            yield "resolved_config", key, value


def _part(meta: Values, key: str) -> Values:
    found = meta.get(key)
    return found if isinstance(found, dict) else {}


def _is_off(value: object) -> bool:
    return any(value is off or (value == off and type(value) is type(off)) for off in _OFF)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."
