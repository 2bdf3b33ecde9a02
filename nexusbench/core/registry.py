"""Plug-in families: one file each, found by listing or entry point, imported on use."""

from __future__ import annotations

import difflib
import importlib
import math
import pkgutil
import sys
import traceback
from abc import ABC
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Generic, TypeVar, cast, get_args

import msgspec

from nexusbench.core.errors import InputError, NexusbenchError, PluginFailed, UsageError
from nexusbench.core.faults import fault_of

_SHIPPED = "nexusbench."
OptionsT = TypeVar("OptionsT", bound=msgspec.Struct, covariant=True)

# Bounds of options, for the fields of an Options struct.
AboveZero = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Percent = Annotated[float, msgspec.Meta(gt=0, lt=100)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]

# Magnitudes that options may have: products with nanoseconds stay exact enough, times fit 63 bits.
LEAST_MAGNITUDE, MOST_MAGNITUDE = 1e-6, 1e12


def did_you_mean(word: str, known: list[str]) -> str:
    """A hint sentence: the closest known word if there is one, else all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(known) if known else 'none'}"


def and_keys(unknown: Sequence[str] = (), missing: Sequence[str] = ()) -> str:
    """What is added to the message about one key where a file has several such faults."""
    text = f"; unknown too: {', '.join(unknown)}" if unknown else ""
    return text + (f"; missing too: {', '.join(missing)}" if missing else "")


def installed_plugins(group: str) -> EntryPoints:
    """The entry points of ``group``, read anew only when what is installed may have changed."""
    return _entry_points(group, tuple((place, _changed_ns(place)) for place in sys.path))


@lru_cache(maxsize=64)
def _entry_points(group: str, path: tuple[tuple[str, int | None], ...]) -> EntryPoints:
    """Entry points of what is installed on ``path``, each folder with the time of its last change.

    Reading opens a file of every distribution, and is done for each plug-in that is loaded.
    Installing or removing one changes its folder; importlib.metadata caches by that, too.
    """
    return entry_points(group=group)


def _changed_ns(place: str) -> int | None:
    try:
        return Path(place).stat().st_mtime_ns
    except OSError:
        return None


def import_plugin(target: str, kind: str) -> ModuleType:
    """The module of a plug-in. Whatever importing it raises becomes a UsageError that names it, but
    for Ctrl-C.
    """
    try:
        return importlib.import_module(target)
    except (UsageError, KeyboardInterrupt):
        raise
    except BaseException as error:
        where, colon, what = fault_of(error).partition(": ")
        raise UsageError(
            f"{where}{colon}{kind} module '{target}' cannot be imported: {what}"
        ) from error


def _target_of(value: str) -> str:
    """``module:attribute`` of an entry point, without the extras that may follow it."""
    return value.partition("[")[0].strip()


FAMILIES = (
    "schedulers", "partitioners", "costs", "devices", "metrics", "counters", "workloads.readers",
    "models.families",
)  # fmt: skip


def plugin_fault(error: BaseException) -> PluginFailed | None:
    """An exception as the fault of the plug-in that raised it; None where none did.

    The innermost frame decides that lies in a module of a family, shipped or named by an entry
    point.
    """
    known = {
        entry.value.partition(":")[0].strip(): (family, entry.name)
        for family in FAMILIES
        for entry in installed_plugins(f"nexusbench.{family}")
    }
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__"))
        package, _, name = module.rpartition(".")
        family = package.removeprefix(_SHIPPED)
        if family in FAMILIES and not name.startswith("_") and name != "base":
            known.setdefault(module, (family, name.replace("_", "-")))
        if module in known:
            family, name = known[module]
            return PluginFailed(f"'{name}' of {family} failed: {fault_of(error)}")
    return None


def overridden(hook: str, *parts: tuple[object, type[Any]]) -> list[Callable[..., None]]:
    """The method called ``hook`` of every part, given with its base class, that has one of its own:
    what a base class does by default, which is nothing, need not be called.
    """
    methods = [(getattr(part, hook), getattr(base, hook)) for part, base in parts]
    return [own for own, default in methods if getattr(own, "__func__", None) is not default]


class Policy(ABC, Generic[OptionsT]):
    """What schedulers and partitioners share: options of a type of their own, and a name.

    ``class Mine(Scheduler[MyOptions])`` has ``Mine.Options = MyOptions``, which a Registry makes
    from ``mine:key=value``, and ``self.options`` of that type.
    """

    Options: ClassVar[type[msgspec.Struct]]
    kind: ClassVar[str]  # of the family, as in "scheduler 'mine'"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for base in cls.__dict__.get("__orig_bases__", ()):
            for given in get_args(base):
                if isinstance(given, type):
                    cls.Options = given

    def __init__(self, options: OptionsT | None = None) -> None:
        """Raises InputError for values that the options do not allow."""
        self.options = options if options is not None else cast(OptionsT, self.Options())
        check_options(self.options, f"{self.kind} '{plugin_name(type(self))}'")

    @property
    def name(self) -> str:
        """The name that the user types: that of the module."""
        return plugin_name(type(self))


class Registry:
    """The plug-ins of one family, e.g. schedulers: module name = plug-in name, one class a module.

    ``package`` is the folder that is listed (modules that start with ``_`` and ``base`` are
    machinery, not plug-ins); the entry-point group has the same name. Nothing is imported before
    :meth:`load`.
    """

    def __init__(self, package: str, kind: str, base: str) -> None:
        self.package, self.kind, self._base = package, kind, base

    def _sources(self) -> dict[str, str]:
        """Plug-in name -> 'module' or 'module:attribute'. Raises UsageError on a name clash."""
        package = importlib.import_module(self.package)
        found: dict[str, str] = {}
        for module in pkgutil.iter_modules(package.__path__):
            if module.name != "base" and not module.name.startswith("_"):
                found[module.name.replace("_", "-")] = f"{self.package}.{module.name}"
        for entry in installed_plugins(self.package):
            target = _target_of(entry.value)
            if entry.name in found and found[entry.name] != target:
                raise UsageError(
                    f"two {self.kind}s are called '{entry.name}': {found[entry.name]} and "
                    f"{target}. "
                    "Rename one, or uninstall the package that brings the second"
                )
            found[entry.name] = target
        return found

    def names(self) -> list[str]:
        """All plug-in names, sorted."""
        return sorted(self._sources())

    def load(self, name: str) -> type[Any]:
        """The plug-in class called ``name``. Raises UsageError if there is none, or not exactly
        one.
        """
        sources = self._sources()
        if name not in sources:
            raise UsageError(
                f"no {self.kind} called '{name}'. {did_you_mean(name, sorted(sources))}"
            )
        target, _, attribute = sources[name].partition(":")
        module = import_plugin(target, self.kind)
        base = getattr(importlib.import_module(f"{self.package}.base"), self._base)
        if attribute:
            return self._named(module, attribute, base)
        classes = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, base) and value.__module__ == target
        ]
        if len(classes) != 1:
            raise UsageError(
                f"{module.__file__}: a {self.kind} file must define exactly one subclass of "
                f"{self._base}, found {len(classes)}"
            )
        return classes[0]

    def _named(self, module: ModuleType, attribute: str, base: type[Any]) -> type[Any]:
        """What an entry point names in its module: a subclass of ``base``."""
        found: Any = module
        for part in attribute.strip().split("."):
            found = getattr(found, part, None)
        if not (isinstance(found, type) and issubclass(found, base)):
            what = "is not there" if found is None else "is no subclass of " + self._base
            raise UsageError(
                f"{getattr(module, '__file__', module.__name__)}: {self.kind} "
                f"'{module.__name__}:{attribute}' {what}. Correct the entry point, or uninstall it"
            )
        return found

    def create(self, spec: str, **extra: Any) -> Any:
        """An instance from ``name`` or ``name:key=value,key=value``.

        The class's ``Options`` (a frozen msgspec struct that forbids unknown keys) checks the
        options. Raises InputError that names the option and what it should be.
        """
        name, options = split_spec(spec)
        cls = self.load(name)
        kind = getattr(cls, "Options", None)
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            raise UsageError(f"{self.kind} '{name}' ({cls.__name__}): Options is no msgspec struct")
        made = parse_options(kind, options, f"{self.kind} '{name}'")
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing:
            raise UsageError(f"{self.kind} '{name}' ({cls.__name__}) lacks: {', '.join(missing)}")
        try:
            return cls(options=made, **extra)
        except (NexusbenchError, KeyboardInterrupt):
            raise
        except BaseException as error:
            if cls.__module__.startswith(_SHIPPED):
                raise  # a bug of ours, with its traceback
            raise UsageError(
                f"{self.kind} '{name}' ({cls.__name__}) cannot be made: {fault_of(error)}"
            ) from error


def plugin_name(cls: type[Any]) -> str:
    """The name that the user types for a plug-in class: its module's."""
    return cls.__module__.rpartition(".")[2].replace("_", "-")


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """``name:key=value,key=value`` -> name and its options as text."""
    name, _, rest = spec.partition(":")
    options: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"option '{part}' of '{spec}' has no value; write {name}:{part}=VALUE")
        if key.strip() in options:
            raise UsageError(f"option '{key.strip()}' of '{spec}' is given twice")
        options[key.strip()] = value.strip()
    return name.strip(), options


