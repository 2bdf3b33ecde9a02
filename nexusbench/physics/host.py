"""Hosts of serving engines: the shipped ones in ``data/engines/*.toml``, each constant with its
source, or a user's own file. ``core/host.py`` says what the constants do.

Without one (``--engine`` not given) a step waits for the GPU file's ``step_overhead_us``, and a
request for nothing.
"""

from __future__ import annotations

import os
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from nexusbench.core.documents import convert, parse_toml, read_text
from nexusbench.core.errors import InputError
from nexusbench.core.host import EngineHost
from nexusbench.core.registry import did_you_mean

_SHIPPED = "nexusbench.data"
_MOST_BYTES = 1 << 20  # of a file
_HINT = "Write it as in a shipped engine's file (nexusbench list engines)"

Text = Annotated[str, Meta(min_length=1)]


class _EngineFile(EngineHost, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file in ``data/engines``: its constants, and where each is from.

    ``since`` is the first version of the engine that runs steps in this way, before that of the
    file's name.
    """

    sources: dict[str, Text]
    since: Annotated[str, Meta(pattern=r"^\d+\.\d+$")] | None = None


def engine_names() -> list[str]:
    """The shipped engines, sorted: what ``load_engine`` accepts by name."""
    return sorted(_engine_files())


def load_engine(name_or_path: str) -> EngineHost:
    """A shipped engine by name, or a user's own TOML file. Raises InputError naming file and key,
    and UsageError's hint for a name that there is not.
    """
    return _host(_read(name_or_path))


def engine_sources(name: str) -> dict[str, str]:
    """The sources of a shipped engine's constants, by key."""
    return dict(_read(name).sources)


def engine_since(name: str) -> str:
    """The first version of its engine that a shipped file stands for, as "0.14"."""
    return _read(name).since or name.rpartition("-")[2]


def _host(file: _EngineFile) -> EngineHost:
    return EngineHost(**{key: getattr(file, key) for key in EngineHost.__struct_fields__})


def _read(name_or_path: str) -> _EngineFile:
    if name_or_path.lower().endswith(".toml"):
        path = Path(name_or_path)
        text = read_text(path, hint=_HINT, most=_MOST_BYTES)
        return _parse(text, os.fspath(path), path.stem)
    found, name = _engine_files(), name_or_path.lower()
    if name not in found:
        hint = f"{did_you_mean(name, sorted(found))} (a file of your own must end in .toml)"
        raise InputError(f"no engine called '{name_or_path}'", field="engine", hint=hint)
    return _parse(found[name].read_text(encoding="utf-8"), f"{name}.toml", name)


def _engine_files() -> dict[str, Traversable]:
    """Each shipped engine's file."""
    shipped = (files(_SHIPPED) / "engines").iterdir()
    return {
        entry.name.removesuffix(".toml"): entry for entry in shipped if entry.name.endswith(".toml")
    }


def _parse(text: str, file: str, name: str) -> _EngineFile:
    """The checked constants of one document, each with its source."""
    data = parse_toml(text, file)
    if "name" in data:
        problem = "is not a known key: an engine is called as its file is"
        raise InputError(problem, file=file, field="name", hint="Leave it out")
    read = convert({**data, "name": name}, _EngineFile, file, hint=_HINT)
    constants = [key for key in EngineHost.__struct_fields__ if key not in ("name", "about")]
    for key in constants:
        if key in data and key not in read.sources:
            problem = f"does not say where {key} is from"
            raise InputError(problem, file=file, field=f"sources.{key}", hint="Say it in quotes")
    for key in read.sources:
        if key not in constants:
            hint = did_you_mean(key, constants)
            raise InputError("is no constant", file=file, field=f"sources.{key}", hint=hint)
    return read
