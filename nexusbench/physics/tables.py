"""Measured operator times of one model on one GPU (``--kernel-table DIR``), read and interpolated.

A folder holds, in microseconds: ``dense.csv`` (layer, tokens, time_us), ``attention.csv``
(prefill_chunk, kv_prefill, n_decode, kv_decode, time_us; one layer), ``per_sequence.csv`` (layer,
sequences, time_us) and ``meta.yaml``; each CSV file may be gzipped. This is the format of
LLMServingSim 2.0's profiles.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import IO

from msgspec import UNSET

from nexusbench.core.errors import InputError
from nexusbench.core.specs import DTYPE_BYTES, GpuSpec, ModelSpec

# How often a decoder layer runs each dense operator, then what a step runs once, by tokens and by
# sequences.
PER_LAYER = {
    "qkv_proj": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "down_proj": 1,
    "layernorm": 2,
    "rotary_emb": 1,
    "act_fn": 1,
}
PER_STEP = ("embedding", "final_layernorm")
PER_SEQUENCE = ("lm_head", "sampler")
ATTENTION_AXES = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")

# Of a file, unpacked: the largest published table has 2 MB.
_MOST_CELL = 1 << 17  # characters of one cell
_MOST_BYTES = 64 << 20
_MOST_COUNT = 10**9
_TIMES_US = (1e-6, 1e9)
# Names of number formats in meta.yaml's ``variant``, by bytes of a weight.
_VARIANTS = {"fp32": 4.0, "float32": 4.0, "bf16": 2.0, "bfloat16": 2.0, "fp16": 2.0,
             "float16": 2.0, "fp8": 1.0, "int8": 1.0}  # fmt: skip

Point = tuple[int, ...]
Row = tuple[Point, float]


class TimeCurve:
    """A piecewise-linear function of one count; beyond its ends it goes on in proportion."""

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        self.xs = tuple(x for x, _ in points)
        self.ys = tuple(y for _, y in points)

    def __call__(self, x: int) -> float:
        """The value at ``x`` >= 0."""
        xs, ys = self.xs, self.ys
        if x <= xs[0]:
            return ys[0]
        if x >= xs[-1]:
            return ys[-1] * x / xs[-1]
        i = bisect_right(xs, x)
        low, high = xs[i - 1], xs[i]
        return ys[i - 1] + (ys[i] - ys[i - 1]) * (x - low) / (high - low)


class TimeGrid:
    """A function on a full grid, multilinear between its points and constant beyond its ends."""

    def __init__(self, points: dict[Point, float]) -> None:
        self.axes = tuple(tuple(sorted(set(axis))) for axis in zip(*points, strict=True))
        self.values = [points[point] for point in product(*self.axes)]
        strides = [1] * len(self.axes)
        for i in range(len(self.axes) - 2, -1, -1):
            strides[i] = strides[i + 1] * len(self.axes[i + 1])
        self._strides = strides

    def __call__(self, point: Sequence[float]) -> float:
        """The value at ``point``, one coordinate per axis."""
        corners = [(0, 1.0)]
        for axis, stride, x in zip(self.axes, self._strides, point, strict=True):
            if x <= axis[0]:
                continue
            if x >= axis[-1]:
                corners = [(at + stride * (len(axis) - 1), w) for at, w in corners]
                continue
            i = bisect_right(axis, x)
            share = (x - axis[i - 1]) / (axis[i] - axis[i - 1])
            low, high = stride * (i - 1), stride * i
            corners = [
                corner
                for at, w in corners
                for corner in ((at + low, w * (1.0 - share)), (at + high, w * share))
            ]
        made, values = 0.0, self.values
        for at, weight in corners:
            made += values[at] * weight
        return made


class KernelTable:
    """The measured times: curves by operator, and attention rows by (chunk, kv, decodes, kv)."""

    def __init__(
        self,
        dense: dict[str, TimeCurve],
        sequence: dict[str, TimeCurve],
        attention: dict[Point, float],
        sha256: str = "",
    ) -> None:
        self.dense, self.sequence, self.attention = dense, sequence, attention
        self.sha256 = sha256

    def layer_us(self, tokens: int) -> float:
        """One decoder layer without attention."""
        made = 0.0  # not by ``sum``, which rounds otherwise from Python 3.12 on
        for name, count in PER_LAYER.items():
            made += self.dense[name](tokens) * count
        return made

    def step_us(self, tokens: int) -> float:
        """What a step runs once for its tokens."""
        made = 0.0
        for name in PER_STEP:
            made += self.dense[name](tokens)
        return made

    def head_us(self, sequences: int) -> float:
        """What a step runs once for its sequences: output head and sampling."""
        made = 0.0
        for name in PER_SEQUENCE:
            made += self.sequence[name](sequences)
        return made


def load_table(folder: Path, gpu: GpuSpec, model: ModelSpec, tensor_parallel: int) -> KernelTable:
    """The table in ``folder``. Raises InputError naming file, line and field for what is malformed,
    and for a table of another GPU, model shape or tensor-parallel degree.
    """
    if not folder.is_dir():
        raise InputError("is not a folder", file=folder, hint="Give --kernel-table a folder")
    if model.moe is not None or model.stack is not UNSET:
        kind = "a mixture of experts" if model.moe is not None else "one of several kinds of layers"
        raise InputError(
            f"holds a dense model's operators, and {model.name} is {kind}",
            file=folder,
            hint="Leave --kernel-table out",
        )
    digest = hashlib.sha256()
    check_meta(folder / "meta.yaml", gpu, model, tensor_parallel, digest)
    dense = _curves(folder, "dense", "tokens", (*PER_LAYER, *PER_STEP), digest)
    sequence = _curves(folder, "per_sequence", "sequences", PER_SEQUENCE, digest)
    path, rows = _read(folder, "attention", ATTENTION_AXES, digest)
    attention = dict(_numbers(path, rows, ATTENTION_AXES))
    for name, block in attention_blocks(attention).items():
        axes = [sorted(set(axis)) for axis in zip(*block, strict=True)] if block else [[]]
        for point in product(*axes):
            if point not in block:
                raise InputError(
                    f"the {name} grid lacks the point {point}", file=path,
                    hint="Measure every combination of the values on its axes",
                )  # fmt: skip
        if not block:
            raise InputError(f"has no {name} rows", file=path, hint="Measure them too")
    return KernelTable(dense, sequence, attention, digest.hexdigest())


def attention_blocks(
    attention: dict[Point, float],
) -> dict[str, dict[Point, float]]:
    """Attention rows as three grids: prefill (chunk, kv), decode (count, kv), mixed (all four)."""
    blocks: dict[str, dict[Point, float]] = {"prefill": {}, "decode": {}, "mixed": {}}
    for (chunk, before, count, keys), time in attention.items():
        if chunk and count:
            blocks["mixed"][chunk, before, count, keys] = time
        elif chunk:
            blocks["prefill"][chunk, before] = time
        elif count:
            blocks["decode"][count, keys] = time
    return blocks


def check_meta(
    path: Path, gpu: GpuSpec, model: ModelSpec, tensor_parallel: int, digest: hashlib._Hash
) -> None:
    """Compare ``meta.yaml`` with what is to be run. Raises InputError for the first difference."""
    meta = read_meta(path, digest)
    expected: dict[str, object] = {
        "gpu": gpu.name,
        "hf_overrides.intermediate_size": model.intermediate_size,
        "hf_overrides.num_attention_heads": model.num_heads,
        "hf_overrides.num_key_value_heads": model.num_kv_heads,
        "hf_overrides.vocab_size": model.vocab_size,
    }
    for key, wanted in expected.items():
        name = key.rpartition(".")[2]
        line, found = next(
            ((n, v) for k, (n, v) in meta.items() if k == key or k.endswith("." + key)),
            (None, None),
        )
        if found is None:
            raise InputError("is missing", file=path, field=name, hint="Say what was measured")
        if found != str(wanted):
            raise InputError(
                f"is {found}, but {wanted} is to be run", file=path, line=line, field=name,
                hint="Give the table of this GPU and model, or leave --kernel-table out",
            )  # fmt: skip
    _check_optional(path, meta, model)
    line, degrees = meta.get("tp_degrees", (None, "[1]"))
    if str(tensor_parallel) not in degrees.strip("[] ").replace(" ", "").split(","):
        raise InputError(
            f"is {degrees}: nothing was measured for {tensor_parallel}", file=path, line=line,
            field="tp_degrees", hint="Leave --kernel-table or --tensor-parallel-size out",
        )  # fmt: skip


def _check_optional(path: Path, meta: dict[str, tuple[int, str]], model: ModelSpec) -> None:
    """Compare what a ``meta.yaml`` need not say. Raises InputError for the first difference."""
    for key, (line, found) in meta.items():
        name = key.rpartition(".")[2]
        wanted = {"hidden_size": model.hidden_size, "head_dim": model.head_dim}.get(name)
        if wanted is not None and found != str(wanted):
            raise InputError(
                f"is {found}, but {wanted} is to be run", file=path, line=line, field=name,
                hint="Give the table of this model, or leave --kernel-table out",
            )  # fmt: skip
    at, variant = meta.get("variant", (None, "bf16"))
    if _VARIANTS.get(variant.lower()) != DTYPE_BYTES[model.dtypes.weights]:
        raise InputError(
            f"is {variant}, but weights in {model.dtypes.weights} are to be run", file=path,
            line=at, field="variant", hint="Give the table of this model in this data type, or "
            "leave --kernel-table out",
        )  # fmt: skip


def read_meta(path: Path, digest: hashlib._Hash | None = None) -> dict[str, tuple[int, str]]:
    """``name: value`` lines, nested by indentation, as ``outer.inner`` -> (line, value).

    Raises InputError for a line that is neither that nor a comment.
    """
    found: dict[str, tuple[int, str]] = {}
    stack: list[tuple[int, str]] = []
    for number, text in enumerate(_text(path, digest).splitlines(), start=1):
        content = text.strip()
        if not content or content.startswith("#"):
            continue
        name, colon, value = content.partition(":")
        if not colon:
            raise InputError(
                "is not 'name: value'", file=path, line=number, hint="Correct this line"
            )
        indent = len(text) - len(text.lstrip())
        while stack and stack[-1][0] >= indent:
            stack.pop()
        stack.append((indent, name.strip()))
        path_of = ".".join(part for _, part in stack)
        if path_of in found:
            problem, hint = f"stands in line {found[path_of][0]} too", "Keep one of the two"
            raise InputError(problem, file=path, line=number, field=path_of[:80], hint=hint)
        found[path_of] = (number, value.strip().strip("'\""))
    return found


def _text(path: Path, digest: hashlib._Hash | None) -> str:
    """A file's text, gunzipped if its name ends in .gz. Raises InputError."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError("is no ordinary file", file=path, hint="Give a CSV file")
        with path.open("rb") as file:
            data = _bounded(path, file)
        if digest is not None:
            digest.update(data)
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = _bounded(path, packed)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("is not text in UTF-8", file=path, hint="Give a CSV file") from None
    except (OSError, EOFError, zlib.error) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read: {problem}", file=path, hint="See --help") from None


