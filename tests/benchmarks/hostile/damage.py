"""What can be wrong with a file: each damage is a name and what is done to the bytes."""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

DELETE = object()
CONTROL = "\x1b[2J\x1b]0;x\x07\u202e\x9b31m"
_ODD: tuple[Any, ...] = (
    DELETE, None, True, 0, -1, 1, 1.5, 1e308, -1e-300, 2**63, 2**70, 10**40, "", "x", CONTROL,
    "../../etc/passwd", "a" * 5000, [], [[]], {}, {"x": 1}, [None],
)  # fmt: skip
_LITERALS = (
    "", "0", "-1", "nan", "inf", "-inf", "1e400", "9" * 30, "'x'", '"x"', "[]", "{}", "true",
    "[[[[]]]]", '"\\u001b[2J"', "1979-05-27", "0x10", '"' + "a" * 5000 + '"', "[" * 3000,
    "[1, 'x', 2.5]", "'''", "9" * 5000,
)  # fmt: skip
_CELLS = (
    "", "0", "-1", "1.5", "1e308", "1e-300", "nan", "inf", "9" * 30, "x", CONTROL, '"', "1,2",
    " 7 ", "1_000", "٣", "0x10", "a" * 5000, "\0",
)  # fmt: skip


class Damage(NamedTuple):
    """``whole``: nothing of the file is left to read, so that it must be refused."""

    name: str
    spoil: Callable[[Path], None]
    whole: bool = False


