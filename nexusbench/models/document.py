"""An HF ``config.json`` as a document: found by name or path, read, every complaint located."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from copy import copy
from functools import cache
from importlib.resources import files
from pathlib import Path

from nexusbench.core.documents import KeyTwice, once
from nexusbench.core.errors import InputError
from nexusbench.core.registry import did_you_mean

_SHIPPED = "nexusbench.data"
# Far above any model; catches a slipped digit before it becomes an endless loop or an absurd pool.
_LARGEST = 10**9
_LARGEST_NUMBER = 1e18
_MOST = {
    "num_hidden_layers": 4096,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 65_536,
    "hidden_size": 10**6,
    "intermediate_size": 10**7,
    "vocab_size": 10**8,
    "num_experts": 65_536,
    "num_local_experts": 65_536,
    "n_routed_experts": 65_536,
}
_MOST_BYTES = 16 << 20  # of a file: the largest published ones have 1 MB


@cache
def model_names() -> list[str]:
    """The shipped models, sorted: what ``load_model`` accepts by name."""
    folder = files(_SHIPPED) / "models"
    return sorted(
        entry.name.removesuffix(".json")
        for entry in folder.iterdir()
        if entry.name.endswith(".json")
    )


def open_config(name_or_path: str | os.PathLike[str]) -> ConfigDocument:
    """The document of a shipped name (any case), a ``config.json``, or a folder that holds one.

    A shipped name wins over a folder of the same name; write ``./NAME`` for the folder.
    Raises InputError if there is none or it is not a JSON object.
    """
    text = os.fspath(name_or_path)
    names = model_names()
    if text.lower() in names:
        name = text.lower()
        folder = files(_SHIPPED) / "models"
        sources = tomllib.loads((folder / "sources.toml").read_text(encoding="utf-8"))
        document = (folder / f"{name}.json").read_text(encoding="utf-8")
        return ConfigDocument(document, f"{name}.json", name, str(sources.get(name, "")))
    path = Path(text)
    try:
        if path.is_dir():
            path = path / "config.json"
        found = bool(text) and path.is_file()
    except (OSError, ValueError):  # a name too long, a folder that may not be searched, a NUL
        found = False
    if not found:
        raise InputError(
            f"no shipped model, config.json or folder with one is called '{text}'",
            hint=did_you_mean(Path(text).name.lower(), names),
        )
    named = path.resolve()
    name = named.parent.name if named.name == "config.json" else named.stem
    return ConfigDocument(_read(path), str(path), name or named.stem, str(path), path.parent)


def shown(value: object) -> str:
    """A value of a document in an error: as JSON, and short."""
    try:
        text = json.dumps(value)
    except (RecursionError, ValueError):  # what json.loads reads it does not always write
        return f"a nested {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _read(path: Path) -> str:
    """The file's text. Raises InputError if it cannot be read, is too large or not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise InputError(
                f"has more than {_MOST_BYTES >> 20} MiB", file=path, hint="Give the model's config"
            )
        return data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    except UnicodeDecodeError:
        raise InputError(
            "is not text in UTF-8", file=path, hint="Give the model's config.json"
        ) from None


