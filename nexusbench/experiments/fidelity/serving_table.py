"""Tables of measured closed-loop points: TTFT and TPOT of a server under a number of users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.registry import did_you_mean
from nexusbench.experiments.fidelity.measured_csv import Cells, csv_rows, number_in

MOST_POINTS = 100_000
_HINT = "Columns as in docs/fidelity.md, one line per measured point"
_TEXTS = ("backend", "model_path", "system", "mode")  # must not be empty
_OPTIONAL = ("backend_version", "precision", "gemm_quant_mode", "moe_quant_mode")
_COUNTS = {"isl": 10**7, "osl": 10**7, "batch_size": 10**5, "tp_size": 4096, "pp_size": 4096}
_DEGREES = ("attention_dp_size", "moe_tp_size", "moe_ep_size")  # empty and 0 say: not used
_TIMES = ("silicon_ttft_ms", "silicon_tpot_ms")
COLUMNS = (*_TEXTS, *_OPTIONAL, *_COUNTS, *_DEGREES, *_TIMES)
_MOST_MS = 1e9
_MOST_TEXT = 200


class ServingPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One measured point: so many ``users`` in a closed loop, with prompts of ``isl`` tokens
    and ``osl`` generated ones. Times are means in ms; degrees that a table leaves open are 1.
    """

    line: int
    backend: str
    backend_version: str
    model: str  # Hugging Face's OWNER/NAME
    system: str
    precision: str  # of weights; empty: 16 bits
    mode: str
    isl: int
    osl: int
    gemm_quant: str
    moe_quant: str
    users: int
    tp: int
    pp: int
    dp: int
    moe_tp: int
    moe_ep: int
    dp_told: bool  # whether the line has an attention_dp_size
    ttft_ms: float
    tpot_ms: float

    @property
    def of_inferencex(self) -> bool:
        """Whether InferenceX's runner measured it: lines out of its database have an
        attention_dp_size, those of aiconfigurator's own runner leave it empty.
        """
        return self.dp_told

    @property
    def name(self) -> str:
        """The model without its owner."""
        return self.model.rpartition("/")[2]


def read_points(path: Path) -> list[ServingPoint]:
    """All points of a CSV (or ``.gz``) table. Raises InputError naming file, line and column of the
    first fault.
    """
    points = []
    for line, row in csv_rows(path, COLUMNS, _HINT):
        points.append(_point(row, path, line))
        if len(points) > MOST_POINTS:
            problem = f"has more than {MOST_POINTS:,} points"
            raise InputError(problem, file=path, line=line, hint="Split the table")
    if not points:
        raise InputError("holds no points", file=path, hint=_HINT)
    return points


def chosen(
    points: Sequence[ServingPoint], model: str | None, only: Sequence[str]
) -> list[ServingPoint]:
    """The points of a model (OWNER/NAME, or NAME alone; any case) that have every ``COLUMN=VALUE``
    of ``only``. Raises UsageError for what no point has.
    """
    kept = list(points)
    if model is not None:
        asked = model.lower()
        kept = [p for p in kept if asked in (p.model.lower(), p.name.lower())]
        if not kept:
            names = sorted({p.model for p in points})
            raise UsageError(f"--model {model}: no point is of it. {did_you_mean(model, names)}")
    for text in only:
        column, equals, value = text.partition("=")
        if not equals or column not in _FILTERS:
            known = ", ".join(_FILTERS)
            raise UsageError(f"--only takes COLUMN=VALUE with a column of {known}, not '{text}'")
        field = _FILTERS[column]
        kept = [p for p in kept if str(getattr(p, field)) == value]
        if not kept:
            raise UsageError(f"--only {text}: no point is left. Columns count as in the table")
    return kept


_FILTERS = {
    "backend": "backend", "backend_version": "backend_version", "system": "system",
    "precision": "precision", "isl": "isl", "osl": "osl", "batch_size": "users", "tp_size": "tp",
}  # fmt: skip


def _point(row: Cells, path: Path, line: int) -> ServingPoint:
    for key in (*_TEXTS, *_OPTIONAL, *_DEGREES):
        if row[key] is None:
            raise InputError("is missing", file=path, line=line, field=key, hint=_HINT)
        if len(row[key]) > _MOST_TEXT or not row[key].isprintable():
            problem = f"is no name of at most {_MOST_TEXT} characters"
            raise InputError(problem, file=path, line=line, field=key, hint="Correct this line")
    texts = {key: row[key].strip() for key in (*_TEXTS, *_OPTIONAL)}
    for key in _TEXTS:
        if not texts[key]:
            raise InputError("is empty", file=path, line=line, field=key, hint="Correct this line")
    counts = {key: _count(row, key, path, line, 1, most) for key, most in _COUNTS.items()}
    degrees = {
        key: _count(row, key, path, line, 0, 4096) if row[key].strip() else 0 for key in _DEGREES
    }
    ttft, tpot = (_time(row, key, path, line) for key in _TIMES)
    return ServingPoint(
        line=line, backend=texts["backend"], backend_version=texts["backend_version"],
        model=texts["model_path"], system=texts["system"], precision=texts["precision"],
        mode=texts["mode"], isl=counts["isl"], osl=counts["osl"],
        gemm_quant=texts["gemm_quant_mode"], moe_quant=texts["moe_quant_mode"],
        users=counts["batch_size"], tp=counts["tp_size"], pp=counts["pp_size"],
        dp=max(1, degrees["attention_dp_size"]), moe_tp=max(1, degrees["moe_tp_size"]),
        moe_ep=max(1, degrees["moe_ep_size"]), dp_told=degrees["attention_dp_size"] > 0,
        ttft_ms=ttft, tpot_ms=tpot,
    )  # fmt: skip


def _count(row: Cells, key: str, path: Path, line: int, least: int, most: int) -> int:
    value = number_in(row, key, path, line)
    if value != int(value) or not least <= value <= most:
        problem = f"is {row[key]!r:.40}, not a whole number from {least} to {most:,}"
        raise InputError(problem, file=path, line=line, field=key, hint="Correct this line")
    return int(value)


def _time(row: Cells, key: str, path: Path, line: int) -> float:
    value = number_in(row, key, path, line)
    if not 0 < value <= _MOST_MS:
        problem = f"is {row[key]!r:.40}, no time in ms above 0"
        raise InputError(problem, file=path, line=line, field=key, hint="Correct this line")
    return value
