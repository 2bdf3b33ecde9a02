"""The ``profile`` commands behind their flags: open, measure, show, check."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from nexusbench import __version__
from nexusbench.cli._profile_screen import show_profile, show_title
from nexusbench.cli._sweep_progress import watch
from nexusbench.cli.outlet import end_with
from nexusbench.core.config import RunConfig, check_config
from nexusbench.core.errors import InputError, NexusbenchError, UsageError
from nexusbench.core.printable import folder_name, shell_words
from nexusbench.core.specs import ModelSpec
from nexusbench.models.config import load_model
from nexusbench.profiles.points import Point
from nexusbench.profiles.profile import (
    POINTS_FILE,
    SWEEP_FILE,
    DeviceAsked,
    Profile,
    load_profile,
    profile_path,
    read_points,
)
from nexusbench.profiling.counting import OpenReaders
from nexusbench.profiling.effort import DEFAULT, FULL, QUICK
from nexusbench.profiling.facts import Facts, stored_facts
from nexusbench.profiling.grammar import format_batch
from nexusbench.profiling.own_batches import own_batches
from nexusbench.profiling.profile import Subject, make_profile
from nexusbench.profiling.store import read_header
from nexusbench.serving.assembly import check_tensor_parallel, open_device, resolve_device
from nexusbench.serving.tokens import with_dtype

JSON_SCHEMA = 1
PROFILES = Path("results/profiles")


def open_subject(params: Mapping[str, Any], model: ModelSpec | None = None) -> Subject:
    """The device and model of the flags (or that model). Raises UsageError for what cannot be."""
    names = set(RunConfig.__struct_fields__) & set(params)
    config = check_config(RunConfig(trace="", **{name: params[name] for name in names}))
    if model is None:
        model = with_dtype(load_model(config.model), config.dtype)
    length = config.max_model_len or model.max_model_len
    if length > model.max_model_len:
        raise UsageError(
            f"--max-model-len {length}: the context of {model.name} has {model.max_model_len:,} "
            "tokens. Give at most that many, or leave it out"
        )
    check_tensor_parallel(config.tensor_parallel_size, model)
    device, limits = open_device(config, model, length, profiling=True)
    asked = DeviceAsked(
        resolve_device(config.device), config.kernel_table, config.gpu_memory_utilization
    )
    return Subject(device, model, limits, config.block_size, asked)


def run_profile(params: Mapping[str, Any]) -> None:
    """``nexusbench profile``: sweep, derive, fit, show."""
    if params["quick"] and params["full"]:
        raise UsageError("--quick and --full contradict each other. Choose one")
    effort = QUICK if params["quick"] else FULL if params["full"] else DEFAULT
    batches = [text for text, _ in own_batches(params["batch"] or [], None)]
    if params["plots"] is not None:
        from nexusbench.profiling.plots import require_matplotlib

        require_matplotlib()
    subject = open_subject(params)
    name = folder_name(f"{subject.device.spec.name}-{subject.model.name}".lower())
    folder = params["output"] or PROFILES / name
    title = f"profile {subject.device.spec.name} {subject.model.name}"
    try:
        with (
            OpenReaders(subject.device, _names(params["counters"])) as opened,
            watch(title, quiet=params["no_progress"]) as watcher,
        ):
            profile, outcome = make_profile(
                subject, folder, effort, seed=params["seed"], batches=batches,
                readers=opened.readers, fresh=params["fresh"], progress=watcher,
                fitting=None if watcher is None else watcher.fitting,
            )  # fmt: skip
    finally:
        subject.device.close()
    if watcher is not None:
        watcher.finished(outcome)
    drawn, fault = _draw(profile, folder, params["plots"])
    facts = stored_facts(profile.facts)
    if params["json"]:
        print(_document("profile", profile, folder, drawn, outcome=outcome))
        end_with(fault)
        return
    console = show_title("nexusbench profile", profile, str(folder))
    show_profile(console, profile, facts, ranges=False)
    console.print()
    for path in drawn:
        console.print(f"drawn {path}", soft_wrap=True)
    console.print(f"next  {shell_words('nexusbench', 'profile', 'show', folder)}", soft_wrap=True)
    console.print(f"next  {shell_words('nexusbench', 'profile', 'check', folder)}", soft_wrap=True)
    end_with(fault)


def _names(values: list[str] | None) -> list[str]:
    """``process,nvml`` in any number of values."""
    from nexusbench.cli._policies import split_policies

    return split_policies(values or [], "--counters")


def show_stored(path: Path, *, as_json: bool, plots: Path | None) -> None:
    """``nexusbench profile show``."""
    profile, facts = load(path)
    drawn, fault = _draw(profile, profile_path(path).parent, plots)
    if as_json:
        print(_document("profile show", profile, path, drawn))
        end_with(fault)
        return
    console = show_title("nexusbench profile show", profile, str(path))
    show_profile(console, profile, facts, ranges=True)
    for file in drawn:
        console.print(f"drawn {file}", soft_wrap=True)
    end_with(fault)


def load(path: Path) -> tuple[Profile, Facts]:
    """A stored profile and its facts. Raises InputError for what is none of this version."""
    profile = load_profile(path)
    try:
        return profile, stored_facts(profile.facts)
    except msgspec.ValidationError as error:
        problem, _, at = str(error).partition(" - at ")
        raise InputError(
            problem, file=profile_path(path), field="facts" + at.strip("`").removeprefix("$"),
            hint="Profile again into the same folder: it keeps the points",
        ) from None  # fmt: skip


def load_points(profile: Profile, path: Path) -> list[Point]:
    """The points that a profile was made of."""
    return read_points(profile_path(path).parent / POINTS_FILE, profile.points_sha256)


def _draw(
    profile: Profile, folder: Path, plots: Path | None
) -> tuple[list[Path], NexusbenchError | None]:
    """The plots, or what went wrong with them: the profile is shown all the same."""
    if plots is None:
        return [], None
    from nexusbench.profiling.plots import draw

    try:
        return draw(profile, load_points(profile, folder), plots), None
    except UsageError:
        raise
    except NexusbenchError as error:
        return [], error


def _document(
    command: str, profile: Profile, path: Path, drawn: Sequence[Path], **more: Any
) -> str:
    document = {
        "schema": JSON_SCHEMA,
        "command": command,
        "nexusbench": __version__,
        "simulated": profile.fingerprint.simulated,
        "path": str(path),
        "plots": [str(file) for file in drawn],
        "batches": profile.batches,
        "profile": profile,
        **more,
    }
    return json.dumps(msgspec.to_builtins(document), indent=2, allow_nan=False)


def check_stored(path: Path, params: Mapping[str, Any], *, as_json: bool) -> bool:
    """``nexusbench profile check``: whether the profile still holds."""
    from nexusbench.profiling.check import check_profile

    profile, _ = load(path)
    points = load_points(profile, path)
    subject = _subject_again(profile, path, params)
    named = params["device"] is not None or params["kernel_table"] is not None
    try:
        made = check_profile(profile, points, subject, named=named)
    finally:
        subject.device.close()
    rows = [
        {"batch": format_batch(again.point.setting.shape, again.point.setting.contexts),
         "setting": again.point.setting, "then_ns": again.point.ns, "now_ns": again.now_ns,
         "change": again.change, "agrees": again.agrees}
        for again in made.points
    ]  # fmt: skip
    if as_json:
        print(
            _document(
                "profile check", profile, path, [], fine=made.fine, points=rows, fits=made.fits,
                notes=made.notes,
            )
        )  # fmt: skip
        return made.fine
    from nexusbench.cli._profile_check import show_check

    show_check(show_title("nexusbench profile check", profile, str(path)), made)
    return made.fine


def _subject_again(profile: Profile, path: Path, params: Mapping[str, Any]) -> Subject:
    """The profile's own device, model and sizes, unless flags name others."""
    identity, asked = profile.fingerprint, profile.asked
    own = asked.device or identity.device.removesuffix(f"-x{identity.tensor_parallel}")
    flags: dict[str, Any] = {
        "device": params["device"] or own,
        "kernel_table": params["kernel_table"],
        "tensor_parallel_size": identity.tensor_parallel,
        "gpu_memory_utilization": asked.gpu_memory_utilization,
    }
    if params["device"] is None and flags["kernel_table"] is None:
        flags["kernel_table"] = asked.kernel_table
    header = profile_path(path).parent / SWEEP_FILE
    if header.is_file():
        was = read_header(header)
        flags |= {**was.limits.budgets, "block_size": was.block_size}
    model = profile.model
    if params["model"] is not None:
        model = load_model(params["model"])
        flags["max_model_len"] = None
    try:
        return open_subject(flags, model)
    except InputError as error:
        if params["device"] is not None:
            raise
        # A path is as it was typed: from another folder, or on another machine, it leads nowhere.
        raise UsageError(
            f"the device that was profiled, {own}, cannot be opened from here: {error.problem}. "
            "Say where it is now with --device"
        ) from None
