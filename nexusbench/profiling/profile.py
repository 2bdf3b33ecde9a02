"""From a device and a model to a profile in a folder: sweep, facts, fits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from nexusbench import __version__
from nexusbench.core.clock import now_ns, utc_now
from nexusbench.core.errors import UsageError
from nexusbench.core.kv_layout import kv_layout
from nexusbench.core.specs import ModelSpec
from nexusbench.core.state import Limits
from nexusbench.costs.base import CostModel, Target, cost_models
from nexusbench.devices.base import Device
from nexusbench.profiles.points import Point
from nexusbench.profiles.profile import (
    POINTS_FILE,
    SCHEMA,
    DeviceAsked,
    FittedCost,
    Profile,
    read_points,
    write_profile,
)
from nexusbench.profiles.sharing import sharing_rows, write_partitions
from nexusbench.profiling.desk import BatchDesk, Pool, make_pool
from nexusbench.profiling.effort import Effort
from nexusbench.profiling.facts import derive_facts
from nexusbench.profiling.fingerprint import fingerprint_of
from nexusbench.profiling.fitting import build, fit_model
from nexusbench.profiling.measure import Measurer, Readers
from nexusbench.profiling.own_batches import measured_batches, own_batches
from nexusbench.profiling.plan import make_plan
from nexusbench.profiling.store import SWEEP_SCHEMA, Header, PointStore
from nexusbench.profiling.sweep import ProfileSweep, Progress, SweepOutcome


class Subject(msgspec.Struct, frozen=True):
    """What is profiled: an open device, the model it runs, the engine's sizes, what was asked for
    to open it, and what is to be said of the model and the device before any figure of them.
    """

    device: Device
    model: ModelSpec
    limits: Limits
    block_size: int = 16
    asked: DeviceAsked = DeviceAsked()
    caveats: tuple[str, ...] = ()

    def pool(self) -> Pool:
        """KV blocks as the engine has them."""
        spec = self.device.spec
        layout = kv_layout(self.model, spec.tensor_parallel, frees_windows=spec.frees_windows)
        return make_pool(self.device, layout.paged(self.block_size), self.limits)

    def target(self) -> Target:
        """What its cost models are about."""
        return Target(self.device.gpu, self.model, self.device.spec.tensor_parallel)


def make_profile(
    subject: Subject,
    folder: Path,
    effort: Effort,
    *,
    seed: int = 0,
    batches: Sequence[str] = (),
    readers: Readers | None = None,
    fresh: bool = False,
    progress: Callable[[Progress], None] | None = None,
    fitting: Callable[[str], None] | None = None,
) -> tuple[Profile, SweepOutcome]:
    """Sweep (or go on with the sweep that ``folder`` holds), derive, fit, write ``partitions.csv``
    and ``profile.json``.

    ``batches`` are measured too, and so are those that the folder's profile has from before;
    ``fitting`` is told the name of each cost model before it is fitted. Raises UsageError for a
    folder of something else, Interrupted on Ctrl-C.
    """
    readers = readers if readers is not None else Readers()
    device, pool = subject.device, subject.pool()
    own = own_batches(batches, None if fresh else folder)
    plan = make_plan(device.spec, pool, effort, own)
    identity = fingerprint_of(device, subject.model)
    header = Header(
        SWEEP_SCHEMA, identity, subject.limits, subject.block_size, pool.num_blocks, effort.name,
        seed,
    )  # fmt: skip
    desk = BatchDesk(device, pool.enough_for(plan.everything()))
    store = PointStore(folder, header, fresh=fresh)
    measurer = Measurer(desk, effort.sampling, readers)
    sweep = ProfileSweep(plan, measurer, store, seed, stopwatch=now_ns, progress=progress)
    outcome, path = sweep.run(), folder / POINTS_FILE
    points = read_points(path)
    splits = _splits(device)
    fits, fit_notes = fit_models(points, subject.target(), fitting)
    models = {fit.cost_model: fitted_model(fit, subject.target()) for fit in fits}
    profile = Profile(
        schema=SCHEMA,
        nexusbench=__version__,
        created=utc_now().isoformat(timespec="seconds"),
        fingerprint=identity,
        gpu=device.gpu,
        model=subject.model,
        splits=splits,
        effort=effort.name,
        seed=seed,
        points_sha256=_sha256(path),
        num_points=len(points),
        fits=tuple(fits),
        facts=msgspec.to_builtins(derive_facts(points, subject.target(), splits)),
        notes=(*subject.caveats, *outcome.notes, *fit_notes),
        counters=readers.sources,
        asked=subject.asked,
        limits=subject.limits,
        batches=measured_batches(own, points, models, device.spec.num_sms),
    )
    write_partitions(folder, identity, sharing_rows(points, identity.num_sms))
    write_profile(folder, profile)
    return profile, outcome


def _splits(device: Device) -> tuple[tuple[int, int], ...]:
    """The legal ones of two partitions: (prefill SMs, decode SMs)."""
    legal = device.spec.splits
    return tuple((split.sms[0], split.sms[1]) for split in legal if len(split.sms) == 2)


def fit_models(
    points: Sequence[Point], target: Target, fitting: Callable[[str], None] | None = None
) -> tuple[list[FittedCost], list[str]]:
    """A fit of every registered cost model that can be fitted, and why others were not."""
    fits: list[FittedCost] = []
    notes: list[str] = []
    for name in cost_models.names():
        if not fittable(name):
            continue
        if fitting is not None:
            fitting(name)
        try:
            fits.append(fit_model(name, points, target, stopwatch=now_ns))
        except UsageError as error:
            notes.append(f"cost model '{name}' was not fitted: {error}")
        except Exception as error:  # a plug-in may raise anything; the measurements must be kept
            notes.append(f"cost model '{name}' was not fitted: {type(error).__name__}: {error}")
    return fits, notes


def fittable(name: str) -> bool:
    """Whether a cost model has a fit of its own."""
    cls: type[CostModel] = cost_models.load(name)
    return getattr(cls.fit, "__func__", cls.fit) is not CostModel.fit.__func__  # type: ignore[attr-defined]


def fitted_model(fit: FittedCost, target: Target) -> CostModel:
    """The cost model of a profile's fit. Raises UsageError if it is not installed here or has
    other parameters now.
    """
    cls: type[CostModel] = cost_models.load(fit.cost_model)
    try:
        options = msgspec.convert(fit.options, cls.Options)
        parameters = msgspec.convert(fit.parameters, cls.Parameters)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"the profile's fit of cost model '{fit.cost_model}' is not one of this version: "
            f"{error}. Profile again into the same folder: it keeps the points and fits anew"
        ) from None
    return build(cls, options, parameters, target)


def target_of(profile: Profile) -> Target:
    """What the profile's fits are about."""
    return Target(profile.gpu, profile.model, profile.fingerprint.tensor_parallel)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
