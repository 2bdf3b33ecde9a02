"""Measured operator times of one model on one GPU (``--kernel-table DIR``), read and interpolated.

A folder holds, in microseconds: ``dense.csv`` (layer, tokens, time_us), ``attention.csv``
(prefill_chunk, kv_prefill, n_decode, kv_decode, time_us; one layer), ``per_sequence.csv`` (layer,
sequences, time_us) and ``meta.yaml``; each CSV file may be gzipped. This is the format of
LLMServingSim 2.0's profiles.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from msgspec import UNSET

from nexusbench.core.errors import InputError
from nexusbench.core.specs import GpuSpec, ModelSpec, MoeSpec
from nexusbench.physics.table_folder import check_degree, find_degree, table_text
from nexusbench.physics.time_grids import Point, TimeCurve, grid_of, lacking

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
QK_NORM = "qk_norm"  # once a layer, of the models that have it
MLP = ("gate_up_proj", "down_proj", "act_fn")  # not of a mixture of experts
MOE_AXES = ("tokens", "activated_experts")
PER_STEP = ("embedding", "final_layernorm")
PER_SEQUENCE = ("lm_head", "sampler")
ATTENTION_AXES = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")

_MOST_CELL = 1 << 17  # characters of one cell
_MOST_COUNT = 10**9
_TIMES_US = (1e-6, 1e9)
Row = tuple[Point, float]


class KernelTable:
    """The measured times: curves by operator, and attention rows by (chunk, kv, decodes, kv)."""

    def __init__(
        self,
        dense: dict[str, TimeCurve],
        sequence: dict[str, TimeCurve],
        attention: dict[Point, float],
        sha256: str = "",
        experts: dict[int, TimeCurve] | None = None,
    ) -> None:
        self.dense, self.sequence, self.attention = dense, sequence, attention
        self.sha256, self.experts = sha256, experts
        self._layer = [
            (count, dense[name])
            for name, count in {**PER_LAYER, QK_NORM: 1}.items()
            if name in dense
        ]

    def layer_us(self, tokens: int) -> float:
        """One decoder layer without attention and routed experts."""
        made = 0.0  # not by ``sum``, which rounds otherwise from Python 3.12 on
        for count, curve in self._layer:
            made += curve(tokens) * count
        return made

    def experts_us(self, tokens: int, touched: float) -> float:
        """The experts of one layer, of which ``touched`` have tokens. Fewer than were measured for
        so many tokens count as the fewest, more as the most.
        """
        assert self.experts is not None
        near = TimeCurve([(n, _clamped(own, touched)) for n, own in self.experts.items()])
        return near(tokens)

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
    """The table in ``folder``, or in its ``tpN`` for this degree of tensor parallelism. Raises
    InputError naming file, line and field for what is malformed, and for a table of another GPU,
    model shape or degree.

    Experts that were not measured (no moe.csv) are left to the physics.
    """
    if not folder.is_dir():
        raise InputError("is not a folder", file=folder, hint="Give --kernel-table a folder")
    _check_layers(folder, model)
    digest = hashlib.sha256()
    own, degrees = find_degree(folder, gpu, model, tensor_parallel, digest)
    routed = model.moe is not None
    layers = [name for name in PER_LAYER if not (routed and name in MLP)]
    dense = _curves(own, "dense", "tokens", (*layers, *PER_STEP), digest, (QK_NORM, *MLP))
    measured_experts = any((own / name).exists() for name in ("moe.csv", "moe.csv.gz"))
    if (routed and MLP[0] in dense) or (measured_experts and not routed):
        kinds = ("a dense model", "a mixture of experts")
        problem = f"is of {kinds[not routed]}, and {model.name} is {kinds[routed]}"
        hint = "Give the table of this model, or leave --kernel-table out"
        raise InputError(problem, file=own, hint=hint)
    sequence = _curves(own, "per_sequence", "sequences", PER_SEQUENCE, digest)
    check_degree(own, gpu, model, tensor_parallel, degrees, sequence["lm_head"])
    path, rows = _read(own, "attention", ATTENTION_AXES, digest)
    attention = dict(_numbers(path, rows, ATTENTION_AXES))
    for name, block in attention_blocks(attention).items():
        if not block:
            raise InputError(f"has no {name} rows", file=path, hint="Measure them too")
        if grid_of(block) is None:
            raise InputError(
                f"the {name} grid lacks the point {lacking(block)}", file=path,
                hint="Measure every combination of the values on its axes, or several grids of "
                "values of their own",
            )  # fmt: skip
    experts = None
    if measured_experts and model.moe is not None:
        experts = _experts(own, model.moe, digest)
    return KernelTable(dense, sequence, attention, digest.hexdigest(), experts)


def _check_layers(folder: Path, model: ModelSpec) -> None:
    """Raises InputError for a model whose layers no table of this format describes."""
    problem = ""
    if model.stack is not UNSET:
        problem = f"holds the operators of equal layers, and {model.name} has several kinds"
    elif model.moe is not None and model.moe.num_shared_experts:
        problem = f"holds routed experts alone, and {model.name} has shared ones"
    if problem:
        raise InputError(problem, file=folder, hint="Leave --kernel-table out")


def _experts(folder: Path, moe: MoeSpec, digest: hashlib._Hash) -> dict[int, TimeCurve]:
    """Curves over the experts that have tokens, by tokens. Raises InputError for what is malformed,
    and for more or fewer experts than the model has.
    """
    path, rows = _read(folder, "moe", MOE_AXES, digest)
    points: dict[int, list[tuple[int, float]]] = {}
    for (tokens, touched), time in _numbers(path, rows, MOE_AXES):
        points.setdefault(tokens, []).append((touched, time))
    if len(points) < 2:
        raise InputError(
            f"has {len(points)} counts of tokens", file=path, field="tokens",
            hint="At least two are needed",
        )  # fmt: skip
    counts = [touched for own in points.values() for touched, _ in own]
    for name, found, wanted in (
        ("fewest", min(counts), moe.experts_per_token), ("most", max(counts), moe.num_experts)
    ):  # fmt: skip
        if found != wanted or min(points) < 1:
            raise InputError(
                f"is {found} at {name}, but a token uses {moe.experts_per_token} of "
                f"{moe.num_experts} experts", file=path, field="activated_experts",
                hint="Give the table of this model, or leave --kernel-table out",
            )  # fmt: skip
    return {tokens: TimeCurve(sorted(points[tokens])) for tokens in sorted(points)}


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


def _read(
    folder: Path, name: str, keys: Sequence[str], digest: hashlib._Hash
) -> tuple[Path, list[tuple[int, dict[str, str]]]]:
    """Path and (line, fields) of ``name``.csv or ``name``.csv.gz. Raises InputError."""
    path = next(
        (p for p in (folder / f"{name}.csv", folder / f"{name}.csv.gz") if p.exists()),
        folder / f"{name}.csv",
    )
    csv.field_size_limit(_MOST_CELL)  # one limit for the process, which traces raise
    reader = csv.DictReader(io.StringIO(table_text(path, digest)))
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


def _clamped(curve: TimeCurve, x: float) -> float:
    """``curve`` at ``x``, constant beyond its ends."""
    return curve(min(max(x, curve.xs[0]), curve.xs[-1]))


def _curves(
    folder: Path,
    name: str,
    key: str,
    layers: Sequence[str],
    digest: hashlib._Hash,
    optional: Sequence[str] = (),
) -> dict[str, TimeCurve]:
    """One curve per operator in ``layers``, and in ``optional`` if it has rows; others are ignored.
    Raises InputError.
    """
    path, rows = _read(folder, name, ("layer", key), digest)
    curves = {}
    for layer in (*layers, *optional):
        own = [(line, row) for line, row in rows if row["layer"] == layer]
        if not own and layer in optional:
            continue
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
