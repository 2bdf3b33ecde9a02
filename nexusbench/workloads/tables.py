"""Length tables: pairs of prompt and output tokens that were seen together, without times."""

from __future__ import annotations

import os

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.registry import did_you_mean
from nexusbench.workloads.readers._jsonl import MAX_TOKENS
from nexusbench.workloads.source import read_source

COLUMNS = ("num_prefill_tokens", "num_decode_tokens")


class LengthTable(msgspec.Struct, frozen=True):
    """``rows`` of (prompt, output) tokens; ``name`` and ``sha256`` are those of the file."""

    name: str
    sha256: str
    rows: list[tuple[int, int]]


def load_table(path: str | os.PathLike[str]) -> LengthTable:
    """Read a CSV with the columns ``num_prefill_tokens`` and ``num_decode_tokens`` (others are left
    alone), plain or gzip. Raises InputError that names file, line and column.
    """
    source = read_source(path)
    lines = source.text.decode().splitlines()
    header = [cell.strip() for cell in lines[0].split(",")]
    for column in COLUMNS:
        if column not in header:
            raise InputError(
                "missing column", file=source.path, line=1, field=column,
                hint=did_you_mean(column, header),
            )  # fmt: skip
    places = [header.index(column) for column in COLUMNS]
    rows: list[tuple[int, int]] = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cells = line.split(",")
        pair = []
        for column, place in zip(COLUMNS, places, strict=True):
            cell = cells[place].strip() if place < len(cells) else ""
            if not cell.isdecimal() or not 1 <= int(cell) <= MAX_TOKENS:
                raise InputError(
                    f"must be a whole number of tokens, 1 to {MAX_TOKENS:,}, not '{cell[:40]}'",
                    file=source.path, line=number, field=column, hint="Correct or remove the row",
                )  # fmt: skip
            pair.append(int(cell))
        rows.append((pair[0], pair[1]))
    if not rows:
        raise InputError("there are no rows", file=source.path, hint="Is the download complete?")
    return LengthTable(source.path.name, source.sha256, rows)
