"""A survey in a folder: ``cells.parquet``, a row per run, and ``manifest.json``, what made it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from nexusbench.comparison.load import Load
from nexusbench.core.documents import convert, decode_json, read_document
from nexusbench.core.errors import InputError
from nexusbench.core.outputs import atomic_file, make_folder
from nexusbench.experiments.keys import code_version
from nexusbench.experiments.paying.measuring import MapRow
from nexusbench.experiments.paying.points import GpuPlaces, MapPoint, Survey
from nexusbench.experiments.paying.spec import MapSpec
from nexusbench.results.manifest import made_with
from nexusbench.workloads.source import write_atomic

TABLE, MANIFEST = "cells.parquet", "manifest.json"
_MAKE = "Make it again with nexusbench pays"
_POINT = MapPoint.__struct_fields__
# In JSON. A row's load is none of a point, which is a share of the capacity; it is not there in
# tables of before it was looked at.
_ATTAINED, _LOAD, _NO_LOAD = "attained", "rates", "null"
# ``wall_s`` is real time, and no result.
_ROW = tuple(n for n in MapRow.__struct_fields__ if n not in (_ATTAINED, "load", "wall_s"))


def write_survey(survey: Survey, folder: Path, spec_path: Path, *, quick: bool) -> None:
    """Write both files. Raises UsageError if the folder cannot be written to."""
    make_folder(folder)
    order = sorted(survey.rows, key=msgspec.structs.astuple)
    rows = [survey.rows[point] for point in order]
    columns: dict[str, list[object]] = {name: [getattr(p, name) for p in order] for name in _POINT}
    columns[_ATTAINED] = [msgspec.json.encode(row.attained).decode() for row in rows]
    columns[_LOAD] = [msgspec.json.encode(row.load).decode() for row in rows]
    columns |= {name: [getattr(row, name) for row in rows] for name in _ROW}
    with atomic_file(folder / TABLE) as file:
        pq.write_table(pa.table(columns), file)
    manifest = _manifest(survey, rows, spec_path, quick=quick)
    write_atomic(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")


class SurveyManifest(msgspec.Struct, kw_only=True):
    """What made a survey. ``capacity`` (requests per second) and ``requests`` (of a run) are by GPU
    and traffic; ``places`` are those on the ranges of each GPU, none in surveys of before there
    were ranges.
    """

    simulated: Literal[True]
    spec: str = ""
    spec_sha256: str
    quick: bool
    cut: tuple[str, ...] = ()
    code_sha256: str = ""
    runs: int = 0
    digest: str = ""  # of the digests of all event logs
    capacity: list[tuple[str, str, float]]
    requests: list[tuple[str, str, int]]
    places: dict[str, GpuPlaces] = {}
    nexusbench: str = ""
    python: str = ""
    numpy: str = ""
    pyarrow: str = ""
    platform: str = ""
    git_commit: str | None = None
    git_dirty: bool | None = None


def _manifest(
    survey: Survey, rows: list[MapRow], spec_path: Path, *, quick: bool
) -> SurveyManifest:
    spec = survey.spec
    digest = hashlib.sha256("\n".join(row.digest for row in rows).encode()).hexdigest()
    manifest = SurveyManifest(
        simulated=True, spec=spec_path.name, spec_sha256=spec.sha256, quick=quick, cut=spec.cut,
        code_sha256=code_version(), runs=len(rows), digest=digest,
        capacity=[(*key, value) for key, value in survey.capacity.items()],
        requests=[(*key, value) for key, value in survey.requests.items()],
        places=survey.places,
    )  # fmt: skip
    return msgspec.structs.replace(manifest, **made_with())


def read_manifest(folder: Path) -> SurveyManifest:
    """What made a survey. Raises InputError if there is none, or it lacks something."""
    path = folder / MANIFEST
    data = read_document(path, hint=_MAKE)
    return decode_json(data, SurveyManifest, path, what="a survey's manifest", hint=_MAKE)


def _records(file: Path) -> list[dict[str, object]]:
    """The rows of the table. Raises InputError that names the file, and row and column."""
    try:
        table = pq.read_table(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot be read: {reason}", file=file, hint=_MAKE) from None
    wanted = (*_POINT, _ATTAINED, *_ROW)
    if missing := [name for name in wanted if name not in table.column_names]:
        raise InputError("has no such column", file=file, field=missing[0], hint=_MAKE)
    records: list[dict[str, object]] = table.to_pylist()
    return records


def read_survey(folder: Path, spec: MapSpec) -> Survey:
    """The survey of a folder. Raises InputError if it is none of ``spec``."""
    manifest = read_manifest(folder)
    if manifest.spec_sha256 != spec.sha256:
        raise InputError(
            "was made of another version of the spec", file=folder / MANIFEST, hint=_MAKE
        )
    rows: dict[MapPoint, MapRow] = {}
    file = folder / TABLE
    for number, record in enumerate(_records(file), start=1):
        at = f"row {number}"
        point = convert({name: record[name] for name in _POINT}, MapPoint, file, at=at, hint=_MAKE)
        attained = decode_json(str(record[_ATTAINED]), dict[str, float], file, line=number)
        text = record.get(_LOAD) or _NO_LOAD
        load = None if text == _NO_LOAD else decode_json(str(text), Load, file, line=number)
        fields = {name: record[name] for name in _ROW}
        row = convert(
            {**fields, _ATTAINED: attained, "wall_s": 0.0}, MapRow, file, at=at, hint=_MAKE
        )  # fmt: skip
        rows[point] = msgspec.structs.replace(row, load=load)
    return Survey(
        spec=spec,
        capacity={(gpu, traffic): value for gpu, traffic, value in manifest.capacity},
        requests={(gpu, traffic): value for gpu, traffic, value in manifest.requests},
        rows=rows,
        places=manifest.places,
    )
