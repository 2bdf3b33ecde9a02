"""Length tables: pairs of prompt and output tokens that were seen together, without times."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.workloads.ranges import MAX_TOKENS
from nexusbench.workloads.readers._csv import count_in, layout_of, rows_of
from nexusbench.workloads.source import read_source

COLUMNS = ("num_prefill_tokens", "num_decode_tokens")


class LengthTable(msgspec.Struct, frozen=True):
    """``rows`` of (prompt, output) tokens; ``name`` and ``sha256`` are those of the file."""

    name: str
    sha256: str
    rows: list[tuple[int, int]]
    path: Path


def load_table(path: str | os.PathLike[str]) -> LengthTable:
    """Read a CSV with the columns ``num_prefill_tokens`` and ``num_decode_tokens`` (others are left
    alone), plain or gzip. Raises InputError that names file, line and column.
    """
    source = read_source(path)
    layout = layout_of(source, COLUMNS)
    prompt, output = (layout.places[column] for column in COLUMNS)
    rows = [
        (
            count_in(cells[prompt], COLUMNS[0], 1, MAX_TOKENS, source, line),
            count_in(cells[output], COLUMNS[1], 1, MAX_TOKENS, source, line),
        )
        for line, cells in rows_of(source, layout)
    ]
    if not rows:
        raise InputError("there are no rows", file=source.path, hint="Is the download complete?")
    return LengthTable(source.path.name, source.sha256, rows, source.path)
