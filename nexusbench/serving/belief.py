"""The belief of a run, analytic or fitted to a profile, and the partitioner that asks it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from nexusbench.core.clock import now_ns
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.registry import parse_options, split_spec
from nexusbench.core.specs import ModelSpec
from nexusbench.core.units import counted
from nexusbench.costs.base import CostModel, CostModelOptions, Target, cost_models
from nexusbench.devices.base import Device
from nexusbench.partitioners.base import Partitioner, partitioners
from nexusbench.profiles.profile import (
    POINTS_FILE,
    FittedCost,
    Profile,
    check_fingerprint,
    load_profile,
    model_fingerprint,
    profile_path,
    read_points,
    refuse,
)
from nexusbench.profiling.fingerprint import fingerprint_of
from nexusbench.results.resolved import BeliefFacts, FittedProfile, budgets
from nexusbench.schedulers.base import Scheduler
from nexusbench.serving.following import Calibrated, Recalibrated
from nexusbench.serving.resolve import NamedRun

ANALYTIC, FITTED = "roofline", "nexus"  # what is asked unless a cost model is named
# (config, device, model) -> the belief and its facts for the manifest.
BeliefFactory = Callable[[RunConfig, Device, ModelSpec], tuple[CostModel, BeliefFacts]]


def default_cost_model(profile: str | None) -> str:
    """Nexus's own form where there is a profile to fit it to, else the analytic belief."""
    return ANALYTIC if profile is None else FITTED


def make_belief(
    config: RunConfig, device: Device, model: ModelSpec
) -> tuple[CostModel, BeliefFacts]:
    """The belief of ``config`` and the facts of it for the manifest.

    Raises InputError for a profile of something else, a damaged one, one that the
    device's own times were made of, or a cost model that needs a profile and has none.
    """
    spec = config.cost_model or default_cost_model(config.profile)
    target = Target(device.gpu, model, config.tensor_parallel_size)
    fitted: FittedProfile | None = None
    if config.profile is None:
        belief = _unfitted(spec, target)
    else:
        belief, fitted = _from_profile(spec, Path(config.profile), config, device, target)
    facts = BeliefFacts(
        cost_model=belief.name,
        options=msgspec.to_builtins(belief.options),
        profile=fitted,
        recalibrate=config.recalibrate,
    )
    return (Recalibrated(belief) if config.recalibrate else belief), facts


def make_partitioner(
    run: NamedRun, device: Device, make: BeliefFactory = make_belief
) -> tuple[Partitioner, BeliefFacts | None]:
    """The partitioner, and the facts of the belief that it asks (None if it asks none).

    Raises UsageError if it cannot serve on this device.
    """
    scheduler, cls = run.scheduler, run.partitioner_class
    belief: CostModel | None = None
    facts: BeliefFacts | None = None
    if run.needs_belief:
        made, facts = make(run.config, device, run.model)
        belief = share_belief(made, scheduler, cls, device.spec.num_sms)
        if belief is not made:
            facts = msgspec.structs.replace(facts, recalibrate="over SMs")
    if device.spec.num_gpus not in cls.num_gpus:
        raise UsageError(
            f"partitioner '{run.partitioner}' divides {counted(cls.num_gpus[0], 'GPU')}, "
            f"{device.spec.name} has {device.spec.num_gpus}; the default of '{scheduler.name}' is "
            f"'{scheduler.default_partitioner}'"
        )
    partitioner: Partitioner = partitioners.create(
        run.partitioner, partitions=scheduler.partitions, belief=belief
    )
    return partitioner, facts


def share_belief(
    belief: CostModel, scheduler: Scheduler, partitioner: type[Partitioner], num_sms: int
) -> CostModel:
    """What both policies ask: ``belief``, calibrated over the SMs if one of them has it so."""
    if not belief.learns and (scheduler.calibrates or partitioner.calibrates):
        belief = Calibrated(belief, num_sms)
    if scheduler.needs_belief:
        scheduler.belief = belief
    return belief


