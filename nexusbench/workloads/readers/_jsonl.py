"""JSON lines with Mooncake's field names: decoded at full speed, explained slowly when broken."""

from __future__ import annotations

import io
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.registry import did_you_mean
from nexusbench.core.units import NS_PER_MS, ceil_div
from nexusbench.workloads.base import MAX_HASH_ID, MAX_TOKENS
from nexusbench.workloads.source import Source, shown

# 285 years: as nanoseconds it still fits 63 bits, and wall-clock milliseconds since 1970 are legal.
_MAX_MS = 9_000_000_000_000
_MOST_DIGITS = 400
_DIGITS = 20  # of any whole number that a field may have

Milliseconds = (
    Annotated[int, msgspec.Meta(ge=0, le=_MAX_MS)]
    | Annotated[float, msgspec.Meta(ge=0, le=_MAX_MS)]
)
Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
# Hashes of 64 bits; msgspec has no bounds beyond 63, so check_hash_counts looks at the upper one.
HashIds = tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
Duration = (
    Annotated[int, msgspec.Meta(gt=0, le=_MAX_MS)]
    | Annotated[float, msgspec.Meta(gt=0, le=_MAX_MS)]
)
Identity = Annotated[str, msgspec.Meta(min_length=1)] | int

RULES = {
    "timestamp": f"a finite number of milliseconds, 0 to {_MAX_MS:,}",
    "input_length": f"a whole number of tokens, 1 to {MAX_TOKENS:,}",
    "output_length": f"a whole number of tokens, 1 to {MAX_TOKENS:,}",
    "hash_ids": "a list of whole numbers, 0 or more, one for each block of prompt tokens",
    "hash_block": "a whole number of tokens, 1 or more",
    "token_ids": "a list of token ids, whole numbers from 0, one for each input token",
    "id": "a text that is not empty, or a whole number",
    "tenant": "a text",
    "session": "a text that is not empty",
    "turn": "a whole number, 0 for the first turn of a session",
    "think_time": "a finite number of milliseconds, 0 or more",
    "timeout": "a finite number of milliseconds above 0",
    "cancel_after": "a finite number of milliseconds above 0",
    "concurrency": "a whole number of users, 1 or more",
}


class _Hashed(Protocol):
    """A line with hash ids."""

    @property
    def input_length(self) -> int: ...
    @property
    def hash_ids(self) -> tuple[int, ...]: ...


class _Prompted(_Hashed, Protocol):
    """A line that may hold its prompt."""

    @property
    def token_ids(self) -> array[int] | None: ...


LineT = TypeVar("LineT", bound=msgspec.Struct)


def read_lines(
    source: Source, line_type: type[LineT], rules: Mapping[str, str] = RULES
) -> tuple[list[LineT], list[int]]:
    """Decode each line that is not blank; also the 1-based numbers of these lines.

    Raises InputError for the first line that is no ``line_type``, or gives a field twice; ``rules``
    describes in words what each of its fields must be.
    """
    decode = msgspec.json.Decoder(line_type, dec_hook=decode_tokens).decode
    keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
    required = sum(field.required for field in msgspec.structs.fields(line_type))
    rows: list[LineT] = []
    numbers: list[int] = []
    for number, raw in enumerate(io.BytesIO(source.text), 1):
        try:
            row = decode(raw)
            # Each field has a colon: with as many as there are different fields, none is there
            # twice. (Of two, the decoder would take the last.)
            colons = raw.count(b":")
            plain = colons == required or colons == len(keys(raw))
        except (msgspec.DecodeError, RecursionError) as error:
            if raw.isspace():
                continue
            row = _explained(raw, error, source.path, number, line_type, rules)
        else:
            if not plain:
                _explained(raw, None, source.path, number, line_type, rules)
        rows.append(row)
        numbers.append(number)
    return rows, numbers


class _Time(msgspec.Struct, gc=False):
    timestamp: Milliseconds


_decode_time = msgspec.json.Decoder(_Time).decode


