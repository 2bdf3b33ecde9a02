"""A sweep: plan what has to run, run it on cores or on a cluster, keep each cell as it ends."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

import msgspec

from nexusbench.core.config import RunConfig
from nexusbench.experiments.cells import SweepCell, failed, keep_cell, read_cell, run_cell
from nexusbench.experiments.cluster import run_on_ray
from nexusbench.experiments.keys import run_key
from nexusbench.experiments.pool import Lost, run_all
from nexusbench.experiments.store import Store
from nexusbench.experiments.sweep_spec import Sweep
from nexusbench.serving.resolve import resolve_device

# Fields that decide most of what a run takes in real time.
_COSTLY = ("trace", "scheduler", "limit", "device", "model")


class SweepPlan(msgspec.Struct):
    """The cells of a sweep by position: their keys, and those that are kept already."""

    sweep: Sweep
    keys: list[str]
    kept: dict[int, SweepCell]

    @property
    def todo(self) -> list[int]:
        """Positions that have to run."""
        return [index for index in range(len(self.keys)) if index not in self.kept]

    @property
    def simulated(self) -> bool:
        """Whether nothing of it needs a real device, of which there is one."""
        devices = {resolve_device(config.device) for config in self.sweep.configs}
        return all(device.partition(":")[0] == "sim" for device in devices)


def plan_sweep(sweep: Sweep, store: Store) -> SweepPlan:
    """Look up every cell. Raises InputError for a trace that cannot be read."""
    keys = [run_key(config) for config in sweep.configs]
    found = ((index, read_cell(store, key)) for index, key in enumerate(keys))
    return SweepPlan(sweep, keys, {index: cell for index, cell in found if cell is not None})


def estimated_seconds(plan: SweepPlan, indices: Sequence[int]) -> float | None:
    """Real seconds that cells will take on one core, from kept ones that are most like them; None
    without any.
    """
    known = [(plan.sweep.configs[i], cell.wall_s) for i, cell in plan.kept.items()]
    if not known:
        return None
    groups: dict[tuple[object, ...], float] = {}
    total = 0.0
    for index in indices:
        config = plan.sweep.configs[index]
        mine = _looks(config)
        if mine not in groups:
            likeness = [sum(a == b for a, b in zip(mine, _looks(c), strict=True)) for c, _ in known]
            best = max(likeness)
            alike = [t for (_, t), like in zip(known, likeness, strict=True) if like == best]
            groups[mine] = statistics.fmean(alike)
        total += groups[mine]
    return total


def _looks(config: RunConfig) -> tuple[object, ...]:
    return tuple(getattr(config, field) for field in _COSTLY)


def run_sweep(
    plan: SweepPlan,
    store: Store,
    *,
    jobs: int,
    ray: str | None = None,
    function: Callable[[RunConfig], SweepCell] = run_cell,
) -> Iterator[tuple[int, SweepCell]]:
    """Run what is not kept; each cell is kept before it is told. ``ray`` names a cluster."""
    todo = plan.todo
    configs = [plan.sweep.configs[index] for index in todo]
    found: Iterator[tuple[int, SweepCell | Lost]]
    if not configs:
        return
    found = run_all(function, configs, jobs) if ray is None else run_on_ray(function, configs, ray)
    for position, result in found:
        cell = failed(configs[position], result.reason) if isinstance(result, Lost) else result
        index = todo[position]
        # As asked here: a node of a cluster has the trace elsewhere.
        cell = msgspec.structs.replace(cell, config=plan.sweep.configs[index])
        keep_cell(store, plan.keys[index], cell)
        yield index, cell
