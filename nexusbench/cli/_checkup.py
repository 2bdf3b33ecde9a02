"""The checks of ``doctor``, one line each; only the checks of the core decide the exit code."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

from nexusbench import __version__
from nexusbench.cli._console import results_console, say
from nexusbench.cli._session import JSON_SCHEMA
from nexusbench.core.errors import NexusbenchError
from nexusbench.core.faults import fault_of
from nexusbench.core.units import GIB

_REQUIRED = ("msgspec", "numpy", "psutil", "pyarrow", "rich", "scipy", "typer")
_OPTIONAL = (
    "torch", "safetensors", "transformers", "triton", "nvidia-ml-py", "cuda-bindings",
    "cupti-python", "httptools", "jinja2", "plotly", "matplotlib", "ray", "aiconfigurator-core",
)  # fmt: skip
_MOST_NAMED = 12
_PROBE = b'{"timestamp": 0, "input_length": 64, "output_length": 4}\n'


class Diagnosis(msgspec.Struct, frozen=True):
    """One line: ``ok``, ``note`` (a limitation) or ``broken`` (the core does not work)."""

    check: str
    state: Literal["ok", "note", "broken"]
    text: str


def check_up(results: Path, *, as_json: bool, speed: bool) -> bool:
    """Print all lines; False if the core is broken. ``speed`` also measures the CPU's limits."""
    findings = [
        *_machine(), *_packages(), *_plugins(), *_devices(), *_counters(),
        *(_speed() if speed else ()),
        _results_folder(results), _probe(),
    ]  # fmt: skip
    fine = all(finding.state != "broken" for finding in findings)
    verdict = "The core works." if fine else "The core is broken."
    _show(findings, fine, verdict, as_json=as_json)
    return fine


def check_device(name: str, *, as_json: bool) -> bool:
    """Print what a device reports on this machine; whether it can be opened. Raises UsageError if
    it does not exist.
    """
    from nexusbench.serving.resolve import find_device

    named = find_device(name)
    lacks = named.device_class.lacks(named.argument)
    if lacks:
        findings = [Diagnosis(named.kind, "broken", text) for text in lacks]
        verdict = f"--device {name} cannot be used here. To simulate a GPU: --device sim:h200"
    else:
        checks = named.device_class.check_up(named.argument)
        findings = [Diagnosis(c.name, "ok" if c.ok else "note", c.text) for c in checks]
        verdict = f"--device {name} can be used here."
    _show(findings, not lacks, verdict, as_json=as_json)
    return not lacks


def _show(findings: list[Diagnosis], fine: bool, verdict: str, *, as_json: bool) -> None:
    if as_json:
        document = {
            "schema": JSON_SCHEMA,
            "command": "doctor",
            "ok": fine,
            "findings": msgspec.to_builtins(findings),
        }
        print(json.dumps(document, indent=2))
        return
    console = results_console()
    styles = {"ok": "green", "note": "yellow", "broken": "bold red"}
    for finding in findings:
        line = f"{finding.state:<7} {finding.check:<15} {finding.text}"
        say(console, line, styles[finding.state], 24)
    say(console, verdict, "bold")


def _machine() -> Iterator[Diagnosis]:
    version = platform.python_version()
    yield Diagnosis("nexusbench", "ok", __version__)
    yield Diagnosis("python", "ok", f"{version} ({platform.python_implementation()})")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{platform.platform()}, {usable} CPU cores usable"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
        text += f", {memory:.1f} GiB of memory"
    yield Diagnosis("machine", "ok", text)


def _packages() -> Iterator[Diagnosis]:
    for name in _REQUIRED:
        version = _version(name)
        if version is None:
            yield Diagnosis(name, "broken", f"not installed; pip install {name}")
        else:
            yield Diagnosis(name, "ok", version)
    found = {name: _version(name) for name in _OPTIONAL}
    have = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    missing = ", ".join(name for name, version in found.items() if not version)
    text = have or "none installed; simulated devices need none"
    yield Diagnosis("optional", "ok", f"{text}; not installed: {missing}" if missing else text)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _plugins() -> Iterator[Diagnosis]:
    """Checks that every plug-in loads and that no two share a name."""
    from nexusbench.cli._catalogue import PLUGIN_FAMILIES

    for family, entries_of in PLUGIN_FAMILIES.items():
        try:
            entries = entries_of()
        except NexusbenchError as error:
            yield Diagnosis(family, "broken", str(error))
            continue
        broken = [entry for entry in entries if entry.error]
        for entry in broken:
            yield Diagnosis(family, "broken", f"{entry.name}: {entry.error}")
        if not broken:
            names = ", ".join(entry.name for entry in entries)
            long = len(entries) > _MOST_NAMED
            yield Diagnosis(family, "ok", f"{len(entries)} found" if long else names)


