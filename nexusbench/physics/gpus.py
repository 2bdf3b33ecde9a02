"""GPU descriptions: shipped ``data/gpus/*.toml`` or a user's own; the splits a GPU allows."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from nexusbench.core.batch import Split
from nexusbench.core.bounds import Curve
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.kernel_constants import Architecture, KernelConstants
from nexusbench.core.registry import and_keys, did_you_mean, installed_plugins
from nexusbench.core.specs import (
    CURVES,
    CurveFactor,
    GpuSpec,
    SimConstants,
)
from nexusbench.physics.architectures import (
    ARCHITECTURES,
    REQUIRED,
    Filled,
    architecture_by_attention,
    fill,
    filled_caveat,
    nearest,
    unsaid_caveat,
)
from nexusbench.physics.gpu_document import GpuDocument, bounds_of, check_value, read_kernels
from nexusbench.physics.link_kinds import link_names

_LOG = logging.getLogger("nexusbench")
_SHIPPED = "nexusbench.data"
PLUGINS = "nexusbench.data.gpus"  # the entry-point group of further GPUs
_NESTED = ("sim", "ranges", "sources", "kernels")  # tables in a GPU's own
# Keys that a file may leave out.
OPTIONAL = ("link", "caveats", "attention_write_us")
_ARCHITECTURE = "architecture"  # a key of a file that stands in [kernels] of a spec
_HOW_TO_FILL = (
    f"A GPU file has {', '.join(REQUIRED)} and {_ARCHITECTURE} ({', '.join(ARCHITECTURES)}), whose "
    "defaults stand for all other keys that are left out"
)
_LEAST_BANDWIDTH = 0.001  # of all, on the smallest share of SMs in a curve
_MOST_BYTES = 1 << 20  # of a file


def gpu_names() -> list[str]:
    """The shipped and installed GPUs, sorted: what ``load_gpu`` accepts by name."""
    return sorted(_gpu_files())


def _gpu_files() -> dict[str, Traversable]:
    """Each GPU's file: shipped ones, and ``NAME.toml`` in the package that an entry point of the
    group PLUGINS called NAME gives. Raises UsageError on a name clash or a missing file.
    """
    shipped = (files(_SHIPPED) / "gpus").iterdir()
    found = {
        entry.name.removesuffix(".toml"): entry for entry in shipped if entry.name.endswith(".toml")
    }
    for plugin in installed_plugins(PLUGINS):
        if plugin.name in found:
            raise UsageError(
                f"two GPUs are called '{plugin.name}': a shipped one and that of {plugin.value}. "
                "Rename one, or uninstall the package that brings the second"
            )
        try:
            file = files(plugin.value) / f"{plugin.name}.toml"
        except (ImportError, TypeError):
            raise UsageError(
                f"GPU '{plugin.name}': '{plugin.value}' is no package that can be imported"
            ) from None
        if not file.is_file():
            raise UsageError(f"GPU '{plugin.name}': {plugin.value} has no {plugin.name}.toml")
        found[plugin.name] = file
    return found


def load_gpu(name_or_path: str | os.PathLike[str]) -> GpuSpec:
    """The GPU of a shipped name (any case) or of a path that ends in ``.toml``.

    Raises InputError naming file, line and field: unknown or missing keys, wrong types, values
    that are not finite or out of range, a bandwidth curve that does not rise from (0, 0) to (1, 1).
    """
    text = os.fspath(name_or_path)
    if text.lower().endswith(".toml"):
        return _parse(_read(Path(text)), text)
    found, name = _gpu_files(), text.lower()
    if name not in found:
        raise InputError(
            f"no GPU called '{text}'",
            hint=f"{did_you_mean(name, sorted(found))} (a file of your own must end in .toml)",
        )
    return _parse(found[name].read_text(encoding="utf-8"), f"{name}.toml")


def warned(gpu: GpuSpec) -> GpuSpec:
    """``gpu``, after its caveats were logged as warnings; the workers of a sweep leave them to the
    process that they serve.
    """
    if multiprocessing.parent_process() is None:
        for text in gpu.warnings:
            _LOG.warning("%s: %s", gpu.name, text)
    return gpu


def is_profile(argument: str) -> bool:
    """Whether a device's argument names a profile: its file, or the folder it is in. A folder that
    is called as a shipped GPU is does not hide that.
    """
    if argument.lower().endswith((".json", ".jsonl")):
        return True
    return bool(argument) and argument.lower() not in gpu_names() and Path(argument).is_dir()


def legal_splits(gpu: GpuSpec) -> tuple[Split, ...]:
    """The splits for the partitions (prefill, decode), growing prefill share.

    Prefill gets a group of the driver's granularity, decode the remainder, which need not be a
    multiple of it. Last stands the split where both may use every SM, flagged overlapping.
    """
    partitions, total = ("prefill", "decode"), gpu.num_sms
    first = -(-gpu.sm_minimum // gpu.sm_multiple) * gpu.sm_multiple
    disjoint = (
        Split(partitions, (prefill, total - prefill))
        for prefill in range(first, total - gpu.sm_minimum + 1, gpu.sm_multiple)
    )
    return (*disjoint, Split(partitions, (total, total), overlapping=True))


def _read(path: Path) -> str:
    """The file's text. Raises InputError if it cannot be read or is not UTF-8."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError("is no ordinary file", file=path, hint="Give a GPU file")
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            problem = f"has more than {_MOST_BYTES >> 20} MiB"
            raise InputError(problem, file=path, hint="Give a GPU file")
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise InputError("is not text in UTF-8", file=path, hint="Give a TOML file") from None
        raise InputError(
            f"cannot be read: {getattr(error, 'strerror', None) or error}",
            file=path,
            hint=f"Give a GPU file, or one of: {', '.join(gpu_names())}",
        ) from None


