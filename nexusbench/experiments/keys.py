"""When are two runs the same? A key from everything that decides a run: config, files, code."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

import nexusbench
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InputError
from nexusbench.core.options import declared
from nexusbench.core.registry import installed_plugins
from nexusbench.serving.resolve import resolve_device

# What shows, sweeps or checks runs, and decides none.
_NOT_DECIDING = ("cli", "experiments", "report", "gates", "testing", "__main__.py")
_KEY_LENGTH = 32
# Beyond this a file in a folder (weights) counts by name and size alone.
_WHOLE_FILE = 16 * 2**20


@cache
def code_version() -> str:
    """SHA-256 (hex) of the code that runs are made by: this package's, and every plug-in's.

    Contents, not a version number or a commit, so that an edited policy is never served old
    results.
    """
    digest = hashlib.sha256()
    root = Path(nexusbench.__file__).parent
    for path in _sources(root):
        name = path.relative_to(root)
        if name.parts[0] not in _NOT_DECIDING:
            digest.update(f"{name.as_posix()}\0{file_sha256(path)}\n".encode())
    # Groups of plug-ins are called as the packages that they belong to.
    for init in sorted(root.rglob("__init__.py")):
        group = ".".join((root.name, *init.parent.relative_to(root).parts))
        for entry in sorted(installed_plugins(group), key=lambda entry: entry.name):
            digest.update(f"{group}\0{entry.name}\0{entry.value}\n".encode())
            for path in _plugin_sources(entry.value.partition(":")[0].partition(".")[0]):
                digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _sources(root: Path) -> list[Path]:
    files = (path for path in root.rglob("*") if path.is_file())
    return sorted(path for path in files if path.suffix not in (".pyc", ".tmp"))


def _plugin_sources(package: str) -> list[Path]:
    """Files of a top-level package or module, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return []
    if found.submodule_search_locations is None:
        return [Path(found.origin)]
    return [file for folder in found.submodule_search_locations for file in _sources(Path(folder))]


def run_key(config: RunConfig) -> str:
    """The key of ``config``'s run. Files count by content, wherever they lie; a device that is not
    simulated counts with the machine.

    Raises InputError for a trace that cannot be read, UsageError for a device that there is not.
    """
    fields: dict[str, object] = msgspec.to_builtins(config)
    for name, field in declared(RunConfig).items():
        # A model may be one; a device names one after "sim:".
        path = getattr(config, name)
        if (field.option.file or name == "model") and path is not None:
            fields[name] = _content(path, must=name == "trace")
    kind, _, argument = resolve_device(config.device).partition(":")
    machine = () if kind == "sim" else (platform.node(),)
    fields["device"] = [kind, _content(argument, must=False), *machine]
    fields["code"] = code_version()
    encoded = msgspec.json.encode(fields, order="sorted")
    return hashlib.sha256(encoded).hexdigest()[:_KEY_LENGTH]


def _content(text: str, *, must: bool) -> str:
    """The content's hash if ``text`` names a file or a folder, else the text."""
    path = Path(text)
    if path.is_dir():
        return _folder_sha256(str(path.resolve()))
    if path.is_file() or must:
        return file_sha256(path)
    return text


@cache
def _folder_sha256(folder: str) -> str:
    digest = hashlib.sha256()
    for path in _sources(Path(folder)):
        size = path.stat().st_size
        inside = file_sha256(path) if size <= _WHOLE_FILE else str(size)
        digest.update(f"{path.relative_to(folder).as_posix()}\0{inside}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes. Raises InputError if it cannot be read, or is a pipe or a
    device, which may never end.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError("this is no file", file=path, hint="Save its content to a file first")
        return _file_sha256(str(path.resolve()), found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror or error}", file=path, hint="Check the path"
        ) from None


@cache
def _file_sha256(path: str, modified_ns: int, size: int) -> str:
    """Remembered for as long as the file looks unchanged: a sweep asks once per cell."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for piece in _pieces(file):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(file: Any) -> Iterator[bytes]:
    while piece := file.read(1 << 20):
        yield piece
