"""A simulated device whose times are those of a profile: the points say how long a step takes where
it was measured, the physics how that changes between them.

The ratio of measured to physical time varies far less than the time, so it can be interpolated
coarsely. Where the description of the device is no GPU's, and its constants mean little, the ratios
carry all the weight. Plain arithmetic only, as in ``launches.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

from nexusbench.core.batch import BatchShape, Split
from nexusbench.core.errors import UsageError
from nexusbench.core.specs import ModelSpec
from nexusbench.core.work import chunk_work, equivalent_context
from nexusbench.physics.gpus import legal_splits
from nexusbench.physics.launches import Physics
from nexusbench.physics.operators import scaled
from nexusbench.physics.sharing import LaunchLoad
from nexusbench.profiles.points import Point, PointSetting
from nexusbench.profiles.profile import (
    POINTS_FILE,
    Profile,
    load_profile,
    model_fingerprint,
    profile_path,
    read_points,
)
from nexusbench.profiles.surface import Place, Slowdowns, Surface, between, contested, place_of

MIXED_BINS = 4  # values of how much decodes matter in a mixed batch
Key = tuple[float, float]  # (size, context)


class ProfiledLoad(LaunchLoad, frozen=True, gc=False):
    """A load with the batch that it is of: measured slowdowns are looked up by it."""

    shape: BatchShape


class ProfiledPhysics(Physics):
    """Physics whose solo times and slowdowns are stretched to those of measured points."""

    def __init__(self, profile: Profile, points: Iterable[Point]) -> None:
        super().__init__(profile.gpu, profile.model, profile.fingerprint.tensor_parallel)
        points = [p for p in points if not p.setting.held_out and not p.setting.contexts]
        self._prefill = self._surface([p for p in points if p.setting.kind == "prefill"])
        self._decode = self._surface([p for p in points if p.setting.kind == "decode"])
        self._mixed: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0, 1.0), (1.0, 1.0))
        self._mixed = self._mixed_curve([p for p in points if p.setting.kind == "mixed"])
        pairs = [p for p in points if _phases_differ(p.setting)]
        self._slowdowns = {}
        self._physical = {}  # by phase: whether the physics' slowdown says anything
        for phase in ("prefill", "decode"):
            chosen = [p for p in pairs if p.setting.phase == phase and p.slowdown is not None]
            self._physical[phase] = self._helps(chosen)
            self._slowdowns[phase] = self._pairs(chosen)

    def load(self, shape: BatchShape, sms: int) -> ProfiledLoad:
        """The physics' load of this very batch, stretched as measured near it."""
        made, ratio = super().load(shape, sms), self._ratio(shape, sms)
        return ProfiledLoad(
            made.solo * ratio,
            sms,
            scaled(made.dense, ratio),
            scaled(made.attention, ratio),
            shape,
        )

    def slowdown(self, side: LaunchLoad, other: LaunchLoad) -> float:
        """The physics' slowdown, stretched as measured near this pair; at least 1."""
        assert isinstance(side, ProfiledLoad)
        assert isinstance(other, ProfiledLoad)
        phase = "prefill" if side.shape.chunks else "decode"
        found = self._slowdowns[phase]
        if found is None:
            return super().slowdown(side, other)
        prefills, decodes = found.around(side.shape, other.shape)
        apart = together = 0.0
        for i, share in prefills:
            for j, part in decodes:
                line, weight = found.values[i][j], share * part
                apart += weight * between(found.own, line, side.sms)
                together += weight * line[-1]
        shared = side.sms + other.sms - self.gpu.num_sms
        measured = contested(apart, together, side.sms, shared)
        return max(1.0, measured * self._known(phase, side, other))

    def _known(self, phase: str, side: LaunchLoad, other: LaunchLoad) -> float:
        """What measured slowdowns are divided by: the physics' where it explains them, else 1."""
        return super().slowdown(side, other) if self._physical[phase] else 1.0

    def _helps(self, points: Iterable[Point]) -> bool:
        """Whether slowdowns vary less relative to the physics' than they do by themselves."""
        plain, relative = [], []
        for point in points:
            setting, slowdown = point.setting, point.slowdown
            assert setting.neighbour is not None
            assert slowdown is not None
            side = self.load(setting.shape, setting.sms)
            other = self.load(setting.neighbour, setting.neighbour_sms)
            plain.append(slowdown)
            relative.append(slowdown / super().slowdown(side, other))
        return not plain or spread(relative) <= spread(plain)

    def _ratio(self, shape: BatchShape, sms: int) -> float:
        """Measured over physical time alone."""
        if not shape.chunks:
            return self._decode.value(*key_of(shape), sms)
        ratio = self._prefill.value(*key_of(shape), sms)
        if shape.num_decodes:
            axis, values = self._mixed
            ratio *= between(axis, values, keys_per_token(shape))
        return ratio

    def _surface(self, points: Iterable[Point]) -> Surface:
        """Ratios over (size, context, 1/SMs), constant beyond what was measured.

        Raises UsageError if there is no point.
        """
        sums: dict[Key, dict[float, list[float]]] = {}
        for point in points:
            setting = point.setting
            solo = super().load(setting.shape, setting.sms).solo
            line = sums.setdefault(key_of(setting.shape), {})
            line.setdefault(1.0 / setting.sms, []).append(point.ns / solo)
        if not sums:
            raise UsageError(
                "this profile cannot be simulated: it has no times of prefill, or none of decode, "
                "alone. Profile again"
            )
        lines = {key: {x: mean(found) for x, found in line.items()} for key, line in sums.items()}
        inverse = axis_of([x for line in lines.values() for x in line])
        rows: dict[float, dict[float, tuple[float, ...]]] = {}
        for (size, context), known in sorted(lines.items()):
            rows.setdefault(size, {})[context] = tuple([along(known, x) for x in inverse])
        contexts = axis_of([context for row in rows.values() for context in row])
        sizes = axis_of(list(rows))
        values = []
        for size in sizes:
            row = rows.get(size, rows[sizes[0]])  # an axis of one size has a companion
            columns = [{c: line[k] for c, line in row.items()} for k in range(len(inverse))]
            values.append(
                tuple([tuple([along(column, c) for column in columns]) for c in contexts])
            )
        return Surface(sizes, contexts, inverse, tuple(values))

    def _mixed_curve(self, points: Iterable[Point]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What is left of the ratio of mixed batches, over the keys their decodes read per token of
        the batch.
        """
        found = []
        for point in points:
            shape, sms = point.setting.shape, point.setting.sms
            if shape.chunks and shape.num_decodes:
                found.append((keys_per_token(shape), point.ns / self.load(shape, sms).solo))
        if not found:
            return self._mixed
        found.sort()
        size = max(1, len(found) // MIXED_BINS)
        curve: dict[float, float] = {}
        for start in range(0, len(found), size):
            part = found[start : start + size]
            curve[mean([x for x, _ in part])] = mean([ratio for _, ratio in part])
        axis = axis_of(list(curve))
        return axis, tuple([along(curve, x) for x in axis])

    def _pairs(self, points: Iterable[Point]) -> Slowdowns | None:
        """Measured over physical slowdown of one phase, on a full grid; holes are filled with their
        nearest neighbour in steps of the grid. None if there are no pairs.
        """
        apart: dict[Place, dict[float, float]] = {}
        together: dict[Place, float] = {}
        for point in points:
            setting, slowdown = point.setting, point.slowdown
            if setting.neighbour is None or slowdown is None:
                continue
            side = self.load(setting.shape, setting.sms)
            other = self.load(setting.neighbour, setting.neighbour_sms)
            ratio = slowdown / self._known(setting.phase, side, other)
            place = place_of(setting.shape, setting.neighbour)
            if setting.sms + setting.neighbour_sms > self.gpu.num_sms:
                together[place] = ratio
            else:
                apart.setdefault(place, {})[float(setting.sms)] = ratio
        if not apart:
            return None
        own = axis_of([sms for line in apart.values() for sms in line])
        usual = mean(list(together.values())) if together else None
        lines = {}
        for place, line in sorted(apart.items()):
            values = [along(line, sms) for sms in own]
            shared = together.get(place, usual)
            lines[place] = (*values, values[-1] if shared is None else shared)
        return full_grid(lines, own)


def _phases_differ(setting: PointSetting) -> bool:
    """Whether it is a prefill beside decodes, on SMs of their own or on all."""
    beside = setting.neighbour
    return beside is not None and bool(setting.shape.chunks) != bool(beside.chunks)


def full_grid(lines: Mapping[Place, tuple[float, ...]], own: tuple[float, ...]) -> Slowdowns:
    """Lines at some places as lines at every place of a grid."""
    axes = [axis_of([place[k] for place in lines]) for k in range(4)]
    steps = {
        tuple([axis.index(x) for axis, x in zip(axes, place, strict=True)]): line
        for place, line in lines.items()
    }
    values = []
    for first in product(*[range(len(axis)) for axis in axes[:2]]):
        row = []
        for second in product(*[range(len(axis)) for axis in axes[2:]]):
            node = (*first, *second)
            near = min(steps, key=lambda at: (distance(at, node), at))
            row.append(steps[near])
        values.append(tuple(row))
    return Slowdowns((axes[0], axes[1]), (axes[2], axes[3]), own, tuple(values))


def distance(one: Iterable[int], other: Iterable[int]) -> int:
    """Steps between two nodes of a grid."""
    steps = 0
    for a, b in zip(one, other, strict=True):
        steps += abs(a - b)
    return steps


def key_of(shape: BatchShape) -> Key:
    """(tokens, context) of the one chunk with as many tokens and pairs; a decode beside chunks is
    one token more. (batch, mean context) without chunks.
    """
    if not shape.chunks:
        return float(shape.num_decodes), shape.decode_context / shape.num_decodes
    tokens, pairs = chunk_work(shape.chunks)
    tokens += shape.num_decodes
    return float(tokens), equivalent_context(tokens, pairs)


def keys_per_token(shape: BatchShape) -> float:
    """Keys that the decodes of a mixed batch read, per token of the batch."""
    return shape.decode_context / shape.num_tokens


def mean(values: Iterable[float]) -> float:
    """The mean, not by ``sum``, which rounds otherwise from Python 3.12 on (I6)."""
    total, count = 0.0, 0
    for value in values:
        total += value
        count += 1
    return total / count


def spread(values: Sequence[float]) -> float:
    """Mean distance from the mean, as a share of it."""
    middle = mean(values)
    return mean([abs(value / middle - 1.0) for value in values])


def axis_of(values: Iterable[float]) -> tuple[float, ...]:
    """The distinct values, ascending; a single one gets a companion, as axes need two."""
    axis = sorted(set(values))
    return tuple(axis) if len(axis) > 1 else (axis[0], axis[0] + 1.0)


def along(known: Mapping[float, float], x: float) -> float:
    """A value between known ones, and that of the nearer end beyond them."""
    axis = axis_of(known)
    return between(axis, [known.get(at, known[axis[0]]) for at in axis], x)


class Truth:
    """A profile as a device: its physics and the splits that its device allowed."""

    def __init__(self, path: Path, model: ModelSpec, tensor_parallel: int) -> None:
        """Raises UsageError if the profile is of another model or number of GPUs, InputError if it
        or its points cannot be read.
        """
        profile, path = load_profile(path), profile_path(path)
        was = profile.fingerprint
        if was.model_sha256 != model_fingerprint(model):
            raise UsageError(
                f"{path}: this profile is of the model {was.model}; it cannot tell the times of "
                f"{model.name}. Serve {was.model}, or profile {model.name}"
            )
        if was.tensor_parallel != tensor_parallel:
            raise UsageError(
                f"{path}: this profile is of {was.tensor_parallel} GPU(s), not of "
                f"{tensor_parallel}. Give --tensor-parallel-size {was.tensor_parallel}"
            )
        self.gpu, self.name = profile.gpu, f"profile({was.device})"
        self.sha256 = profile.points_sha256
        points = read_points(path.parent / POINTS_FILE, profile.points_sha256)
        self.physics = ProfiledPhysics(profile, points)
        self.splits = tuple(
            Split(("prefill", "decode"), pair, overlapping=pair[0] + pair[1] > profile.gpu.num_sms)
            for pair in profile.splits
        ) or legal_splits(profile.gpu)
