"""The ``profile`` commands: open a device, measure, show, check."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from nexusbench import __version__
from nexusbench.cli._jobs import split_policies
from nexusbench.cli._profile_screen import show_profile, show_title
from nexusbench.cli._sweep_progress import watch
from nexusbench.cli.outlet import end_with
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InputError, NexusbenchError, UsageError
from nexusbench.core.printable import folder_name, shell_words
from nexusbench.models.config import load_model
from nexusbench.profiles.points import Point
from nexusbench.profiles.profile import (
    POINTS_FILE,
    SWEEP_FILE,
    Profile,
    load_profile,
    profile_path,
    read_points,
)
from nexusbench.profiling.counting import OpenReaders
from nexusbench.profiling.effort import DEFAULT, FULL, QUICK
from nexusbench.profiling.facts import ProfileFacts, stored_facts
from nexusbench.profiling.grammar import format_batch
from nexusbench.profiling.own_batches import own_batches
from nexusbench.profiling.profile import Subject, make_profile
from nexusbench.profiling.store import read_header
from nexusbench.serving.opening import open_subject

JSON_SCHEMA = 1
PROFILES = Path("results/profiles")


class AskedProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The options of ``nexusbench profile``; ``config`` without a trace."""

    config: RunConfig
    quick: bool
    full: bool
    batches: list[str]
    counters: list[str]
    seed: int
    fresh: bool
    output: Path | None
    plots: Path | None
    as_json: bool
    quiet: bool


def run_profile(params: AskedProfile) -> None:
    """``nexusbench profile``: sweep, derive, fit, show."""
    if params.quick and params.full:
        raise UsageError("--quick and --full contradict each other. Choose one")
    effort = QUICK if params.quick else FULL if params.full else DEFAULT
    batches = [text for text, _ in own_batches(params.batches, None)]
    if params.plots is not None:
        from nexusbench.profiling.plots import require_matplotlib

        require_matplotlib()
    subject = open_subject(replace(params.config, seed=params.seed))
    name = folder_name(f"{subject.device.spec.name}-{subject.model.name}".lower())
    folder = params.output or PROFILES / name
    title = f"profile {subject.device.spec.name} {subject.model.name}"
    try:
        with (
            OpenReaders(subject.device, split_policies(params.counters, "--counters")) as opened,
            watch(title, quiet=params.quiet) as watcher,
        ):
            profile, outcome = make_profile(
                subject, folder, effort, seed=params.seed, batches=batches,
                readers=opened.readers, fresh=params.fresh, progress=watcher,
                fitting=None if watcher is None else watcher.fitting,
            )  # fmt: skip
    finally:
        subject.device.close()
    if watcher is not None:
        watcher.finished(outcome)
    drawn, fault = _draw(profile, folder, params.plots)
    facts = stored_facts(profile.facts)
    if params.as_json:
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


def load(path: Path) -> tuple[Profile, ProfileFacts]:
    """A stored profile and its facts. Raises InputError for a profile of another version."""
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
    """The points of which a profile was made."""
    return read_points(profile_path(path).parent / POINTS_FILE, profile.points_sha256)


def _draw(
    profile: Profile, folder: Path, plots: Path | None
) -> tuple[list[Path], NexusbenchError | None]:
    """The plots, or the error that prevented them: the profile is shown all the same."""
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
    command: str, profile: Profile, path: Path, drawn: Sequence[Path], **more: object
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


def check_stored(
    path: Path,
    device: str | None,
    model: str | None,
    kernel_table: str | None,
    engine: str | None,
    *,
    as_json: bool,
) -> bool:
    """``nexusbench profile check``: True if the profile still holds."""
    from nexusbench.profiling.check import check_profile

    profile, _ = load(path)
    points = load_points(profile, path)
    subject = _subject_again(profile, path, device, model, kernel_table, engine)
    named = any(one is not None for one in (device, kernel_table, engine))
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


def _subject_again(
    profile: Profile,
    path: Path,
    device: str | None,
    model: str | None,
    kernel_table: str | None,
    engine: str | None,
) -> Subject:
    """The profile's own device, model and sizes, unless others are named."""
    identity, asked = profile.fingerprint, profile.asked
    own = asked.device or identity.device.removesuffix(f"-x{identity.tensor_parallel}")
    if device is None and kernel_table is None and engine is None:
        kernel_table, engine = asked.kernel_table, asked.engine
    config = RunConfig(
        trace="",
        device=device or own,
        model=model or profile.model.name,
        kernel_table=kernel_table,
        engine=engine,
        tensor_parallel_size=identity.tensor_parallel,
        gpu_memory_utilization=asked.gpu_memory_utilization,
    )
    header = profile_path(path).parent / SWEEP_FILE
    if header.is_file():
        was = read_header(header)
        config = replace(config, **was.limits.budgets, block_size=was.block_size)
    spec = profile.model
    if model is not None:
        spec = load_model(model)
        config = replace(config, max_model_len=None)
    try:
        return open_subject(config, spec)
    except InputError as error:
        if device is not None:
            raise
        # A path is stored as typed: it may not exist from another folder or on another machine.
        raise UsageError(
            f"the device that was profiled, {own}, cannot be opened from here: {error.problem}. "
            "Say where it is now with --device"
        ) from None