def last_timestamp(piece: bytes, after: float) -> float | None:
    """The last ``timestamp`` of lines, None where one is missing, broken or earlier than the one
    before; ``after`` is the one before them all, in the unit of the file.
    """
    for raw in io.BytesIO(piece):
        try:
            now = _decode_time(raw).timestamp
        except (msgspec.DecodeError, RecursionError):
            if raw.isspace():
                continue
            return None
        if now < after:
            return None
        after = now
    return after


def arrival_ns(timestamp: float) -> int:
    """Milliseconds as whole nanoseconds; the whole part is exact however large it is."""
    whole = int(timestamp)
    return whole * NS_PER_MS + round((timestamp - whole) * NS_PER_MS)


def check_hash_counts(
    rows: Sequence[_Hashed], numbers: Sequence[int], block: int, path: Path
) -> None:
    """Every prompt that has hash ids has one for each block of it, the last one begun included, of
    at most 64 bits.
    """
    for row, number in zip(rows, numbers, strict=True):
        have, need = len(row.hash_ids), ceil_div(row.input_length, block)
        if have and max(row.hash_ids) > MAX_HASH_ID:
            raise InputError(
                f"an id of more than 64 bits, {shown(str(max(row.hash_ids)))}",
                file=path,
                line=number,
                field="hash_ids",
                hint="Number the blocks anew",
            )
        if have and have != need:
            raise InputError(
                f"{have} ids, but {row.input_length:,} input tokens are {need} blocks of {block} "
                "(the last one begun counts)",
                file=path,
                line=number,
                field="hash_ids",
                hint="Give one id for each block, or say the block's tokens in 'hash_block'",
            )


def _explained(
    raw: bytes,
    error: Exception | None,
    path: Path,
    number: int,
    line_type: type[LineT],
    rules: Mapping[str, str],
) -> LineT:
    """The row of a line that needs a second look: whole numbers written ``10.0`` or ``1e1``.

    Raises InputError for any other: which field, what it should be, what to do. ``error`` is that
    of the fast decoder, None where it may have dropped a repeated field.
    """

    def fault(problem: str, field: str | None = None, hint: str | None = None) -> InputError:
        name = None if field is None else shown(field)
        return InputError(problem, file=path, line=number, field=name, hint=hint)

    one_object, remedy = "Each line must be one JSON object", "Correct or remove the line"
    try:
        # The standard library accepts NaN and Infinity, so they can be named here.
        value: Any = json.loads(
            raw, parse_float=_number, parse_int=_integer, object_pairs_hook=_Pairs
        )
    except (ValueError, RecursionError) as reason:
        if raw.lstrip()[:1] == b"[":
            hint = "Convert it: jq -c '.[]' FILE"
            raise fault("a JSON array, not JSON lines", hint=hint) from None
        if raw.strip() == b"{":
            hint = f"{one_object}. Convert it: jq -c . FILE"
            raise fault("the JSON object goes over several lines", hint=hint) from None
        if isinstance(reason, RecursionError):
            raise fault("nested too deeply", hint=one_object) from None
        if "truncated" in str(error):
            hint = f"{one_object}; is the file cut off?"
            raise fault("the JSON object is not closed", hint=hint) from None
        raise fault(f"not valid JSON: {shown(str(reason), 80)}", hint=one_object) from None
    if isinstance(value, list):
        raise fault("a JSON array, not JSON lines", hint="Convert it: jq -c '.[]' FILE")
    if not isinstance(value, _Pairs):
        raise fault(f"{_short(value)} is no JSON object", hint=one_object)
    fields = {field.encode_name: field for field in msgspec.structs.fields(line_type)}
    given: dict[str, object] = {}
    for key, item in value.pairs:
        if key not in fields:
            raise fault("unknown field", key, did_you_mean(key, list(fields)))
        if key in given:
            raise fault("given twice", key, remedy)
        given[key] = item
    for name, field in fields.items():
        if name not in given:
            if field.required:
                raise fault("missing", name, f"It must be {rules[name]}")
        elif not _valid(given[name], field.type):
            raise fault(f"must be {rules[name]}, not {_short(given[name])}", name, remedy)
    try:
        return msgspec.convert(given, line_type, dec_hook=decode_tokens)
    except msgspec.ValidationError as reason:
        raise fault(str(reason), hint=one_object) from None


