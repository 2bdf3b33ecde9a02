"""A recorded run of a real engine: requests with their times, what it had resolved, its curves.

A folder with ``requests.jsonl``, ``meta.json`` and, if there are any, ``timeseries.csv``; each may
be gzipped. This is the format of LLMServingSim 2.0's vLLM runs.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from nexusbench.core.errors import InputError

FloatArray = npt.NDArray[np.float64]
REQUIRED = ("input_toks", "output_toks", "arrival_time", "first_token_ts", "last_token_ts")
SERIES = ("t", "running", "waiting", "kv_cache_pct")


class RecordedRequest(msgspec.Struct, frozen=True):
    """One request. ``arrival`` is in s after the first one; ``queued``, ``scheduled``, ``first``
    and ``last`` token are in s of the engine's clock (None where not recorded). ``gaps``: s
    between tokens, if every one was recorded.
    """

    prompt_tokens: int
    output_tokens: int
    arrival: float
    queued: float | None
    scheduled: float | None
    first: float
    last: float
    gaps: tuple[float, ...] | None = None


class Resolved(msgspec.Struct, frozen=True):
    """What the recorded engine had resolved; None where the recording does not say."""

    model: str | None = None
    kv_blocks: int | None = None
    block_size: int = 16
    prefix_caching: bool = True
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    asynchronous: bool = False  # the next step is scheduled while the last one runs
    whole_prompt: bool = False  # prompts are admitted only if all of them fits
    engine: str = ""


class Recording(msgspec.Struct):
    """A folder, read; requests in order of arrival; ``series`` maps names to per-second values."""

    folder: Path
    requests: list[RecordedRequest]
    resolved: Resolved
    series: dict[str, FloatArray] | None


def read_recording(folder: Path) -> Recording:
    """The recording in ``folder``. Raises InputError naming file, line and field of a fault."""
    requests = _requests(_find(folder, "requests.jsonl"))
    series_path = _find(folder, "timeseries.csv", required=False)
    return Recording(
        folder,
        requests,
        _resolved(_find(folder, "meta.json")),
        None if series_path is None else _series(series_path),
    )


def _find(folder: Path, name: str, required: bool = True) -> Any:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    if required:
        hint = "Give a recorded run, or make one with nexusbench validate import"
        raise InputError(f"holds no {name} or {name}.gz", file=folder, hint=hint)
    return None


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", file=path, hint="See --help") from None


def _requests(path: Path) -> list[RecordedRequest]:
    found: list[tuple[float, RecordedRequest]] = []
    for line, text in enumerate(_text(path).splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"is not JSON: {error.msg}", file=path, line=line) from None
        if not isinstance(row, dict):
            raise InputError("is not a JSON object", file=path, line=line)
        values = {key: _number(path, line, row, key) for key in REQUIRED}
        for key in ("queued_ts", "scheduled_ts"):
            values[key] = _number(path, line, row, key) if row.get(key) is not None else math.nan
        if values["input_toks"] < 1 or values["output_toks"] < 1:
            raise InputError("has no tokens", file=path, line=line, field="output_toks")
        if values["last_token_ts"] < values["first_token_ts"]:
            raise InputError("is before the first", file=path, line=line, field="last_token_ts")
        gaps = row.get("itls")
        found.append(
            (
                values["arrival_time"],
                RecordedRequest(
                    int(values["input_toks"]), int(values["output_toks"]), 0.0,
                    _or_none(values["queued_ts"]), _or_none(values["scheduled_ts"]),
                    values["first_token_ts"], values["last_token_ts"],
                    tuple(float(gap) for gap in gaps) if isinstance(gaps, list) else None,
                ),
            )
        )  # fmt: skip
    if not found:
        raise InputError("holds no requests", file=path, hint="Give a recorded run")
    found.sort(key=lambda pair: pair[0])
    start = found[0][0]
    return [msgspec.structs.replace(r, arrival=at - start) for at, r in found]


def _number(path: Path, line: int, row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        problem = "is missing" if value is None else f"is {value!r}, not a number"
        raise InputError(problem, file=path, line=line, field=key, hint="Correct this line")
    return float(value)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _resolved(path: Path) -> Resolved:
    """From vLLM's resolved configuration where it stands in ``meta.json``, else its arguments."""
    try:
        meta = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON: {error.msg}", file=path, line=error.lineno) from None
    if not isinstance(meta, dict):
        raise InputError("is not a JSON object", file=path)
    config, cache = meta.get("resolved_config") or {}, meta.get("kv_cache") or {}
    scheduler = config.get("scheduler_config") or {}
    asked = {**(meta.get("engine_kwargs") or {})}
    found = {
        "model": meta.get("model"),
        "kv_blocks": cache.get("num_gpu_blocks"),
        "block_size": cache.get("block_size"),
        "prefix_caching": cache.get("enable_prefix_caching"),
        "gpu_memory_utilization": cache.get("gpu_memory_utilization"),
        "max_num_seqs": scheduler.get("max_num_seqs", asked.get("max_num_seqs")),
        "max_num_batched_tokens": scheduler.get(
            "max_num_batched_tokens", asked.get("max_num_batched_tokens")
        ),
        "max_model_len": (config.get("model_config") or {}).get(
            "max_model_len", asked.get("max_model_len")
        ),
        "tensor_parallel_size": asked.get("tensor_parallel_size"),
        "asynchronous": scheduler.get("async_scheduling"),
        "whole_prompt": scheduler.get("scheduler_reserve_full_isl"),
        "engine": f"vLLM {meta['vllm_version']}" if "vllm_version" in meta else None,
    }
    try:
        return msgspec.convert({k: v for k, v in found.items() if v is not None}, Resolved)
    except msgspec.ValidationError as error:
        raise InputError(f"{error}", file=path, hint="Correct the file") from None


def _series(path: Path) -> dict[str, FloatArray]:
    reader = csv.DictReader(io.StringIO(_text(path)))
    for key in SERIES:
        if key not in (reader.fieldnames or ()):
            raise InputError("is missing", file=path, line=1, field=key, hint="Add the column")
    columns: dict[str, list[float]] = {key: [] for key in SERIES}
    for row in reader:
        for key in SERIES:
            try:
                columns[key].append(float(row[key]))
            except (TypeError, ValueError):
                problem = f"is '{row[key]}', not a number"
                raise InputError(problem, file=path, line=reader.line_num, field=key) from None
    return {key: np.array(values) for key, values in columns.items()}