class ConfigDocument:
    """A parsed config.json whose every complaint names file, line and field.

    ``name`` is the model's name, ``source`` the origin of the document, ``folder`` where its
    weights may lie (None for a shipped description).
    """

    def __init__(
        self, text: str, file: str, name: str, source: str, folder: Path | None = None
    ) -> None:
        self._text, self.file = text, file
        self.name, self.source, self.folder = name, source, folder
        try:
            data = json.loads(text, object_pairs_hook=once)
        except KeyTwice as error:
            field, hint = shown(str(error)).strip('"'), "Remove the one that is wrong"
            raise InputError("is given twice", file=file, field=field, hint=hint) from None
        except json.JSONDecodeError as error:
            empty = "is empty" if not text.strip() else f"is not valid JSON: {error.msg}"
            raise InputError(
                empty, file=file, line=error.lineno, hint="Download the config.json again"
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"is not a usable JSON document: {error}", file=file, hint="Give an HF config.json"
            ) from None
        if not isinstance(data, dict):
            raise InputError(
                f"holds a JSON {type(data).__name__}, not an object",
                file=file,
                hint="Give the model's HF config.json",
            )
        self.data: dict[str, object] = data

    def error(self, field: str, problem: str, hint: str) -> InputError:
        """The complaint about ``field``, with the line it stands in if there is one."""
        key, line = f'"{field.split(".")[-1]}"', None
        for number, content in enumerate(self._text.splitlines(), start=1):
            if key in content and content.split(key, 1)[1].lstrip().startswith(":"):
                line = number
                break
        return InputError(problem, file=self.file, line=line, field=field, hint=hint)

    def count(self, field: str, default: int | None = None) -> int:
        """A positive integer; ``default`` where the field is missing or null."""
        value = self.data.get(field)
        if value is None:
            if default is not None:
                return default
            raise self.error(field, "is missing", "Give the model's complete HF config.json")
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(
                field, f"is {shown(value)}, not an integer", "Write a positive integer"
            )
        most = _MOST.get(field, _LARGEST)
        if not 0 < value <= most:
            raise self.error(field, f"is {shown(value)}", f"It must be between 1 and {most}")
        return value

    def flag(self, field: str, default: bool = False) -> bool:
        """A boolean; ``default`` where missing, False where null."""
        value = self.data.get(field, default)
        if value is not None and not isinstance(value, bool):
            raise self.error(field, f"is {shown(value)}", "Write true or false")
        return bool(value)

    def number(self, field: str, default: float, inside: dict[str, object] | None = None) -> float:
        """A positive number; ``default`` where missing or null. ``inside`` is a nested object."""
        value = (self.data if inside is None else inside).get(field.split(".")[-1])
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(field, f"is {shown(value)}, not a number", "Write a number")
        if not 0 < value <= _LARGEST_NUMBER:
            raise self.error(
                field, f"is {shown(value)}", f"It must be positive and at most {_LARGEST_NUMBER:g}"
            )
        return float(value)

    def listed(
        self, field: str, length: int, known: tuple[object, ...], longer: bool = False
    ) -> list[object] | None:
        """A list with one of ``known`` for each of ``length`` layers (with ``longer`` for further
        ones, which are left out); None where the field is missing, null or empty.
        """
        value = self.data.get(field)
        if value in (None, []):
            return None
        if not isinstance(value, list):
            raise self.error(field, f"is {shown(value)}, not a list", "Give one for each layer")
        if len(value) < length or (len(value) > length and not longer):
            hint = f"Give one for each of the {length} layers"
            raise self.error(field, f"has {len(value)} entries", hint)
        for one in value[:length]:
            if one not in known or isinstance(one, bool):
                hint = f"Supported: {', '.join(map(str, known))}"
                raise self.error(field, f"has {shown(one)}", hint)
        return value[:length]

    def size(self, field: str, default: int = 0) -> int:
        """A count that may be 0; ``default`` where missing, 0 where null."""
        if field not in self.data:
            return default
        if self.data[field] in (None, 0) and not isinstance(self.data[field], bool):
            return 0
        return self.count(field)

    def with_defaults(self, defaults: Mapping[str, object]) -> ConfigDocument:
        """The same with the values of keys that it lacks; one that is null stays null."""
        return self._copy({**defaults, **self.data})

    def replaced(self, values: Mapping[str, object]) -> ConfigDocument:
        """The same with other values of some keys."""
        return self._copy({**self.data, **values})

    def alone(self, data: dict[str, object]) -> ConfigDocument:
        """The same with that ``data``, and without the files beside it."""
        made = self._copy(data)
        made.folder = None
        return made

    def part(self, field: str, outer: Iterable[str] = ()) -> ConfigDocument:
        """The object ``field`` as a document. Of the keys ``outer`` the value beside it counts,
        where there is one.
        """
        value = self.data.get(field)
        if not isinstance(value, dict):
            problem = "is missing" if value is None else f"is {shown(value)}, not an object"
            raise self.error(field, problem, "Give the model's complete HF config.json")
        kept = {key: self.data[key] for key in outer if self.data.get(key) is not None}
        return self._copy({**value, **kept})

    def _copy(self, data: dict[str, object]) -> ConfigDocument:
        made = copy(self)
        made.data = data
        return made

    def beside(self, name: str) -> ConfigDocument | None:
        """The document ``name`` in the same folder, if there is one. Raises as this one does."""
        path = None if self.folder is None else self.folder / name
        # A dangling link is not absence: reading it is the error.
        if path is None or not os.path.lexists(path):
            return None
        return ConfigDocument(_read(path), str(path), self.name, self.source, self.folder)