@lru_cache(maxsize=32)
def _parse(text: str, file: str) -> GpuSpec:
    """The checked spec of one document; ``file`` is what errors name. Every run opens a device, and
    reading its text again costs more than anything else in that.
    """
    document = GpuDocument(text, file)
    data = dict(document.data)
    sources: Any = data.pop("sources", {})
    sim, written = data.pop("sim", None), data.pop("ranges", {})
    built, kernels = data.pop(_ARCHITECTURE, None), data.pop("kernels", UNSET)
    kernels = read_kernels(document, kernels, built)
    family = kernels.architecture if isinstance(kernels, KernelConstants) else None
    _check_keys(document, data, sim, sources, family)
    top = _table(document, "", data, GpuSpec)
    if not isinstance(sim, dict | None):
        raise document.error("", "sim", "is not a table", "Write [sim], or leave it out")
    own = _table(document, "sim", sim or {}, SimConstants)
    for key in CURVES:
        if own.get(key):
            _check_curve(document, key, own[key])
    _check_sources(document, sources)
    made, said = _filled(top, own, family)
    constants = msgspec.convert({**made.sim, **own}, SimConstants)
    ranges = {**made.ranges, **_ranges(document, written, constants)}
    if top.get("link", UNSET) not in (UNSET, *link_names()):
        hint = did_you_mean(str(top["link"]), link_names())
        raise document.error("", "link", "is no kind of link that is known", hint)
    if said:
        top["caveats"] = (*top.get("caveats", ()), *said)
    parts = {"sim": constants, "sources": made.sources | sources, "ranges": ranges}
    gpu = msgspec.convert({**made.top, **top, **parts}, GpuSpec)
    gpu = msgspec.structs.replace(gpu, kernels=kernels)
    for key, value in (("sm_minimum", gpu.sm_minimum), ("sm_multiple", gpu.sm_multiple)):
        if value > gpu.num_sms:
            raise document.error(
                "", key, f"{value} exceeds num_sms {gpu.num_sms}", "Correct one of them"
            )
    return gpu


def _filled(
    top: dict[str, Any], sim: dict[str, Any], family: Architecture | None
) -> tuple[Filled, list[str]]:
    """What stands for the keys that a file leaves out, and what screens say of that."""
    if family is None:
        built = architecture_by_attention(str(sim["attention_kernel"]))
        kernels = load_gpu(ARCHITECTURES[built].kernels)
        return Filled({}, {}, {}, {}), [unsaid_caveat(built, kernels)]
    missing = {*_fields(GpuSpec), *_fields(SimConstants)} - {*top, *sim, *OPTIONAL}
    if not missing:
        return Filled({}, {}, {}, {}), []
    own = ARCHITECTURES[family]
    donor = nearest(map(load_gpu, own.donors), top)
    made = fill(family, donor, top, sim)
    caveat = filled_caveat(family, donor, load_gpu(own.kernels), made)
    return made, [caveat, *donor.warnings]


