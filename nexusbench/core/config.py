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


# Bounds of numbers: field, least, whether the least itself is allowed, most. What is beyond means
# nothing that can be served, and its products with bytes or nanoseconds no longer fit 63 bits.
_TIMES = (1e-6, True, 1e12)
_BOUNDS: tuple[tuple[str, float, bool, float], ...] = (
    ("tensor_parallel_size", 1, True, 1024),
    ("gpu_memory_utilization", 0, False, 1),
    ("kv_blocks", 1, True, 10**9),
    ("swap_space", 0, True, 1e6),
    ("block_size", 1, True, 10**6),
    ("max_num_seqs", 1, True, 10**6),
    ("max_num_batched_tokens", 1, True, 10**9),
    ("max_model_len", 1, True, 10**9),
    ("speed", *_TIMES),
    ("request_rate", *_TIMES),
    ("burstiness", 1e-4, True, 1e6),
    ("quantize_arrivals", 1e-6, True, 1e9),
    ("limit", 1, True, 2**63 - 1),
    ("concurrency", 1, True, 10**9),
    ("warmup_s", 0, True, 1e9),
    ("temperature", 0, True, 100),
    ("top_p", 0, False, 1),
    ("seed", 0, True, 2**63 - 1),
    ("price_per_hour", *_TIMES),
    ("watts", *_TIMES),
    ("timeout_s", 0.001, True, 1e6),
    ("vocab_size", 8, True, 2**31),
)


def out_of_bounds(field: str, value: float) -> str | None:
    """What a number of this field must be, if ``value`` is not."""
    for name, least, inclusive, most in _BOUNDS:
        if name != field:
            continue
        low = value < least or (value == least and not inclusive)
        if low or value > most or not math.isfinite(value):
            if 0 < least < 1:
                return f"It must be finite, above 0: from {least:g} to {most:g}"
            bounds = f"{'at least' if inclusive else 'above'} {least:g}"
            bounds += f" and at most {most:,.15g}" if math.isfinite(most) else ""
            return f"It must be finite, {bounds}"
    return None


def _is_unicode(text: str) -> bool:
    """Whether it is all characters, not bytes of a command line that stand for none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    for name in kind.__struct_fields__:
        value = getattr(config, name)
        hint = out_of_bounds(name, value) if isinstance(value, int | float) else None
        if hint is not None:
            raise InputError(f"is {value}", field=name, hint=hint)
        if isinstance(value, str) and not _is_unicode(value):
            hint = "Give it another name: a run's manifest could not hold this one"
            raise InputError(f"{value!r} is not UTF-8", field=name, hint=hint)
    return config
