"""Files that hold one document, JSON or TOML: read within a bound, and every fault located.

Every error of this module is an InputError (or the subclass asked for) that names the file,
and the line or the key path: a file that is missing, a folder, too large, no UTF-8, cut short,
nested too deeply, of another shape.
"""

from __future__ import annotations

import math
import re
import stat
import tomllib
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.printable import one_line

# Larger than any document of ours; decoded without a type it takes some thirty times its size.
MOST_BYTES = 16 * 2**20
MOST_TEXT = 128 * 2**20
MOST_TOML = 2**20
MOST_DEPTH = 32
_CORRECT = "Correct the file"
_NO_FILE = "is a pipe or a device, no ordinary file"
_LONGEST = 200  # characters of what a parser says, which may quote the file
_MARK = b"\xef\xbb\xbf"  # of byte order
_PART = r"""(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
# It begins where a key can: from every letter of a long text, time would go by its square.
_LONG_KEY = re.compile(rf"(?<![\w\\-])(?:{_PART}){{{MOST_DEPTH}}}")
_MISSING = re.compile(r"Object missing required field `(.+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.+)`")

JsonObject = dict[str, Any]  # as a file holds it, or as it is printed

T = TypeVar("T")


class ReadByKey(msgspec.Struct, frozen=True):
    """A struct whose fields are read by key too, as those of the object that it is stored as: code
    that was written for the objects of schema 1 goes on reading runs.
    """

    def __getitem__(self, key: str) -> Any:
        """The field ``key``. Raises KeyError if there is none."""
        if key not in self.__struct_fields__:
            raise KeyError(key)
        return getattr(self, key)

    def keys(self) -> tuple[str, ...]:
        """The names of the fields."""
        return self.__struct_fields__


class KeyTwice(Exception):
    """A key that an object has twice."""


def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object for ``json.loads(object_pairs_hook=)``, each of whose keys stands once: of two
    values the last would count unsaid. Raises KeyTwice with the first key that stands twice.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise KeyTwice(key)
            seen.add(key)
    return made


def read_document(
    file: Path, *, hint: str = "", most: int = MOST_BYTES, error: type[InputError] = InputError
) -> bytes:
    """The bytes of a file of at most ``most`` bytes. Raises ``error`` naming it."""
    try:
        require_file(file, error=error)
        with file.open("rb") as opened:
            data = opened.read(most + 1)
    except (OSError, ValueError) as fault:  # ValueError: a name with a NUL in it
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"cannot be read: {reason}", file=file, hint=hint) from None
    if len(data) > most:
        size = f"{most / 2**20:g} MiB" if most >= 2**20 else f"{most:,} bytes"
        raise error(f"is larger than {size}", file=file, hint="Give another file")
    return data


def require_file(file: Path, *, error: type[InputError] = InputError) -> None:
    """Raise ``error`` for a pipe or a device, which can be waited for without end. Files that are
    missing and folders are left to ``open``.
    """
    with suppress(OSError):
        kind = file.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise error(_NO_FILE, file=file, hint="Save what it gives to a file first")


def read_text(
    file: Path, *, hint: str = "", most: int = MOST_BYTES, error: type[InputError] = InputError
) -> str:
    """The text of a UTF-8 file, without its byte order mark. Raises ``error`` naming it."""
    return _text(read_document(file, hint=hint, most=most, error=error), file, hint, error)


def read_table_text(file: Path, *, hint: str, most: int = MOST_TEXT) -> str:
    """The text of a file of many rows, gunzipped if its name ends in ``.gz``; at most ``most``
    bytes of it, however few they are packed into. Raises InputError naming it.
    """
    data = read_document(file, hint=hint, most=most)
    if file.suffix == ".gz":
        unpacker = zlib.decompressobj(wbits=31)
        try:
            data = unpacker.decompress(data, most + 1)
        except zlib.error as fault:
            raise InputError(f"cannot be read: {fault}", file=file, hint=hint) from None
        if len(data) > most:
            problem = f"unpacks to more than {most / 2**20:g} MiB"
            raise InputError(problem, file=file, hint="Give another file")
        if not unpacker.eof:
            problem = "cannot be read: it ends before the end of its packed data"
            raise InputError(problem, file=file, hint=hint)
    return _text(data, file, hint, InputError)


def _text(data: bytes, file: Path, hint: str, error: type[InputError]) -> str:
    data = data.removeprefix(_MARK)
    try:
        return data.decode()
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        problem = f"is not UTF-8: byte 0x{data[fault.start]:02x}"
        raise error(problem, file=file, line=line, hint=hint or _CORRECT) from None


def decode_json(
    data: bytes | str,
    kind: type[T],
    file: object,
    *,
    what: str = "",
    line: int | None = None,
    hint: str = _CORRECT,
    error: type[InputError] = InputError,
) -> T:
    """JSON as ``kind``; ``what`` says what the file ought to be. Raises ``error`` that names the
    file, and the key path of a value of another type.
    """
    begin = f"not {what}: " if what else ""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as fault:
        field, problem = located(fault)
        raise error(f"{begin}{problem}", file=file, line=line, field=field, hint=hint) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise error(f"{begin}not valid JSON: {fault}", file=file, line=line, hint=hint) from None
    except RecursionError:
        problem = f"{begin}it is nested too deeply"
        raise error(problem, file=file, line=line, hint=hint) from None


def parse_toml(
    text: str, file: object, *, hint: str = "Correct the line", values: bool = True
) -> dict[str, object]:
    """A TOML document of finite numbers; not ``values``: whose numbers the caller looks at. Raises
    InputError that names file, and line or key path: no TOML, too large, nested too deeply, a
    number that is infinite or beyond 64 bits.
    """
    if len(text) > MOST_TOML:
        raise InputError(f"is longer than {MOST_TOML:,} characters", file=file, hint=_CORRECT)
    if found := _LONG_KEY.search(text):  # the reader takes time by the square of a key's parts
        line = text.count("\n", 0, found.start()) + 1
        problem = f"has a key of more than {MOST_DEPTH} parts"
        raise InputError(problem, file=file, line=line, hint=hint)
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise InputError("is nested too deeply", file=file, hint=_CORRECT) from None
    except ValueError as fault:  # TOMLDecodeError, and integers that Python refuses to read
        words = one_line(fault)
        place = re.search(r"\(at (?:line (\d+), .*|end of document)\)$", words)
        number = None if place is None else int(place[1] or text.rstrip().count("\n") + 1)
        problem = f"not valid TOML: {words[:_LONGEST]}"
        raise InputError(problem, file=file, line=number, hint=hint) from None
    if values:
        _check_values(document, file)
    return document


def _check_values(document: dict[str, object], file: object) -> None:
    """No number that arithmetic or JSON would not survive, no depth that a printer would not."""
    left: list[tuple[str, int, object]] = [("", 0, document)]
    while left:
        at, depth, value = left.pop()
        if depth > MOST_DEPTH:
            raise InputError("is nested too deeply", file=file, field=at[:60], hint=_CORRECT)
        if isinstance(value, dict):
            begin = at + "." if at else ""
            left += [(f"{begin}{key}", depth + 1, inner) for key, inner in value.items()]
        elif isinstance(value, list):
            left += [(f"{at}[{place}]", depth + 1, inner) for place, inner in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"is {value}", file=file, field=at, hint="Give a finite number")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InputError("is beyond 64 bits", file=file, field=at, hint="Give a smaller number")


def convert(
    value: Any,
    kind: type[T],
    file: object,
    *,
    at: str = "",
    what: str = "",
    hint: str = _CORRECT,
    error: type[InputError] = InputError,
) -> T:
    """``value``, which stands at key path ``at`` of a document, as ``kind``. Raises ``error`` that
    names file and key path.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as fault:
        field, problem = located(fault, at)
        begin = f"not {what}: " if what else ""
        raise error(f"{begin}{problem}", file=file, field=field, hint=hint) from None
    except RecursionError:
        raise error("is nested too deeply", file=file, field=at or None, hint=hint) from None


def located(fault: msgspec.ValidationError, at: str = "") -> tuple[str | None, str]:
    """Key path and problem of what msgspec says; ``at`` is where the value itself stands."""
    problem, _, place = str(fault).partition(" - at ")
    # The path of a key that is wrong itself is "`key` in `$.x`".
    place = place.replace("`", "").removeprefix("key in ")
    path = place[1:].lstrip(".") if place.startswith("$") else place
    parts = [at, path]
    for pattern, words in ((_MISSING, "is missing"), (_UNKNOWN, "is not a key that is known here")):
        found = pattern.fullmatch(problem)
        if found:
            parts.append(found[1])
            problem = words
    joined = ".".join(filter(None, parts)).replace(".[", "[")
    return joined or None, problem
