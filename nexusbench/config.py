"""RunConfig and EndpointConfig: everything that decides a run, in one frozen value."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import msgspec

from nexusbench.core.errors import InputError

_Config = TypeVar("_Config", bound="RunConfig | EndpointConfig")


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that decides a run: the same config and trace give the same event log on ``sim``
    (I6).

    Names and meanings are vLLM's where it has them; None means "resolve from device and model", and
    what was resolved stands in the manifest. ``goodput`` maps ttft, tbt, tpot, e2e to bounds in ms.
    ``quantize_arrivals`` rounds arrivals up to multiples of so many seconds, ``concurrency`` makes
    the trace a closed loop of so many users. In a pair of GPUs ``kv_blocks`` are each GPU's,
    ``max_num_seqs`` both GPUs' together. ``price_per_hour`` is dollars for an hour of one GPU,
    ``watts`` what one GPU draws. ``swap_space`` is GiB of host memory for preempted requests' KV,
    per GPU (None: what the scheduler counts on).
    ``load_format`` to ``stop_at_eos`` are for devices that compute tokens: where weights come from,
    in what data type, and how tokens are drawn (temperature 0: the likeliest; ``seed`` draws).
    ``graphs``: decode by CUDA graphs on the device that has them.
    """

    trace: str
    device: str = "auto"
    model: str = "llama-3.1-8b"
    scheduler: str = "nexus"
    partitioner: str | None = None
    cost_model: str | None = None
    profile: str | None = None
    force_profile: bool = False
    recalibrate: bool = False
    load_format: Literal["auto", "safetensors", "dummy"] = "auto"
    dtype: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    stop_at_eos: bool = False
    graphs: bool = True
    tensor_parallel_size: int = 1
    kernel_table: str | None = None
    gpu_memory_utilization: float = 0.9
    kv_blocks: int | None = None
    swap_space: float | None = None
    block_size: int = 16
    prefix_caching: bool = True
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    too_long: Literal["reject", "skip", "clip", "error"] = "reject"
    speed: float | None = None
    request_rate: float | None = None
    burstiness: float | None = None
    limit: int | None = None
    window: str | None = None
    spread_ties: Literal["none", "uniform"] = "none"
    quantize_arrivals: float | None = None
    concurrency: int | None = None
    max_tokens: str | None = None
    warmup_s: float = 0.0
    goodput: dict[str, float] = {}
    price_per_hour: float | None = None
    watts: float | None = None
    seed: int = 0


class EndpointConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that decides a replay against an OpenAI-compatible server at the URL ``endpoint``.

    None means "ask the server": its only model, its context length. ``prompt`` is token ids, text,
    or whichever the server takes; ids are drawn below ``vocab_size``. The API key is the value of
    the environment variable called ``api_key_env`` and is nowhere else. A request whose
    answer has not ended after ``timeout_s`` has failed. The rest is as in RunConfig.
    """

    trace: str
    endpoint: str
    model: str | None = None
    api: Literal["completions", "chat"] | None = None
    prompt: Literal["auto", "ids", "text"] = "auto"
    vocab_size: int = 32_000
    api_key_env: str | None = None
    timeout_s: float = 600.0
    max_model_len: int | None = None
    too_long: Literal["reject", "skip", "clip", "error"] = "reject"
    speed: float | None = None
    request_rate: float | None = None
    burstiness: float | None = None
    limit: int | None = None
    window: str | None = None
    spread_ties: Literal["none", "uniform"] = "none"
    quantize_arrivals: float | None = None
    concurrency: int | None = None
    warmup_s: float = 0.0
    goodput: dict[str, float] = {}
    price_per_hour: float | None = None
    watts: float | None = None
    seed: int = 0


# Bounds of numbers: field, least, whether the least itself is allowed, most.
_BOUNDS = (
    ("tensor_parallel_size", 1, True, math.inf),
    ("gpu_memory_utilization", 0, False, 1),
    ("kv_blocks", 1, True, math.inf),
    ("swap_space", 0, True, math.inf),
    ("block_size", 1, True, math.inf),
    ("max_num_seqs", 1, True, math.inf),
    ("max_num_batched_tokens", 1, True, math.inf),
    ("max_model_len", 1, True, math.inf),
    ("speed", 0, False, math.inf),
    ("request_rate", 0, False, math.inf),
    ("burstiness", 0, False, math.inf),
    ("quantize_arrivals", 0, False, math.inf),
    ("limit", 1, True, math.inf),
    ("concurrency", 1, True, math.inf),
    ("warmup_s", 0, True, math.inf),
    ("temperature", 0, True, 100),
    ("top_p", 0, False, 1),
    ("seed", 0, True, math.inf),
    ("price_per_hour", 0, False, math.inf),
    ("watts", 0, False, math.inf),
    ("timeout_s", 0.001, True, 1e6),
    ("vocab_size", 8, True, 2**31),
)


def check_config(config: _Config) -> _Config:
    """``config`` with every field of its type and within its bounds.

    The command line checks its flags itself, with their names; this is for configs made in Python
    and for manifests. Raises InputError naming the field.
    """
    kind = type(config)
    needed = {"trace": "", "endpoint": ""} if kind is EndpointConfig else {"trace": ""}
    for name in kind.__struct_fields__:
        value = msgspec.to_builtins(getattr(config, name))
        try:
            msgspec.convert({**needed, name: value}, kind)
        except msgspec.ValidationError as error:
            raise InputError(f"{str(error).split(' - at')[0]}, got {value!r}", field=name) from None
    for name, least, inclusive, most in _BOUNDS:
        value = getattr(config, name, None)
        if value is None:
            continue
        low = value < least or (value == least and not inclusive)
        if low or value > most or not math.isfinite(value):
            bounds = f"{'at least' if inclusive else 'above'} {least}"
            bounds += f" and at most {most:g}" if math.isfinite(most) else ""
            raise InputError(f"is {value}", field=name, hint=f"It must be finite, {bounds}")
    return config
