"""Prompts in a trace: as many tokens as it says, and equal where its hash ids say they are."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from nexusbench.core.errors import InputError


class _Line(Protocol):
    @property
    def input_length(self) -> int: ...
    @property
    def hash_ids(self) -> tuple[int, ...]: ...
    @property
    def token_ids(self) -> array[int] | None: ...


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
    rows: Sequence[_Line], numbers: Sequence[int], block: int | None, path: Path
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
            raise _fault(f"{here}, but line {first} {there}", path, number, hint)
        if row.token_ids is not None and len(row.token_ids) != row.input_length:
            raise _fault(
                f"{len(row.token_ids):,} token ids, but input_length is {row.input_length:,}",
                path,
                number,
                "Give one id for each input token",
            )
    if block is not None and rows and rows[0].token_ids is not None:
        _check_shared(rows, numbers, block, path)


def _check_shared(rows: Sequence[_Line], numbers: Sequence[int], block: int, path: Path) -> None:
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
                raise _fault(
                    f"block {place} differs from that of line {line}, though the hash ids up to "
                    f"{hash_id} are the same",
                    path,
                    number,
                    "Prompts share what has equal hash ids: correct one of the two",
                )
            if len(mine) > len(theirs):
                seen[parent] = (mine, number)


def _fault(problem: str, path: Path, line: int, hint: str) -> InputError:
    return InputError(problem, file=path, line=line, field="token_ids", hint=hint)