def _write(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: _replace(path, change(path.read_bytes()))


def _replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def _instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.unlink()
        make(path)

    return spoil


def of_bytes() -> list[Damage]:
    """What can happen to any file."""
    junk = random.Random(7).randbytes(4096)
    deep = 100_000
    return [
        Damage("empty", _write(lambda data: b""), True),
        Damage("blank", _write(lambda data: b" \n\n"), True),
        Damage("cut in half", _write(lambda data: data[: len(data) // 2])),
        Damage("last byte lost", _write(lambda data: data[:-1])),
        Damage("first byte lost", _write(lambda data: data[1:])),
        Damage("junk", _write(lambda data: junk), True),
        Damage("zeros", _write(lambda data: bytes(4096)), True),
        Damage("not UTF-8", _write(lambda data: data[:40] + b"\xff\xfe\xe9" + data[40:])),
        Damage("UTF-16", _write(lambda data: data.decode("latin-1").encode("utf-16")), True),
        Damage("byte order mark", _write(lambda data: b"\xef\xbb\xbf" + data)),
        Damage("CRLF", _write(lambda data: data.replace(b"\n", b"\r\n"))),
        Damage("twice", _write(lambda data: data + data)),
        Damage("controls", _write(lambda data: data[:30] + CONTROL.encode() + data[30:])),
        Damage("brackets", _write(lambda data: b"[" * deep), True),
        Damage("braces", _write(lambda data: b'{"a":' * deep), True),
        Damage("null", _write(lambda data: b"null"), True),
        Damage("a list", _write(lambda data: b"[]"), True),
        Damage("a number", _write(lambda data: b"7"), True),
        Damage("NaN", _write(lambda data: b"NaN"), True),
        Damage("long line", _write(lambda data: b"x" * 3_000_000), True),
        Damage("dotted key", _write(lambda data: b".".join([b"a"] * 200_000) + b" = 1\n"), True),
        Damage("gzip of zeros", _write(lambda data: _bomb())),
        Damage("a folder", _instead(lambda path: path.mkdir()), True),
        Damage("missing", lambda path: path.unlink(), True),
        Damage("a loop of links", _instead(lambda path: path.symlink_to(path.name)), True),
        Damage("endless", _instead(lambda path: path.symlink_to("/dev/zero")), True),
        Damage("a pipe", _instead(lambda path: os.mkfifo(path)), True),
        Damage("nothing", _instead(lambda path: path.symlink_to("/dev/null")), True),
        Damage("unreadable", lambda path: path.chmod(0)),
    ]  # fmt: skip


@cache
def _bomb() -> bytes:
    return gzip.compress(bytes(300_000_000), compresslevel=1, mtime=0)


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*at, key))
    elif isinstance(value, list):
        for place, inner in list(enumerate(value))[:2]:
            yield from _paths(inner, (*at, place))


def of_json(text: bytes, draw: random.Random, count: int) -> list[Damage]:
    """Keys removed, of another type, or too many; numbers that no arithmetic likes. For a file of
    lines, in one of them.
    """
    lines = text.splitlines()
    many = (
        len(lines) > 1 and lines[0].lstrip().startswith(b"{") and lines[0].rstrip().endswith(b"}")
    )
    document = json.loads(lines[0] if many else text)
    paths = list(_paths(document))
    made = []
    for number in range(count):
        # Every key once with a removal, then any with anything.
        path = paths[number % len(paths)]
        odd = DELETE if number < len(paths) else draw.choice(_ODD)
        changed = copy.deepcopy(document)
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        if odd is DELETE:
            del inner[path[-1]]
        else:
            inner[path[-1]] = odd
        encoded = json.dumps(changed).encode()
        if many:
            place = draw.randrange(len(lines))
            encoded = b"\n".join([*lines[:place], encoded, *lines[place + 1 :]]) + b"\n"
        what = "removed" if odd is DELETE else f"= {odd!r:.20}"
        name = ".".join(map(str, path)) + f" {what}"
        made.append(Damage(name, _write(lambda data, encoded=encoded: encoded)))
    return made


def of_toml(text: bytes, draw: random.Random, count: int) -> list[Damage]:
    """Lines removed or doubled, values replaced, tables of another kind."""
    lines = text.decode().splitlines()
    keyed = [place for place, line in enumerate(lines) if "=" in line or line.startswith("[")]
    made = []
    for number in range(count):
        place = keyed[number % len(keyed)]
        line, changed = lines[place], list(lines)
        way = draw.randrange(4) if number >= len(keyed) else 0
        if way == 0:
            del changed[place]
            what = "removed"
        elif way == 1 and "=" in line:
            what = draw.choice(_LITERALS)
            changed[place] = f"{line.partition('=')[0]}= {what}"
        elif way == 2 and "=" in line:
            key = draw.choice(("unknown", "'\x7f'", '"a\\u001b[2J"', "a.b.c", "__class__", "''"))
            changed[place] = f"{key} ={line.partition('=')[2]}"
            what = f"called {key!r}"
        else:
            changed.insert(place, line)
            what = "doubled"
        encoded = "\n".join(changed).encode() + b"\n"
        name = f"line {place + 1} {what[:30]!r}"
        made.append(Damage(name, _write(lambda data, encoded=encoded: encoded)))
    return made


def of_csv(text: bytes, draw: random.Random, count: int) -> list[Damage]:
    """Cells and columns that are something else."""
    rows = list(csv.reader(io.StringIO(text.decode())))
    made = []
    for _ in range(count):
        changed = [list(row) for row in rows]
        row, column = draw.randrange(len(rows)), draw.randrange(len(rows[0]))
        way = draw.randrange(5)
        if way == 0:
            for each in changed:
                del each[column]
            what = f"column {column} removed"
        elif way == 1:
            del changed[row][column:]
            what = f"row {row} cut"
        elif way == 2:
            changed[row] += ["7"] * 3
            what = f"row {row} longer"
        else:
            cell = draw.choice(_CELLS)
            changed[row][column] = cell
            what = f"cell {row},{column} = {cell!r:.20}"
        encoded = "\n".join(",".join(each) for each in changed).encode() + b"\n"
        made.append(Damage(what, _write(lambda data, encoded=encoded: encoded)))
    return made


def of_parquet(draw: random.Random, count: int) -> list[Damage]:
    """Columns missing, renamed, of another type, with nulls or values out of every range."""
    ways = ("drop", "rename", "text", "float", "null", "huge", "negative", "fewer", "twice")
    made = []
    for number in range(count):
        way, pick = ways[number % len(ways)], draw.randrange(100)
        name = f"column {pick} {way}"
        made.append(Damage(name, lambda path, way=way, pick=pick: _spoil_table(path, way, pick)))
    return made


def _spoil_table(path: Path, way: str, pick: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    place = pick % table.num_columns
    name, column = table.column_names[place], table.column(place)
    count = len(column)
    if way == "drop":
        table = table.remove_column(place)
    elif way == "rename":
        table = table.rename_columns([f"x{n}" if n == name else n for n in table.column_names])
    elif way == "fewer":
        table = table.slice(0, max(0, count - 1))
    elif way == "twice":
        table = pa.concat_tables([table, table])
    else:
        values: dict[str, list[Any]] = {
            "text": ["\x1b[2Jx"] * count, "float": [float("nan")] * count, "null": [None] * count,
            "huge": [2**62] * count, "negative": [-5] * count,
        }  # fmt: skip
        kind = pa.int64() if way == "null" else None
        table = table.set_column(place, name, pa.array(values[way], type=kind))
    path.unlink()
    pq.write_table(table, path)


def kind_of(path: Path) -> str:
    """How a file is spoilt, by its name."""
    return {".json": "json", ".jsonl": "json", ".toml": "toml", ".csv": "csv"}.get(
        path.suffix, "parquet" if path.suffix == ".parquet" else "bytes"
    )


def damages(path: Path, draw: random.Random, count: int) -> list[Damage]:
    """``count`` damages of a file: those of bytes, and those that its kind can have."""
    inside = {
        "json": lambda n: of_json(path.read_bytes(), draw, n),
        "toml": lambda n: of_toml(path.read_bytes(), draw, n),
        "csv": lambda n: of_csv(path.read_bytes(), draw, n),
        "parquet": lambda n: of_parquet(draw, n),
        "bytes": lambda n: [],
    }[kind_of(path)]
    plain = of_bytes()
    made = inside(max(0, count - len(plain)))
    draw.shuffle(plain)
    return (
        (plain + made)[:count]
        if count >= len(plain)
        else plain[: count // 2] + inside(count - count // 2)
    )


def copy_material(source: Path, target: Path) -> None:
    """A folder of its own for a case."""
    shutil.copytree(source, target, symlinks=True)


def clean(text: str) -> bool:
    """No control character but line ends and tabs."""
    return re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text) is None