def _devices() -> Iterator[Diagnosis]:
    """Which devices can be opened here, and what the others need."""
    from nexusbench.devices.base import devices
    from nexusbench.serving.resolve import resolve_device

    for name in devices.names():
        try:
            cls = devices.load(name)
            usable = cls.usable()
            lacks = "" if usable else "; ".join(cls.lacks(""))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plug-in may raise anything
            yield Diagnosis(f"device {name}", "note", f"does not load: {_why(error)}")
            continue
        if usable:
            note = "always there; every result is labelled simulated" if name == "sim" else "usable"
            yield Diagnosis(f"device {name}", "ok", note)
        else:
            lacks = lacks or "see the device's documentation"
            yield Diagnosis(f"device {name}", "note", f"not usable: {lacks}")
    yield Diagnosis("device auto", "ok", f"means {resolve_device('auto')} here")


def _why(error: BaseException) -> str:
    return str(error) if isinstance(error, NexusbenchError) else fault_of(error)


def _counters() -> Iterator[Diagnosis]:
    """Which counters can be read here, and why the others cannot. No run needs one."""
    from nexusbench.counters.base import counters, why

    for name in counters.names():
        check = f"counter {name}"
        try:
            with counters.create(name) as source:
                support = source.probe()
                missing = dict(source.reasons)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            text = why(error) if isinstance(error, Exception) else fault_of(error)
            yield Diagnosis(check, "note", f"does not load: {text}")
            continue
        if not support.ok:
            yield Diagnosis(check, "note", f"off: {support.reason}")
            continue
        yield Diagnosis(check, "ok", f"usable{f' ({support.reason})' if support.reason else ''}")
        for reason in dict.fromkeys(missing.values()):
            without = ", ".join(metric for metric in missing if missing[metric] == reason)
            yield Diagnosis(check, "note", f"without {without}: {reason}")


def _speed() -> Iterator[Diagnosis]:
    """The limits to which MFU and MBU of CPU runs refer; none without torch."""
    if not (_version("torch") and _version("safetensors")):
        return
    try:
        from nexusbench.kernels.limits import gemm_gflops, stream_gbps

        rates = ", ".join(f"{gemm_gflops(name):,.0f} ({name})" for name in ("bfloat16", "float32"))
        text = f"reads memory at {stream_gbps():.1f} GB/s, GEMM GFLOP/s: {rates}; all usable cores"
    except Exception as error:
        yield Diagnosis("CPU speed", "note", f"could not be measured: {error}")
        return
    yield Diagnosis("CPU speed", "ok", text)


def _results_folder(results: Path) -> Diagnosis:
    """Whether runs can be stored there; the folder is not created by the check."""
    existing = results
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return Diagnosis("results", "note", f"{existing} is no folder: choose another --results")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Diagnosis("results", "note", f"{existing} cannot be written to: {error.strerror}")
    free = shutil.disk_usage(existing).free / GIB
    return Diagnosis("results", "ok", f"{results} can be written to, {free:,.1f} GiB free")


def _probe() -> Diagnosis:
    """Serve one request on a simulated GPU, from trace to summary."""
    from nexusbench.core.config import RunConfig
    from nexusbench.serving.runner import run

    try:
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "probe.jsonl"
            trace.write_bytes(_PROBE)
            result = run(RunConfig(trace=str(trace), device="sim:l20"), results=Path(folder))
            finished = result.summary.value("finished")
    except Exception as error:
        return Diagnosis("engine", "broken", f"{type(error).__name__}: {error}")
    if finished != 1:
        return Diagnosis("engine", "broken", "the test request did not finish")
    return Diagnosis("engine", "ok", "served a test request on sim:l20, invariants checked")
