"""The environment fingerprint: what must be equal for a baseline to say anything about a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from nexusbench.core.config import EndpointConfig, RunConfig
from nexusbench.core.documents import JsonObject
from nexusbench.core.host import constants_of
from nexusbench.core.specs import GpuSpec, ModelSpec, with_used_kernels
from nexusbench.profiles.profile import sha256_of
from nexusbench.results.resolved import Resolved, ResolvedEngineRun

Facts = dict[str, str | int | float | bool | None]

# Fields of a config that have an entry of their own, or say only where something lies.
_ELSEWHERE = {
    "trace", "seed", "device", "model", "scheduler", "kernel_table", "profile", "force_profile",
    "engine",
}  # fmt: skip
_HASH_CHARACTERS = 16  # 64 bits: enough to tell traces apart, short enough to read in a diff
_NAMED = ("trace", "model", "device", "scheduler")
_CONFIG = "config."


def environment_of(
    config: RunConfig | EndpointConfig, resolved: Resolved, simulated: bool
) -> Facts:
    """What decides every number of a run: trace, model, device, scheduler (with hashes of their
    contents), and each setting that is not the default, seed aside.

    Defaults are left out so that a new setting does not make every baseline foreign. What the
    config resolved to (KV blocks, limits) is left out too: if that changes, the numbers shall say
    so.
    """
    gpus = 1
    if isinstance(config, RunConfig):
        gpus = config.tensor_parallel_size * config.data_parallel_size
    used: object = resolved.gpu
    if isinstance(resolved.gpu, GpuSpec) and isinstance(resolved.model, ModelSpec):
        used = with_used_kernels(resolved.gpu, resolved.model, gpus)
    gpu: JsonObject = msgspec.to_builtins(used)
    own_model: JsonObject = msgspec.to_builtins(resolved.model)
    for described in ("sources", "ranges", "caveats"):  # words about the constants, not constants
        gpu.pop(described, None)
    for name in ("name", "source"):
        own_model.pop(name, None)
    sources: list[str | None] = [None, None]
    if isinstance(resolved, ResolvedEngineRun):
        sources = [resolved.kernel_table, resolved.made_of_profile]
    device = [gpu, resolved.num_sms, *sources]
    if isinstance(resolved, ResolvedEngineRun) and resolved.host is not UNSET:
        device.append(constants_of(resolved.host))
    facts: Facts = {
        "trace": resolved.trace.name,
        "trace_sha256": resolved.trace.sha256[:_HASH_CHARACTERS],
        "model": resolved.model.name,
        "model_sha256": sha256_of(own_model)[:_HASH_CHARACTERS],
        "device": resolved.device,
        "device_sha256": sha256_of(device)[:_HASH_CHARACTERS],
        "scheduler": config.scheduler if isinstance(config, RunConfig) else "endpoint",
        "simulated": simulated,
    }
    if resolved.belief is not None and resolved.belief.profile is not None:
        facts["profile_sha256"] = resolved.belief.profile.points_sha256[:_HASH_CHARACTERS]
    asked: JsonObject = msgspec.to_builtins(config)
    usual: JsonObject = msgspec.to_builtins(RunConfig(trace=""))
    for key, value in sorted(asked.items()):
        if key not in _ELSEWHERE and value != usual.get(key):
            plain = isinstance(value, str | int | float | bool)
            facts[_CONFIG + key] = value if plain else _flat(value)
    return facts


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}:{item:g}" for key, item in sorted(value.items()))
    return str(value)


def name_of(environment: Facts) -> str:
    """A series' name: trace, model, device, scheduler, and the settings that are not the
    default.
    """
    settings = [
        f"{key.removeprefix(_CONFIG)}={value}"
        for key, value in environment.items()
        if key.startswith(_CONFIG)
    ]
    return ", ".join([*(str(environment[key]) for key in _NAMED), *settings])


def differences(baseline: Facts, current: Facts) -> list[str]:
    """What differs, each as ``key: baseline -> current``."""
    keys = dict.fromkeys([*baseline, *current])
    return [
        f"{key}: {_shown(baseline.get(key))} -> {_shown(current.get(key))}"
        for key in keys
        if baseline.get(key) != current.get(key)
    ]


def _shown(value: object) -> str:
    return "not given" if value is None else str(value)
