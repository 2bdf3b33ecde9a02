"""A profile of a GPU (``nexusbench profile``) as measured partitions: steps over SMs, and batches
beside neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from nexusbench.core.batch import BatchShape, spread_of
from nexusbench.core.errors import InputError
from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.fidelity.partitions.points import (
    BESIDE,
    WORK_RATE,
    PartitionPoint,
    PartitionPoints,
    TimeOnSms,
    over_all_sms,
)
from nexusbench.experiments.fidelity.partitions.shared import (
    SIMULATED_NOTE,
    TableOfSteps,
    named,
    pair_point,
    points_of,
)
from nexusbench.experiments.fidelity.partitions.simulated import SimulatedGpu
from nexusbench.profiles.points import Point, PointSetting
from nexusbench.profiles.profile import (
    POINTS_FILE,
    Profile,
    load_profile,
    profile_path,
    read_points,
)
from nexusbench.profiles.sharing import equal_batch, sharing_rows

_NS_PER_MS = 1e6
_Pair = tuple[BatchShape, int, BatchShape, int]  # a batch and its SMs, the other and its SMs


def read_profile(path: Path, gpu: GpuSpec) -> PartitionPoints:
    """The points of a profile beside ``gpu``: what its ``partitions.csv`` says, by lines of that
    table, and what only its ``points.jsonl`` tells, by lines of that: batches of unequal sequences.

    Raises InputError for damaged files, a CPU, or more SMs than ``gpu`` has.
    """
    profile = load_profile(path)
    name, most = profile.fingerprint.device, profile.fingerprint.num_sms
    file = profile_path(path)
    if name.split(":")[0] == "cpu":
        raise InputError("is a profile of a CPU, which has no SMs", file=file)
    if most > gpu.num_sms:
        raise InputError(
            f"is of {most} SMs; {gpu.name} has {gpu.num_sms}", file=file, field="num_sms",
            hint="Give the GPU that was profiled, or one with more SMs",
        )  # fmt: skip
    points = read_points(file.parent / POINTS_FILE, profile.points_sha256)
    simulated = SimulatedGpu(gpu).cut(most)
    rows = tuple(enumerate(sharing_rows(points, most), 2))
    table = TableOfSteps(rows, profile.model, profile.fingerprint.tensor_parallel)
    made = points_of(table, simulated)
    others, notes = over_all_sms(_steps(profile, points, simulated))
    pairs, more = _pairs(profile, points, simulated)
    if most != gpu.num_sms:
        notes.append(f"simulated on {most} of the {gpu.num_sms} SMs: the profile is of so many")
    if profile.fingerprint.simulated:
        notes.append(SIMULATED_NOTE)
    return PartitionPoints(
        [*made.points, *others, *pairs],
        list(dict.fromkeys([*made.notes, *notes, *more])),
        f"{name}, simulated" if profile.fingerprint.simulated else name,
    )


def _steps(profile: Profile, points: Sequence[Point], gpu: SimulatedGpu) -> list[TimeOnSms]:
    """Unequal batches without a neighbour: steps of the profiled model."""
    found, degree = [], profile.fingerprint.tensor_parallel
    for number, point in enumerate(points, 1):
        setting = point.setting
        if setting.neighbour is not None or _in_table(setting):
            continue
        shape = msgspec.structs.replace(setting.shape, unequal=spread_of(setting.contexts))
        load = gpu.step(profile.model, degree, shape, setting.sms)
        found.append(
            TimeOnSms(
                f"{setting.phase} step", (), named(setting.shape, setting.contexts), setting.sms,
                point.ns / _NS_PER_MS, load.solo * setting.shape.repeat / _NS_PER_MS, number,
            )
        )  # fmt: skip
    return found


def _in_table(setting: PointSetting) -> bool:
    """Whether ``partitions.csv`` has a row of it: it can tell batches of equal sequences."""
    if equal_batch(setting.shape, setting.contexts) is None:
        return False
    return setting.neighbour is None or equal_batch(setting.neighbour) is not None


def _pairs(
    profile: Profile, points: Sequence[Point], gpu: SimulatedGpu
) -> tuple[list[PartitionPoint], list[str]]:
    """Slow-downs beside neighbours; and work rates, where both sides were measured beside each
    other and alone on all SMs: the sum of their speeds over those they have alone on all SMs.
    """
    most, degree = profile.fingerprint.num_sms, profile.fingerprint.tensor_parallel
    whole = {
        p.setting.shape: p.ns
        for p in points
        if p.setting.neighbour is None and p.setting.sms == most and not p.setting.contexts
    }
    beside: dict[_Pair, tuple[Point, float, int]] = {}
    made: list[PartitionPoint] = []
    for number, point in enumerate(points, 1):
        setting = point.setting
        if setting.neighbour is None or point.slowdown is None or _in_table(setting):
            continue
        side = gpu.step(profile.model, degree, setting.shape, setting.sms)
        other = gpu.step(profile.model, degree, setting.neighbour, setting.neighbour_sms)
        slowed = gpu.slowdown(side, other)
        beside[setting.shape, setting.sms, setting.neighbour, setting.neighbour_sms] = (
            point, side.solo * slowed * setting.shape.repeat, number,
        )  # fmt: skip
        kind = "split" if setting.sms + setting.neighbour_sms <= most else "streams"
        made.append(
            pair_point(
                f"neighbour {kind} {setting.phase}", (setting.shape, setting.neighbour),
                (setting.sms, setting.neighbour_sms), BESIDE, (point.slowdown, slowed), number,
            )
        )  # fmt: skip
    without = 0
    for (shape, sms, other_shape, other_sms), (point, simulated, number) in beside.items():
        back = beside.get((other_shape, other_sms, shape, sms))
        if not shape.chunks or back is None:
            continue
        if shape not in whole or other_shape not in whole:
            without += 1
            continue
        alone = [
            gpu.step(profile.model, degree, one, most).solo * one.repeat
            for one in (shape, other_shape)
        ]
        rates = (
            whole[shape] / point.ns + whole[other_shape] / back[0].ns,
            alone[0] / simulated + alone[1] / back[1],
        )
        kind = "split" if sms + other_sms <= most else "streams"
        made.append(
            pair_point(
                f"work rate {kind}", (shape, other_shape), (sms, other_sms), WORK_RATE, rates,
                number,
            )
        )  # fmt: skip
    notes = []
    if without:
        notes.append(
            f"{without} pairs have no work rate: a side was not measured on all {most} SMs"
        )
    return made, notes