def _check_keys(
    document: GpuDocument,
    data: dict[str, object],
    sim: object,
    sources: object,
    family: Architecture | None,
) -> None:
    """Refuse unknown and missing keys of all tables, in one error that names every one of them.

    A file that names its architecture needs no more than a data sheet has; one with constants
    and no architecture needs all of them.
    """
    tables = {"": (data, _fields(GpuSpec)), "sim": (sim, _fields(SimConstants))}
    top = [*_fields(GpuSpec), *_NESTED, _ARCHITECTURE]
    known = [*top, *_fields(SimConstants)]
    faults: list[tuple[str, str, list[str]]] = []  # table, key and what it could have been
    missing: list[str] = []
    for name, (table, fields) in tables.items():
        if isinstance(table, dict):
            faults += [(name, key, list(fields) if name else top) for key in table
                       if key not in fields]  # fmt: skip
            if family is None and sim is not None:
                missing += [f"{name}.{key}".lstrip(".") for key in fields
                            if key not in (*table, *OPTIONAL)]  # fmt: skip
    if family is not None or sim is None:
        missing = [key for key in REQUIRED if key not in data]
        missing += [_ARCHITECTURE] * (family is None)
    if isinstance(sources, dict):
        faults += [("sources", key, known) for key in sources if key not in known]
    unknown = [f"{table}.{key}".lstrip(".") for table, key, _ in faults]
    if faults:
        table, key, meant = faults[0]
        problem = "is not a known key" + and_keys(unknown[1:], missing)
        raise document.error(table, key, problem, did_you_mean(key, meant))
    if missing:
        table, _, key = missing[0].rpartition(".")
        problem = "is missing" + and_keys(missing=missing[1:])
        raise document.error(table, key, problem, _HOW_TO_FILL)


def _fields(spec: type[msgspec.Struct]) -> dict[str, object]:
    """The keys of one table and their types."""
    return {f.name: f.type for f in msgspec.structs.fields(spec) if f.name not in _NESTED}


def _table(
    document: GpuDocument, table: str, data: dict[str, object], spec: type[msgspec.Struct]
) -> dict[str, Any]:
    """The values that one table gives, typed as ``spec``'s fields and in range."""
    values: dict[str, Any] = {}
    for key, expected in _fields(spec).items():
        if key not in data:
            continue
        try:
            values[key] = msgspec.convert(data[key], expected)
        except msgspec.ValidationError as error:
            problem = f"has the wrong type: {error}"
            raise document.error(table, key, problem, "Write it as in a shipped GPU file") from None
        check_value(document, table, key, values[key], expected)
    return values


def _check_curve(document: GpuDocument, key: str, curve: Curve) -> None:
    """A curve of bandwidth rises from (0, 0) to (1, 1); no share of SMs stands twice."""

    def refuse(problem: str) -> InputError:
        hint = "It must rise from [0, 0] to [1, 1] in both columns"
        return document.error("sim", key, problem, hint)

    for point in curve:
        if not all(math.isfinite(share) for share in point):
            raise refuse(f"holds {list(point)}, which is not finite")
    if len(curve) < 2 or curve[0] != (0, 0):
        raise refuse("does not start at [0, 0]")
    if curve[-1] != (1, 1):
        raise refuse("does not end at [1, 1]")
    if curve[1][1] < _LEAST_BANDWIDTH:
        raise refuse(f"gives {curve[1][0]:g} of the SMs {curve[1][1]:g} of the bandwidth")
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x1 <= x0 or y1 < y0:
            raise refuse(f"falls from [{x0}, {y0}] to [{x1}, {y1}]")


def _ranges(
    document: GpuDocument, table: object, constants: SimConstants
) -> dict[str, tuple[float, float]]:
    """The ranges of contested constants, checked; a file of the user's own may leave them out."""
    if not isinstance(table, dict):
        raise document.error("", "ranges", "is not a table", "Write [ranges], or leave it out")
    kinds = {key: kind for key, kind in _fields(SimConstants).items() if bounds_of(kind)}
    kinds |= {key: CurveFactor for key in CURVES if getattr(constants, key)}
    found = {}
    for key, written in table.items():
        if key not in kinds:
            hint = did_you_mean(key, list(kinds))
            raise document.error("ranges", key, "is no constant of [sim] with a range", hint)
        try:
            low, high = msgspec.convert(written, tuple[float, float])
        except msgspec.ValidationError as error:
            problem, hint = f"has the wrong type: {error}", "Write [lowest, highest]"
            raise document.error("ranges", key, problem, hint) from None
        for end in (low, high):
            check_value(document, "ranges", key, end, kinds[key])
        used = 1.0 if key in CURVES else getattr(constants, key)
        if used is msgspec.UNSET:
            raise document.error("ranges", key, "has no value in use", f"Write sim.{key}, too")
        if not low <= used <= high:
            if low > high:
                problem, hint = f"falls from {low:g} to {high:g}", "Write [lowest, highest]"
            else:
                problem = f"[{low:g}, {high:g}] leaves out the value in use, {used:g}"
                hint = "A factor of 1 is the curve in use" if key in CURVES else "Widen it"
            raise document.error("ranges", key, problem, hint)
        found[key] = (low, high)
    return found


def _check_sources(document: GpuDocument, sources: object) -> None:
    """Sources are texts; a file of the user's own may leave them out."""
    if not isinstance(sources, dict):
        raise document.error("", "sources", "is not a table", "Write [sources], or leave it out")
    for key, text in sources.items():
        if not isinstance(text, str):
            raise document.error("sources", key, "is not a text", "Name the source in quotes")
