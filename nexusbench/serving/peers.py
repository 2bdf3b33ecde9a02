"""The engines of a run beside the first."""

from __future__ import annotations

import msgspec

from nexusbench.devices.base import Device
from nexusbench.kv.manager import KVCacheManager
from nexusbench.partitioners.base import Partitioner
from nexusbench.schedulers.base import Scheduler, schedulers
from nexusbench.serving.belief import BeliefFactory, make_partitioner
from nexusbench.serving.opening import kv_pools
from nexusbench.serving.resolve import NamedRun
from nexusbench.workloads.base import Trace


class EngineParts(msgspec.Struct):
    """What one engine of a fleet has for itself."""

    device: Device
    scheduler: Scheduler
    partitioner: Partitioner
    kv: KVCacheManager


def make_peers(
    run: NamedRun, device: Device, trace: Trace, belief: BeliefFactory
) -> list[EngineParts]:
    """The engines of ``run`` on all ranks but the first, ``device``: equal to its, each with
    policies and a KV pool of its own.
    """
    made: list[EngineParts] = []
    for rank in device.ranks.devices[1:] if device.ranks is not None else ():
        scheduler: Scheduler = schedulers.create(run.config.scheduler)
        own = msgspec.structs.replace(run, scheduler=scheduler)
        partitioner, _ = make_partitioner(own, rank, belief)
        kv, _ = kv_pools(run.config, run.model, rank, trace)
        made.append(EngineParts(rank, scheduler, partitioner, kv))
    return made
