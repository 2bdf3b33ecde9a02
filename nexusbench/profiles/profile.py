"""A profile on disk: ``profile.json`` (facts and fitted models) with ``points.jsonl`` beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from nexusbench.core.documents import decode_json, read_document
from nexusbench.core.errors import InputError
from nexusbench.core.outputs import write_synced
from nexusbench.core.parts import unit_of
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.core.state import Limits
from nexusbench.profiles.points import Point

SCHEMA = 1
MOST_POINTS = 64 * 1024 * 1024  # a point takes some 300 bytes
_POINT, _DELETE = "a measured point", "Delete the line: it will be measured again"
PROFILE_FILE, POINTS_FILE, SWEEP_FILE = "profile.json", "points.jsonl", "sweep.json"
PARTITIONS_FILE = "partitions.csv"


class Fingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which device and model a profile is of; equal fingerprints make it usable.

    ``device_sha256`` covers everything that decides times: a simulated GPU's constants and tables,
    a real one's name and memory; ``environment`` (driver, versions) is reported, not compared.
    """

    device: str
    simulated: bool
    num_sms: int
    tensor_parallel: int
    device_sha256: str
    model: str
    model_sha256: str
    environment: dict[str, str] = {}


class FitScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Errors of a fitted model on held-out points of one phase (in percent of the measured time).

    ``sms`` is ``all``, or which third of the SMs: ``few``, ``half``, ``most``.
    """

    phase: str
    corunning: bool
    sms: str
    n: int
    mape: float
    p95: float
    bias: float


class FittedCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fitted cost model: enough to ask it again, and how far it was off."""

    cost_model: str
    options: dict[str, object]
    parameters: dict[str, object]
    scores: tuple[FitScore, ...]
    num_fitted: int
    num_held_out: int
    seconds: float


class DeviceAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to type to open the profiled device again, as it was typed: a fingerprint's name does
    not say where the file of a GPU lies. ``device`` is empty where that is not known.
    """

    device: str = ""
    kernel_table: str | None = None
    gpu_memory_utilization: float = 0.9
    engine: str | None = None


class OwnBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A batch that ``--batch`` asked for, in the grammar's shortest form: measured on all SMs, and
    what each fit says of it. ``held_out``: no fit saw it.
    """

    batch: str
    ns: float
    interval: float
    held_out: bool
    predicted_ns: dict[str, float]


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a sweep found. ``points_sha256`` names the measurements; it is the profile's identity.

    ``gpu`` and ``model`` are the descriptions that the fits refer to, ``splits`` the legal SM pairs
    of the device at the time, ``limits`` the step budgets within which was measured.
    """

    schema: int
    nexusbench: str
    created: str
    fingerprint: Fingerprint
    gpu: GpuSpec
    model: ModelSpec
    splits: tuple[tuple[int, int], ...]
    effort: str
    seed: int
    points_sha256: str
    num_points: int
    fits: tuple[FittedCost, ...] = ()
    facts: dict[str, object] = {}
    notes: tuple[str, ...] = ()
    counters: dict[str, str] = {}  # source -> "on", or why it was off
    asked: DeviceAsked = DeviceAsked()
    limits: Limits | None = None
    batches: tuple[OwnBatch, ...] = ()

    def __repr__(self) -> str:
        """One line, whatever was measured."""
        of = f"{self.model.name} on {self.fingerprint.device}"
        return f"Profile({of}, {self.num_points:,} points, {len(self.fits)} fits)"

    def fit_of(self, cost_model: str, options: dict[str, object]) -> FittedCost | None:
        """The fit of that model with exactly those options."""
        for fit in self.fits:
            if fit.cost_model == cost_model and fit.options == options:
                return fit
        return None


def sha256_of(value: Any) -> str:
    """Of any msgspec-encodable value, in a fixed order of keys."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def model_fingerprint(model: ModelSpec) -> str:
    """Of what decides times: everything but names and sources."""
    return sha256_of(msgspec.structs.replace(model, name="", source=""))


def profile_path(path: Path) -> Path:
    """``profile.json`` itself, whether it or its folder was named."""
    return path / PROFILE_FILE if path.is_dir() else path


