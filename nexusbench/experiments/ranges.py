"""A simulated GPU with its contested constants elsewhere on their ranges: one at an end, or all of
them drawn.

A GPU file gives, beside the constants in use, ``[ranges]`` of those that measurements contest
(docs/adding-a-gpu.md). What a simulation says holds as far as it holds everywhere on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.registry import split_spec
from nexusbench.core.specs import CURVES, GpuSpec
from nexusbench.experiments.neutral import gpu_file
from nexusbench.physics.operators import stretched
from nexusbench.schedulers.base import schedulers
from nexusbench.serving.resolve import find_device
from nexusbench.workloads.source import write_atomic

# Constants that decide nothing while one batch has all SMs; any other may change every run.
BESIDE_ONLY = frozenset((
    "turn_taking", "attention_interference", "dense_interference", "stream_interference",
    "clock_gain", "wave_yield", *CURVES,
))  # fmt: skip
_DIGITS = 4  # significant ones of a drawn value: the last bits of a sampler are no result
_ONE_BATCH = ("all",)  # the partitions of a scheduler that runs one batch at a time
_HASHED = 8  # digits of a file's hash in its name


class Place(msgspec.Struct, frozen=True):
    """A place on the ranges: ``values`` of the constants that are not in use there; of a curve the
    factor.
    """

    name: str
    values: dict[str, float]

    @property
    def spares_one_batch(self) -> bool:
        """Whether a batch that has all SMs runs as with the constants in use."""
        return BESIDE_ONLY.issuperset(self.values)


def in_use(gpu: GpuSpec) -> dict[str, float]:
    """The value in use of each contested constant, by key; 1 for a curve."""
    return {key: 1.0 if key in CURVES else getattr(gpu.sim, key) for key in sorted(gpu.ranges)}


def ends(gpu: GpuSpec) -> tuple[Place, ...]:
    """Each contested constant at its low and at its high end, the others as in use. An end that is
    in use is left out: nothing is to be found there.
    """
    used = in_use(gpu)
    return tuple(
        Place(f"{key} = {value:g}", {key: value})
        for key in used
        for value in dict.fromkeys(gpu.ranges[key])
        if value != used[key]
    )


def latin_hypercube(gpu: GpuSpec, count: int, seed: int) -> tuple[Place, ...]:
    """``count`` draws of all contested constants at once: of each, one in every ``count``-th of its
    range (McKay, Beckman and Conover, Technometrics 1979).

    The same ``count`` and ``seed`` place every GPU of the same keys alike within its own ranges.
    """
    from scipy.stats.qmc import LatinHypercube

    keys = sorted(gpu.ranges)
    if not keys or not count:
        return ()
    import numpy as np

    shares = LatinHypercube(len(keys), seed=np.random.default_rng(seed)).random(count)
    places = []
    for number, row in enumerate(shares.tolist()):
        values = {}
        for key, share in zip(keys, row, strict=True):
            low, high = gpu.ranges[key]
            drawn = float(f"{low + share * (high - low):.{_DIGITS}g}")
            values[key] = min(max(drawn, low), high)
        places.append(Place(f"draw {number}", values))
    return tuple(places)


def with_constants(gpu: GpuSpec, values: Mapping[str, float]) -> GpuSpec:
    """``gpu`` with constants (keys of its ranges) at other values; a curve is stretched by its
    factor. That of streams stretches that of weights too, unless it has a range of its own: both
    are made of what one SM can draw. The GPU has no ranges: it is one place on them. Raises
    UsageError for a key without a range.
    """
    changed: dict[str, object] = {}
    for key, value in values.items():
        if key not in gpu.ranges:
            known = ", ".join(sorted(gpu.ranges)) or "none"
            raise UsageError(f"'{key}' has no range on this GPU. Those that have one: {known}")
        if key not in CURVES:
            changed[key] = value
            continue
        for curve in CURVES if key == CURVES[0] else (key,):
            if curve == key or curve not in gpu.ranges:
                changed[curve] = stretched(getattr(gpu.sim, curve), value)
    simulator = msgspec.structs.replace(gpu.sim, **changed)
    return msgspec.structs.replace(gpu, sim=simulator, ranges={})


def place_on(device: str, place: Place, folder: Path) -> str:
    """``device`` at a place of its ranges, made of a GPU file in ``folder``; a pair of GPUs stays
    one. The file's name has its content's hash: a kept run of it is one of these constants.
    """
    named = find_device(device)
    text = gpu_file(with_constants(named.describe(), place.values))
    digest = hashlib.sha256(text.encode()).hexdigest()[:_HASHED]
    one, *others = named.argument.split("+")
    path = folder / f"{Path(one).stem}-{digest}.toml"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    return f"{named.kind}:{'+'.join([str(path)] * (1 + len(others)))}"


def device_at(config: RunConfig, place: Place, folder: Path) -> str:
    """The device of a run at a place: its own where the place spares its scheduler, which runs one
    batch at a time, so that what is kept of it serves.
    """
    policy = schedulers.load(split_spec(config.scheduler)[0])
    if place.spares_one_batch and policy.partitions == _ONE_BATCH:
        return config.device
    return place_on(config.device, place, folder)


def ranged_gpu(device: str) -> GpuSpec:
    """The simulated GPU that ``device`` names, which has ranges. Raises UsageError if it has none:
    then nothing can be said about them.
    """
    named = find_device(device)
    if named.kind != "sim":
        raise UsageError(f"{device}: only a simulated GPU has constants with ranges")
    gpu = named.describe()
    if not gpu.ranges:
        raise UsageError(
            f"{device} has no [ranges]: nothing of it is contested. Add the table to its file, as "
            "in nexusbench/data/gpus, or leave the ranges away"
        )
    return gpu
