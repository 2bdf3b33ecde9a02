"""JSON lines with Mooncake's field names: decoded at full speed, explained slowly when broken."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.registry import did_you_mean
from nexusbench.core.units import NS_PER_MS, ceil_div
from nexusbench.workloads.readers._tokens import decode_tokens
from nexusbench.workloads.source import Source

# 285 years: as nanoseconds it still fits 63 bits, and wall-clock milliseconds since 1970 are legal.
_MAX_MS = 9_000_000_000_000
# The largest context ever announced is far below; above it, 32-bit token counts overflow.
MAX_TOKENS = 2**31 - 1

Milliseconds = (
    Annotated[int, msgspec.Meta(ge=0, le=_MAX_MS)]
    | Annotated[float, msgspec.Meta(ge=0, le=_MAX_MS)]
)
Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
HashIds = tuple[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)], ...]
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
    @property
    def input_length(self) -> int: ...
    @property
    def hash_ids(self) -> tuple[int, ...]: ...


LineT = TypeVar("LineT", bound=msgspec.Struct)


def is_jsonl(text: bytes) -> bool:
    """The text starts like JSON. (A JSON array does too: its error can then say what to do.)"""
    return text.lstrip()[:1] in (b"{", b"[")


def read_lines(
    source: Source, line_type: type[LineT], rules: Mapping[str, str] = RULES
) -> tuple[list[LineT], list[int]]:
    """Decode each line that is not blank; also the 1-based numbers of these lines.

    Raises InputError for the first line that is no ``line_type``; ``rules`` says in words what each
    of its fields must be.
    """
    decode = msgspec.json.Decoder(line_type, dec_hook=decode_tokens).decode
    rows: list[LineT] = []
    numbers: list[int] = []
    for number, raw in enumerate(source.text.split(b"\n"), 1):
        try:
            rows.append(decode(raw))
        except msgspec.DecodeError as error:
            if not raw.strip():
                continue
            raise _explain(raw, error, source.path, number, line_type, rules) from None
        numbers.append(number)
    return rows, numbers


def arrival_ns(timestamp: float) -> int:
    """Milliseconds as whole nanoseconds; the whole part is exact however large it is."""
    whole = int(timestamp)
    return whole * NS_PER_MS + round((timestamp - whole) * NS_PER_MS)


def check_hash_counts(
    rows: Sequence[_Hashed], numbers: Sequence[int], block: int, path: Path
) -> None:
    """Every prompt that has hash ids has one for each block of it, the last one begun included."""
    for row, number in zip(rows, numbers, strict=True):
        have, need = len(row.hash_ids), ceil_div(row.input_length, block)
        if have and have != need:
            raise InputError(
                f"{have} ids, but {row.input_length:,} input tokens are {need} blocks of {block} "
                "(the last one begun counts)",
                file=path,
                line=number,
                field="hash_ids",
                hint="Give one id for each block, or say the block's tokens in 'hash_block'",
            )


def _explain(
    raw: bytes,
    error: msgspec.DecodeError,
    path: Path,
    number: int,
    line_type: type[msgspec.Struct],
    rules: Mapping[str, str],
) -> InputError:
    """The error of a line that could not be decoded: which field, what it should be, what to do."""

    def fault(problem: str, field: str | None = None, hint: str | None = None) -> InputError:
        return InputError(problem, file=path, line=number, field=field, hint=hint)

    one_object, remedy = "Each line must be one JSON object", "Correct or remove the line"
    try:
        # The standard library accepts NaN and Infinity, so they can be named here.
        value: Any = json.loads(raw)
    except (ValueError, RecursionError) as reason:
        if raw.lstrip()[:1] == b"[":
            return fault("a JSON array, not JSON lines", hint="Convert it: jq -c '.[]' FILE")
        if "truncated" in str(error):
            return fault(
                "the JSON object is not closed", hint=f"{one_object}; is the file cut off?"
            )
        return fault(f"not valid JSON: {reason}", hint=one_object)
    if isinstance(value, list):
        return fault("a JSON array, not JSON lines", hint="Convert it: jq -c '.[]' FILE")
    if not isinstance(value, dict):
        return fault(f"{_short(value)} is no JSON object", hint=one_object)
    fields = {field.encode_name: field for field in msgspec.structs.fields(line_type)}
    for key in value:
        if key not in fields:
            return fault("unknown field", key, did_you_mean(key, list(fields)))
    for name, field in fields.items():
        if name not in value:
            if field.required:
                return fault("missing", name, f"It must be {rules[name]}")
        elif not _valid(value[name], field.type):
            return fault(f"must be {rules[name]}, not {_short(value[name])}", name, remedy)
    return fault(str(error), hint=one_object)


def _valid(value: object, expected: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    try:
        msgspec.convert(value, expected, dec_hook=decode_tokens)
    except msgspec.ValidationError:
        return False
    return True


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