def _bounded(path: Path, file: IO[bytes] | gzip.GzipFile) -> bytes:
    data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise InputError(
            f"has more than {_MOST_BYTES >> 20} MiB", file=path, hint="Give a kernel table"
        )
    return data


def _read(
    folder: Path, name: str, keys: Sequence[str], digest: hashlib._Hash
) -> tuple[Path, list[tuple[int, dict[str, str]]]]:
    """Path and (line, fields) of ``name``.csv or ``name``.csv.gz. Raises InputError."""
    path = next(
        (p for p in (folder / f"{name}.csv", folder / f"{name}.csv.gz") if p.exists()),
        folder / f"{name}.csv",
    )
    csv.field_size_limit(_MOST_CELL)  # one limit for the process, which traces raise
    reader = csv.DictReader(io.StringIO(_text(path, digest)))
    try:
        for field in (*keys, "time_us"):
            if field not in (reader.fieldnames or ()):
                problem = "is missing"
                raise InputError(problem, file=path, line=1, field=field, hint="Add the column")
        return path, [(reader.line_num, row) for row in reader]
    except csv.Error as error:  # a cell that is too long, a NUL
        raise InputError(
            f"is no line of CSV: {error}", file=path, line=reader.line_num, hint="Correct it"
        ) from None


def _numbers(
    path: Path, rows: Iterable[tuple[int, dict[str, str]]], keys: Sequence[str]
) -> Iterable[Row]:
    """(counts, us) of each row. Raises InputError for what is no count, no time, or twice there."""
    seen: set[Point] = set()
    for line, row in rows:
        counts = []
        for key in keys:
            text = row[key] or ""
            if not (text.isdecimal() and len(text) < 11 and int(text) <= _MOST_COUNT):
                problem = f"is '{text[:40]}', not a count"
                raise InputError(problem, file=path, line=line, field=key, hint="Correct it")
            counts.append(int(text))
        try:
            time = float(row["time_us"] or "")
        except ValueError:
            time = math.nan
        if not _TIMES_US[0] <= time <= _TIMES_US[1]:
            raise InputError(
                f"is '{(row['time_us'] or '')[:40]}', not a time above 0", file=path, line=line,
                field="time_us", hint=f"Give microseconds, {_TIMES_US[0]:g} to {_TIMES_US[1]:g}",
            )  # fmt: skip
        if tuple(counts) in seen:
            raise InputError(
                f"{tuple(counts)} stands twice", file=path, line=line, hint="Keep one of them"
            )
        seen.add(tuple(counts))
        yield tuple(counts), time


def _curves(
    folder: Path, name: str, key: str, layers: Sequence[str], digest: hashlib._Hash
) -> dict[str, TimeCurve]:
    """One curve per operator in ``layers``; others are ignored. Raises InputError."""
    path, rows = _read(folder, name, ("layer", key), digest)
    curves = {}
    for layer in layers:
        own = [(line, row) for line, row in rows if row["layer"] == layer]
        points = sorted((counts[0], time) for counts, time in _numbers(path, own, (key,)))
        if len(points) < 2:
            raise InputError(
                f"has {len(points)} rows of '{layer}'", file=path, field="layer",
                hint="At least two counts of each operator are needed",
            )  # fmt: skip
        if points[0][0] < 1 or any(a >= b for (a, _), (b, _) in pairwise(points)):
            raise InputError("must count from 1", file=path, field=key, hint="Correct the file")
        curves[layer] = TimeCurve(points)
    return curves