def _check_unfitted(name: str) -> None:
    if not cost_models.load(name).works_unfitted:
        raise InputError(
            f"cost model '{name}' must be fitted to a profile: make one with nexusbench profile, "
            f"then give --profile DIR. Without one use --cost-model {ANALYTIC}"
        )


def _unfitted(spec: str, target: Target) -> CostModel:
    _check_unfitted(split_spec(spec)[0])
    made: CostModel = cost_models.create(
        spec, gpu=target.gpu, model=target.model, tensor_parallel=target.tensor_parallel
    )
    return made


def _from_profile(
    spec: str, path: Path, config: RunConfig, device: Device, target: Target
) -> tuple[CostModel, FittedProfile]:
    profile, file = load_profile(path), profile_path(path)
    _check_truth(profile, file, device)
    different = check_fingerprint(profile, fingerprint_of(device, target.model))
    if different and not config.force_profile:
        refuse(file, different)
    name, given = split_spec(spec)
    cls: type[CostModel] = cost_models.load(name)
    options: CostModelOptions = parse_options(cls.Options, given, f"cost model '{name}'")
    if ignored := [key for key in given if key in cls.found_by_fit]:
        raise InputError(
            f"cost model '{name}': the fit to {file} finds {', '.join(ignored)} itself. Leave the "
            "option out, or leave --profile out"
        )
    fit = profile.fit_of(name, msgspec.to_builtins(options))
    if fit is None:
        fit = _fit_now(spec, profile, file)
    try:
        parameters = msgspec.convert(fit.parameters, cls.Parameters)
    except msgspec.ValidationError as error:
        raise InputError(
            f"{error}", file=file, field=f"fits: {name}.parameters", hint="Profile again"
        ) from None
    # Cost models that count work do so for the profile's own device, forced or not.
    own = Target(profile.gpu, profile.model, profile.fingerprint.tensor_parallel)
    used = own if different else target
    belief = cls(
        options,
        gpu=used.gpu,
        model=used.model,
        tensor_parallel=used.tensor_parallel,
        parameters=parameters,
    )
    facts = FittedProfile(
        file=str(file),
        points_sha256=profile.points_sha256,
        of=f"{profile.fingerprint.device}, {profile.fingerprint.model}",
        forced=bool(different),
        limits=budgets(profile.limits),
    )
    return belief, facts


def check_closed(config: RunConfig, model: ModelSpec) -> None:
    """What :func:`make_belief` can refuse before the device is open: a real one takes long to open
    and is asked only then what it is. Raises InputError.
    """
    name, given = split_spec(config.cost_model or default_cost_model(config.profile))
    cls: type[CostModel] = cost_models.load(name)
    parse_options(cls.Options, given, f"cost model '{name}'")
    if config.profile is None:
        _check_unfitted(name)
        return
    path = Path(config.profile)
    profile, file = load_profile(path), profile_path(path)
    was = profile.fingerprint
    if config.force_profile:
        return
    own = msgspec.structs.replace(
        was,
        model=model.name,
        model_sha256=model_fingerprint(model),
        tensor_parallel=config.tensor_parallel_size,
    )
    if different := check_fingerprint(profile, own):
        refuse(file, different)


def _check_truth(profile: Profile, file: Path, device: Device) -> None:
    """A belief is never scored against itself; --force-profile does not change that."""
    if device.made_of_profile == profile.points_sha256:
        raise InputError(
            f"{device.spec.name} takes its times from this very profile, so a belief fitted to it "
            "would be scored against itself", file=file,
            hint="Profile another device, or profile this one (nexusbench profile --device ...) "
            "and use that",
        )  # fmt: skip


def _fit_now(spec: str, profile: Profile, file: Path) -> FittedCost:
    """A model, or a reading of one, that the profile has no fit of: made from its points."""
    from nexusbench.profiling.fitting import fit_model

    points = read_points(file.parent / POINTS_FILE, profile.points_sha256)
    own = Target(profile.gpu, profile.model, profile.fingerprint.tensor_parallel)
    return fit_model(spec, points, own, stopwatch=now_ns)
