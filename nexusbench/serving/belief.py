"""From a config to the belief that a partitioner asks: analytic, or fitted to a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from nexusbench.core.clock import now_ns
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InputError
from nexusbench.core.registry import parse_options, split_spec
from nexusbench.core.specs import ModelSpec
from nexusbench.costs.base import CostModel, CostModelOptions, Target, cost_models
from nexusbench.devices.base import Device
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
from nexusbench.serving.recalibrated import Recalibrated

ANALYTIC, FITTED = "roofline", "nexus"  # what is asked unless a cost model is named


def default_cost_model(profile: str | None) -> str:
    """Nexus's own form where there is a profile to fit it to, else the analytic belief."""
    return ANALYTIC if profile is None else FITTED


def make_belief(
    config: RunConfig, device: Device, model: ModelSpec
) -> tuple[CostModel, dict[str, Any]]:
    """The belief of ``config`` and the facts of it for the manifest.

    Raises InputError for a profile of something else, a damaged one, one that the
    device's own times were made of, or a cost model that needs a profile and has none.
    """
    spec = config.cost_model or default_cost_model(config.profile)
    target = Target(device.gpu, model, config.tensor_parallel_size)
    profile_facts: dict[str, Any] | None = None
    if config.profile is None:
        belief = _unfitted(spec, target)
    else:
        belief, profile_facts = _from_profile(spec, Path(config.profile), config, device, target)
    facts = {
        "cost_model": belief.name,
        "options": msgspec.to_builtins(belief.options),
        "profile": profile_facts,
        "recalibrate": config.recalibrate,
    }
    return (Recalibrated(belief) if config.recalibrate else belief), facts


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
) -> tuple[CostModel, dict[str, Any]]:
    profile, file = load_profile(path), profile_path(path)
    _check_truth(profile, file, device)
    different = check_fingerprint(profile, file, fingerprint_of(device, target.model))
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
    facts = {
        "file": str(file),
        "points_sha256": profile.points_sha256,
        "of": f"{profile.fingerprint.device}, {profile.fingerprint.model}",
        "forced": bool(different),
        "limits": profile.limits.budgets if profile.limits else None,
    }
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
    if different := check_fingerprint(profile, file, own):
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