class _Pairs:
    """A JSON object with all its fields in order, repeated ones too."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def _number(text: str) -> float:
    """A JSON number with a fraction or an exponent: exactly, where it is whole."""
    try:
        number = Decimal(text)
    except InvalidOperation:  # an exponent of 19 digits or more
        return float(text)
    if number.adjusted() < _DIGITS and number == number.to_integral_value():
        return int(number)
    return float(text)


def _integer(text: str) -> float:
    """A whole number; one of thousands of digits is as good as infinite."""
    return int(text) if len(text) <= _MOST_DIGITS else math.inf


def _valid(value: object, expected: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    try:
        msgspec.convert(value, expected, dec_hook=decode_tokens)
    except (msgspec.ValidationError, TypeError):
        return False
    return True


def _short(value: object) -> str:
    """A value for a message, as JSON."""
    if isinstance(value, _Pairs):
        return "an object"
    return shown(json.dumps(value, default=lambda _: "an object"))


def decode_tokens(kind: type, value: Any) -> array[int]:
    """The hook of JSON decoders for token ids: 4 bytes each, where a list takes 36.

    Raises ValueError for what is no list of them.
    """
    if not isinstance(value, list) or any(type(token) is not int for token in value):
        raise ValueError("not a list of whole numbers")
    try:
        tokens = array("i", value)
    except OverflowError:
        raise ValueError("a token id beyond 31 bits") from None
    if tokens and min(tokens) < 0:
        raise ValueError("a negative token id")
    return tokens


def check_token_ids(
    rows: Sequence[_Prompted], numbers: Sequence[int], block: int | None, path: Path
) -> None:
    """Raise InputError unless all lines or none have token ids, one for each input token, and
    prompts agree where they have the same hash ids from the beginning on.
    """
    first = numbers[0] if numbers else 0
    for row, number in zip(rows, numbers, strict=True):
        if (row.token_ids is None) != (rows[0].token_ids is None):
            here, there = (
                ("missing", "has them") if row.token_ids is None else ("given", "has none")
            )
            hint = "Give every line its prompt's token ids, or none"
            raise _token_fault(f"{here}, but line {first} {there}", path, number, hint)
        if row.token_ids is not None and len(row.token_ids) != row.input_length:
            raise _token_fault(
                f"{len(row.token_ids):,} token ids, but input_length is {row.input_length:,}",
                path,
                number,
                "Give one id for each input token",
            )
    if block is not None and rows and rows[0].token_ids is not None:
        _check_shared(rows, numbers, block, path)


def _check_shared(
    rows: Sequence[_Prompted], numbers: Sequence[int], block: int, path: Path
) -> None:
    """A KV block is shared by hash id, so what has one id must have the same tokens."""
    names: dict[tuple[int, int], int] = {}
    seen: dict[int, tuple[array[int], int]] = {}  # name of a prefix -> its last block, its line
    for row, number in zip(rows, numbers, strict=True):
        parent = -1
        for place, hash_id in enumerate(row.hash_ids):
            parent = names.setdefault((parent, hash_id), len(names))
            assert row.token_ids is not None
            mine = row.token_ids[place * block : (place + 1) * block]
            theirs, line = seen.setdefault(parent, (mine, number))
            common = min(len(mine), len(theirs))
            if mine[:common] != theirs[:common]:
                raise _token_fault(
                    f"block {place} differs from that of line {line}, though the hash ids up to "
                    f"{hash_id} are the same",
                    path,
                    number,
                    "Prompts share what has equal hash ids: correct one of the two",
                )
            if len(mine) > len(theirs):
                seen[parent] = (mine, number)


def _token_fault(problem: str, path: Path, line: int, hint: str) -> InputError:
    return InputError(problem, file=path, line=line, field="token_ids", hint=hint)
