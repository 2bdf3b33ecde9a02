"""How a field of a config is declared: its annotation holds the type, the bounds of a number and
the text of its option on the command line. This module reads these declarations and checks bounds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec.structs import FieldInfo
from msgspec.structs import fields as struct_fields

from nexusbench.core.errors import InputError

_Struct = TypeVar("_Struct", bound=msgspec.Struct)
_FIELD = re.compile(r" - at `(?:key` in `)?\$\.(\w+)")


class Option(msgspec.Struct, frozen=True):
    """Metadata of a field, in ``Annotated`` after its type.

    ``help``, ``metavar`` and ``panel`` are shown by the command line; ``names`` are its flags if
    they differ from the field's name, ``positional`` makes it an argument, ``unset`` says what None
    stands for. ``file``: the value is the path of a file or folder. ``no_server``: why the option
    is refused for a server behind a URL.

    ``part`` groups fields: ``load`` decides which requests arrive and when, ``serving`` how they
    are served under any policy; ``named`` fields are shown for every run, and neither these nor
    ``aside`` fields label the runs of a comparison.
    """

    help: str
    metavar: str | None = None
    panel: str | None = None
    names: tuple[str, ...] = ()
    unset: str | None = None
    part: Literal["load", "serving", "named", "aside", ""] = ""
    file: bool = False
    positional: bool = False
    no_server: str = "the server decides that for itself"


class Declared(msgspec.Struct, frozen=True):
    """A field as declared: ``kind`` is its type without None (``str`` for a Literal), ``bounds``
    those of a number, ``words`` the values of a Literal; ``required`` fields have no default.
    """

    name: str
    kind: Any
    optional: bool
    required: bool
    bounds: msgspec.Meta | None
    words: tuple[str, ...]
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return self.option.names[0] if self.option.names else f"--{self.name.replace('_', '-')}"


@cache
def declared(config: type[msgspec.Struct]) -> Mapping[str, Declared]:
    """The fields of a config that have an Option, by name, in the config's order."""
    hints = get_type_hints(config, include_extras=True)
    found = (_declared(field, hints[field.name]) for field in struct_fields(config))
    return {field.name: field for field in found if field is not None}


def _declared(field: FieldInfo, hint: Any) -> Declared | None:
    kind, extras = _apart(hint)
    option = next((extra for extra in extras if isinstance(extra, Option)), None)
    if option is None:
        return None
    optional = NoneType in get_args(kind)
    if optional:
        kind, extras = _apart(next(part for part in get_args(kind) if part is not NoneType))
    words = get_args(kind) if get_origin(kind) is Literal else ()
    return Declared(
        name=field.name, kind=str if words else kind, optional=optional, words=words,
        bounds=next((extra for extra in extras if isinstance(extra, msgspec.Meta)), None),
        required=field.required, default=None if field.required else field.default, option=option,
    )  # fmt: skip


def _apart(hint: Any) -> tuple[Any, Sequence[Any]]:
    """A type without its annotations, and these."""
    if get_origin(hint) is not Annotated:
        return hint, ()
    kind, *extras = get_args(hint)
    return kind, extras


def beyond(bounds: msgspec.Meta, value: float) -> str | None:
    """A sentence with the bounds if ``value`` is outside of them, else None."""
    least, most = bounds.ge if bounds.ge is not None else bounds.gt, bounds.le
    finite = isinstance(value, int) or math.isfinite(value)  # an int may be too large for a float
    low = least is not None and (value < least or value == bounds.gt)
    if finite and not low and (most is None or value <= most):
        return None
    if least is not None and 0 < least < 1:
        return f"It must be finite, above 0: from {least:g} to {most:g}"
    words = f"{'above' if bounds.ge is None else 'at least'} {least:g}"
    return f"It must be finite, {words}" + ("" if most is None else f" and at most {most:,.15g}")


def convert_config(values: Mapping[str, Any], config: type[_Struct]) -> _Struct:
    """A config made of ``values``, with every field of its type and within its bounds. Raises
    InputError for a number outside its bounds, msgspec.ValidationError for a value of another type.
    """
    try:
        return msgspec.convert(values, config)
    except msgspec.ValidationError as error:
        field = declared(config).get(field_of(error))
        if field is not None and field.bounds is not None:
            value = values[field.name]
            number = isinstance(value, int | float) and type(value) in (int, field.kind)
            hint = beyond(field.bounds, value) if number else None
            if hint is not None:
                raise InputError(f"is {value}", field=field.name, hint=hint) from None
        raise


def field_of(error: msgspec.ValidationError) -> str:
    """The field named by a validation error; empty if it names none."""
    found = _FIELD.search(str(error))
    return found[1] if found else ""


def is_unicode(text: str) -> bool:
    """Whether the text has no surrogates, which stand for undecodable bytes of a command line."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