def parse_options(options_type: type[Any], options: dict[str, str], owner: str) -> Any:
    """Text options as an ``options_type``. Raises InputError naming option, value and type."""
    kinds = {field.encode_name: field.type for field in msgspec.structs.fields(options_type)}
    known = list(kinds)
    for key in options:
        if key not in known:
            raise InputError(
                f"{owner} has no such option", field=key, hint=did_you_mean(key, known)
            )
    for key, value in options.items():
        try:
            made = msgspec.convert({key: value}, options_type, strict=False)
        except msgspec.ValidationError as error:
            reason = str(error).split(" - at")[0]
            raise InputError(
                f"{owner} cannot use '{value}': {reason}", field=key, hint=_choices(kinds[key])
            ) from None
        _check_magnitude(owner, key, getattr(made, key))
    return msgspec.convert(options, options_type, strict=False)


def check_options(options: msgspec.Struct, owner: str) -> None:
    """The checks of :func:`parse_options` for options that were made in Python: types, bounds,
    magnitudes. Raises InputError naming the option.
    """
    for key in options.__struct_fields__:
        value = getattr(options, key)
        try:
            msgspec.convert({key: value}, type(options))
        except msgspec.ValidationError as error:
            reason = str(error).split(" - at")[0]
            raise InputError(f"{owner} cannot use {value!r}: {reason}", field=key) from None
        _check_magnitude(owner, key, value)


def _check_magnitude(owner: str, key: str, value: object) -> None:
    """Refuse NaN, infinities, and magnitudes that vanish or overflow in products."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not math.isfinite(value):
        raise InputError(f"{owner} cannot use '{value}'", field=key, hint="Give a finite number")
    if value and not LEAST_MAGNITUDE <= abs(value) <= MOST_MAGNITUDE:
        raise InputError(
            f"{owner} cannot use {value:g}",
            field=key,
            hint=f"Give 0, or a magnitude from {LEAST_MAGNITUDE:g} to {MOST_MAGNITUDE:g}",
        )


def _choices(kind: Any) -> str:
    """A hint: the words of a Literal, or where to look."""
    words = getattr(kind, "__args__", ())
    if words and all(isinstance(word, str) for word in words):
        return f"Choose {' or '.join(words)}"
    return "See nexusbench list"
