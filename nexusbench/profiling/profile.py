"""From a device and a model to a profile in a folder: sweep, facts, fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from nexusbench import __version__
from nexusbench.core.errors import UsageError
from nexusbench.core.specs import ModelSpec
from nexusbench.core.state import Limits
from nexusbench.costs._fit import fit_model
from nexusbench.costs._points import Point
from nexusbench.costs._profile import (
    POINTS_FILE,
    SCHEMA,
    Fit,
    Profile,
    read_points,
    write_profile,
)
from nexusbench.costs.base import CostModel, Target, cost_models
from nexusbench.devices._stopwatch import stopwatch_ns, utc_now
from nexusbench.devices.base import Device
from nexusbench.profiling._desk import Desk, Pool, Work, make_pool
from nexusbench.profiling.effort import Effort
from nexusbench.profiling.facts import derive_facts
from nexusbench.profiling.fingerprint import fingerprint
from nexusbench.profiling.measure import Measurer, Readers
from nexusbench.profiling.plan import make_plan
from nexusbench.profiling.store import SWEEP_SCHEMA, Header, PointStore
from nexusbench.profiling.sweep import Outcome, Progress, Sweep


class Subject(msgspec.Struct, frozen=True):
    """What is profiled: an open device, the model it runs, and the engine's sizes."""

    device: Device
    model: ModelSpec
    limits: Limits
    block_size: int = 16

    def pool(self) -> Pool:
        """KV blocks as the engine has them."""
        return make_pool(self.device, self.model.kv_bytes_per_token, self.limits, self.block_size)

    def target(self) -> Target:
        """What its cost models are about."""
        return Target(self.device.gpu, self.model, self.device.spec.tensor_parallel)


def make_profile(
    subject: Subject,
    folder: Path,
    effort: Effort,
    *,
    seed: int = 0,
    batches: Sequence[tuple[str, Work]] = (),
    readers: Readers | None = None,
    fresh: bool = False,
    progress: Callable[[Progress], None] | None = None,
    fitting: Callable[[str], None] | None = None,
) -> tuple[Profile, Outcome]:
    """Sweep (or go on with the sweep that ``folder`` holds), derive, fit, write ``profile.json``.

    ``fitting`` is told the name of each cost model before it is fitted. Raises UsageError for a
    folder of something else, Interrupted on Ctrl-C.
    """
    readers = readers if readers is not None else Readers()
    device, pool = subject.device, subject.pool()
    plan = make_plan(device.spec, pool, effort, batches)
    identity = fingerprint(device, subject.model)
    header = Header(
        SWEEP_SCHEMA, identity, subject.limits, subject.block_size, pool.num_blocks, effort.name,
        seed,
    )  # fmt: skip
    measurer = Measurer(Desk(device, pool), effort.sampling, readers)
    store = PointStore(folder, header, fresh=fresh)
    sweep = Sweep(plan, measurer, store, seed, stopwatch=stopwatch_ns, progress=progress)
    outcome = sweep.run()
    path = folder / POINTS_FILE
    points = read_points(path)
    fits, fit_notes = fit_models(points, subject.target(), fitting)
    profile = Profile(
        schema=SCHEMA,
        nexusbench=__version__,
        created=utc_now().isoformat(timespec="seconds"),
        fingerprint=identity,
        gpu=device.gpu,
        model=subject.model,
        splits=tuple(
            (split.sms[0], split.sms[1]) for split in device.spec.splits if len(split.sms) == 2
        ),
        effort=effort.name,
        seed=seed,
        points_sha256=_sha256(path),
        num_points=len(points),
        fits=tuple(fits),
        facts=derive_facts(points, subject.target()),
        notes=(*outcome.notes, *fit_notes),
        counters=readers.sources,
    )
    write_profile(folder, profile)
    return profile, outcome


def fit_models(
    points: Sequence[Point], target: Target, fitting: Callable[[str], None] | None = None
) -> tuple[list[Fit], list[str]]:
    """A fit of every registered cost model that can be fitted, and why others were not."""
    fits: list[Fit] = []
    notes: list[str] = []
    for name in cost_models.names():
        if not fittable(name):
            continue
        if fitting is not None:
            fitting(name)
        try:
            fits.append(fit_model(name, points, target, stopwatch=stopwatch_ns))
        except UsageError as error:
            notes.append(f"cost model '{name}' was not fitted: {error}")
        except Exception as error:  # a plug-in may raise anything; the measurements must be kept
            notes.append(f"cost model '{name}' was not fitted: {type(error).__name__}: {error}")
    return fits, notes


def fittable(name: str) -> bool:
    """Whether a cost model has a fit of its own."""
    cls: type[CostModel] = cost_models.load(name)
    return getattr(cls.fit, "__func__", cls.fit) is not CostModel.fit.__func__  # type: ignore[attr-defined]


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
