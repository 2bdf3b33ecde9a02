"""Before the first request of several runs is served: whether each of them can be assembled."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nexusbench.core.config import RunConfig, check_config
from nexusbench.schedulers.base import Scheduler, schedulers
from nexusbench.serving.assembly import (
    check_gpus,
    make_partitioner,
    open_device,
    pair_of,
    partitioner_of,
    resolve_device,
    resolve_model,
)
from nexusbench.serving.belief import check_closed, make_belief
from nexusbench.serving.tokens import check_flags

# What says which requests come when: it decides nothing of what is checked here.
_TRAFFIC = {
    "trace": "", "speed": None, "request_rate": None, "burstiness": None, "limit": None,
    "window": None, "spread_ties": "none", "quantize_arrivals": None, "concurrency": None,
    "max_tokens": None, "warmup_s": 0.0, "price_per_hour": None, "watts": None,
    "seed": 0,
}  # fmt: skip


def decisive(config: RunConfig) -> bytes:
    """What :func:`check_run` looks at: configs that agree in it need one check."""
    return msgspec.json.encode(msgspec.structs.replace(config, **_TRAFFIC))


def check_runs(configs: Iterable[RunConfig]) -> None:
    """:func:`check_run` for each, where they differ at all: a single run is checked as it is
    assembled.
    """
    different = {decisive(check_config(config)): config for config in configs}
    if len(different) > 1:
        for config in different.values():
            check_run(config)


def check_run(config: RunConfig) -> None:
    """Raise what assembling ``config`` would for anything but its trace: the policies, their
    options, the belief and its profile, the device.

    A simulated device is opened for it, which takes milliseconds. Of a real one, which takes long
    and exists once, only what needs no opening is checked. An input that is wrong by itself is an
    InputError, what does not go together another UsageError.
    """
    config = check_config(config)
    model, length = resolve_model(config)
    scheduler: Scheduler = schedulers.create(config.scheduler)
    kind, _, argument = resolve_device(config.device).partition(":")
    if kind != "sim":
        check_flags(config, kind)
        if scheduler.num_gpus > 1:
            pair_of(scheduler, kind, argument)
        _, cls = partitioner_of(config, scheduler)
        if cls.needs_belief or scheduler.needs_belief:
            check_closed(config, model)
        return
    device, _ = open_device(config, model, length, policy=scheduler)
    try:
        check_gpus(scheduler, device)
        partitioner, _ = make_partitioner(config, scheduler, device, model, make_belief)
        partitioner.initial(device.spec)
    finally:
        device.close()


def check_belief(config: RunConfig) -> None:
    """:func:`check_run` of what all policies share: device, cost model and profile."""
    config = check_config(config)
    model, length = resolve_model(config)
    if resolve_device(config.device).partition(":")[0] != "sim":
        check_closed(config, model)
        return
    device, _ = open_device(config, model, length)
    try:
        make_belief(config, device, model)
    finally:
        device.close()