def load_profile(path: Path) -> Profile:
    """The profile in a file or folder. Raises InputError for anything but a profile of our schema,
    an unfinished sweep included.
    """
    file = profile_path(path)
    if file.name in (POINTS_FILE, SWEEP_FILE):
        raise InputError(
            "belongs to a profile, but is not the profile itself", file=file,
            hint=f"Give its folder: {file.parent}",
        )  # fmt: skip
    if not file.is_file():
        hint = "Make one: nexusbench profile --device DEVICE --model MODEL -o DIR"
        if (file.parent / POINTS_FILE).is_file():
            hint = "Its sweep was not finished: repeat the same nexusbench profile, it resumes"
        raise InputError("there is no such profile", file=file, hint=hint)
    text = read_document(file)
    _check_schema(text, file)
    profile = decode_json(text, Profile, file, hint="Profile again, or restore it")
    # Its times were measured: no constant of the physics decides them.
    return msgspec.structs.replace(
        profile, gpu=msgspec.structs.replace(profile.gpu, ranges={})
    )  # fmt: skip


class _ProfileHead(msgspec.Struct):
    schema: int = 0


def _check_schema(text: bytes, file: Path) -> None:
    hint = "Profile again with the same folder: points already measured are kept"
    schema = decode_json(text, _ProfileHead, file, what="a profile", hint=hint).schema
    if schema < 1:
        raise InputError("is not a profile: it has no schema number", file=file, field="schema")
    if schema != SCHEMA:
        newer = schema > SCHEMA
        raise InputError(
            f"schema {schema}; this version of nexusbench reads {SCHEMA}", file=file,
            field="schema", hint="Upgrade nexusbench" if newer else "Profile again",
        )  # fmt: skip


def write_profile(folder: Path, profile: Profile) -> Path:
    """Write it in one step: a reader sees the old file or the new one."""
    path = folder / PROFILE_FILE
    text = msgspec.json.format(msgspec.json.encode(profile), indent=1)
    write_synced(path, text + b"\n")
    return path


def read_points(path: Path, expected_sha256: str | None = None) -> list[Point]:
    """All points of a ``points.jsonl``; a last line that a kill cut short is left out.

    Raises InputError naming the line of any other damage, or if the file is not the one that
    ``expected_sha256`` names.
    """
    if not path.is_file():
        raise InputError(
            "the measured points are not there", file=path,
            hint="They stand beside profile.json; copy both, or profile again",
        )  # fmt: skip
    data = read_document(path, most=MOST_POINTS)
    if expected_sha256 is not None and hashlib.sha256(data).hexdigest() != expected_sha256:
        raise InputError(
            "these are not the points that the profile was fitted to", file=path,
            hint="Profile again into this folder: it resumes and fits anew",
        )  # fmt: skip
    lines = data.split(b"\n")
    points = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            points.append(decode_json(line, Point, path, line=number, what=_POINT, hint=_DELETE))
        except InputError:
            if number == len(lines):
                break  # no newline after it: the process was killed while writing it
            raise
    return points


def check_fingerprint(profile: Profile, now: Fingerprint) -> list[str]:
    """How ``profile`` differs from the device and model of a run: sentences, none if it fits."""
    was, different = profile.fingerprint, []
    if was.model_sha256 != now.model_sha256:
        different.append(f"it is of the model {was.model}, this run serves {now.model}")
    if was.device != now.device or was.num_sms != now.num_sms:
        size = f"{was.num_sms} {unit_of(was.device)}"
        different.append(f"it is of {was.device} ({size}), this run uses {now.device}")
    elif was.device_sha256 != now.device_sha256:
        different.append(f"{was.device} has other constants or tables now than when it was made")
    if was.tensor_parallel != now.tensor_parallel:
        different.append(
            f"it is of {was.tensor_parallel} GPU(s), this run uses {now.tensor_parallel}"
        )
    return different


def refuse(file: Path, problems: list[str]) -> None:
    """Raise InputError for a profile of something else."""
    raise InputError(
        f"this profile does not fit the run: {'; '.join(problems)}", file=file,
        hint="Profile this device and model, or use it all the same with --force-profile",
    )  # fmt: skip
