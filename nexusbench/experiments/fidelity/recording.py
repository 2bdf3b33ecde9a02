"""A recorded run of a real engine: requests with their times, what it had resolved, its curves.

A folder with ``requests.jsonl``, ``meta.json`` and, if there are any, ``timeseries.csv``; each may
be gzipped. This is the format of LLMServingSim 2.0's vLLM runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from nexusbench.core.documents import MOST_BYTES, decode_json, read_table_text
from nexusbench.core.errors import InputError
from nexusbench.experiments.fidelity.measured_csv import csv_rows, number_in
from nexusbench.experiments.fidelity.recording_flags import check_flags

FloatArray = npt.NDArray[np.float64]
_HINT = "See nexusbench validate run --help"
# Beyond, times in ns would not fit 64 bits, and a request no machine.
Seconds = Annotated[float, msgspec.Meta(ge=-4e9, le=4e9)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
KV_USE = "kv_cache_pct"
SERIES = ("t", "running", "waiting", KV_USE)


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
    data_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    enable_expert_parallel: bool = False
    gpu_memory_utilization: float = 0.9
    # Whether the next step is scheduled while the last one runs, and whether prompts are admitted
    # only if all of them fits.
    asynchronous: bool | None = None
    whole_prompt: bool | None = None
    engine: str = ""
    notes: tuple[str, ...] = ()  # on what it was configured with and is not simulated


class ServerRecording(msgspec.Struct):
    """A folder, read; requests in order of arrival; ``series`` maps names to per-second values."""

    folder: Path
    requests: list[RecordedRequest]
    resolved: Resolved
    series: dict[str, FloatArray] | None

    @property
    def kv_use_recorded(self) -> bool:
        """Whether the curves have the use of KV: recorders that cannot read it write zeros."""
        return self.series is not None and bool(self.series[KV_USE].any())


def read_recording(folder: Path) -> ServerRecording:
    """The recording in ``folder``. Raises InputError naming file, line and field of a fault."""
    requests = _requests(_find(folder, "requests.jsonl"))
    series_path = _find(folder, "timeseries.csv", required=False)
    return ServerRecording(
        folder,
        requests,
        _resolved(_find(folder, "meta.json")),
        None if series_path is None else _series(series_path),
    )


def _find(folder: Path, name: str, required: bool = True) -> Any:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists() or path.is_symlink():  # a link that leads nowhere is told where it is read
            return path
    if required:
        hint = "Give a recorded run, or make one with nexusbench validate import"
        raise InputError(f"holds no {name} or {name}.gz", file=folder, hint=hint)
    return None


class _Row(msgspec.Struct):
    """A line of ``requests.jsonl``; other keys are let be. Times in s."""

    input_toks: Tokens
    output_toks: Tokens
    arrival_time: Seconds
    first_token_ts: Seconds
    last_token_ts: Seconds
    queued_ts: Seconds | None = None
    scheduled_ts: Seconds | None = None
    itls: list[Annotated[float, msgspec.Meta(ge=0)]] | None = None


def _requests(path: Path) -> list[RecordedRequest]:
    rows: list[_Row] = []
    for line, text in enumerate(read_table_text(path, hint=_HINT).splitlines(), start=1):
        if text.strip():
            row = decode_json(text, _Row, path, line=line, hint="Correct this line")
            _check_order(row, path, line)
            rows.append(row)
    if not rows:
        raise InputError("holds no requests", file=path, hint="Give a recorded run")
    rows.sort(key=lambda row: row.arrival_time)
    start = rows[0].arrival_time
    return [
        RecordedRequest(
            row.input_toks, row.output_toks, row.arrival_time - start, row.queued_ts,
            row.scheduled_ts, row.first_token_ts, row.last_token_ts,
            None if row.itls is None else tuple(row.itls),
        )
        for row in rows
    ]  # fmt: skip


def _check_order(row: _Row, path: Path, line: int) -> None:
    """A request is queued, scheduled, and gets its first and last token, in this order; the
    arrival is of another clock.
    """
    names = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
    known = [name for name in names if getattr(row, name) is not None]
    for before, after in pairwise(known):
        if getattr(row, after) < getattr(row, before):
            problem = f"is before {before}"
            raise InputError(problem, file=path, line=line, field=after, hint="Correct this line")


class _Cache(msgspec.Struct):
    num_gpu_blocks: Count | None = None
    block_size: Count | None = None
    enable_prefix_caching: bool | None = None
    gpu_memory_utilization: float | None = None


class _Arguments(msgspec.Struct):
    max_num_seqs: Count | None = None
    max_num_batched_tokens: Count | None = None
    max_model_len: Count | None = None
    tensor_parallel_size: Count | None = None
    data_parallel_size: Count | None = None
    pipeline_parallel_size: Count | None = None
    enable_expert_parallel: bool | None = None


class _Scheduler(msgspec.Struct):
    max_num_seqs: Count | None = None
    max_num_batched_tokens: Count | None = None
    async_scheduling: bool | None = None
    scheduler_reserve_full_isl: bool | None = None


class _RecordedModel(msgspec.Struct):
    max_model_len: Count | None = None


class _Parallel(msgspec.Struct):
    tensor_parallel_size: Count | None = None
    data_parallel_size: Count | None = None
    pipeline_parallel_size: Count | None = None
    enable_expert_parallel: bool | None = None


class _Config(msgspec.Struct):
    scheduler_config: _Scheduler | None = None
    model_config: _RecordedModel | None = None
    cache_config: _Cache | None = None
    parallel_config: _Parallel | None = None


class _Meta(msgspec.Struct):
    """``meta.json``; other keys are let be."""

    model: str | None = None
    vllm_version: str | None = None
    engine_kwargs: _Arguments | None = None
    kv_cache: _Cache | None = None
    resolved_config: _Config | None = None


def _resolved(path: Path) -> Resolved:
    """From vLLM's resolved configuration where it stands in ``meta.json``, else its arguments."""
    text = read_table_text(path, hint=_HINT, most=MOST_BYTES)
    meta = decode_json(text, _Meta, path)
    config, asked = meta.resolved_config or _Config(), meta.engine_kwargs or _Arguments()
    scheduler = config.scheduler_config or _Scheduler()
    model = config.model_config or _RecordedModel()
    caches = (meta.kv_cache or _Cache(), config.cache_config or _Cache())
    degrees = (config.parallel_config or _Parallel(), asked)
    # vLLM takes the flag on one GPU too, where it changes nothing.
    tensor, data = (_first(degrees, f"{kind}_parallel_size") for kind in ("tensor", "data"))
    several = (tensor or 1) * (data or 1) > 1
    raw = decode_json(text, dict[str, object], path)
    found = {
        "model": meta.model,
        "kv_blocks": _first(caches, "num_gpu_blocks"),
        "block_size": _first(caches, "block_size"),
        "prefix_caching": _first(caches, "enable_prefix_caching"),
        "gpu_memory_utilization": _first(caches, "gpu_memory_utilization"),
        "max_num_seqs": scheduler.max_num_seqs or asked.max_num_seqs,
        "max_num_batched_tokens": (
            scheduler.max_num_batched_tokens or asked.max_num_batched_tokens
        ),
        "max_model_len": model.max_model_len or asked.max_model_len,
        "tensor_parallel_size": tensor,
        "data_parallel_size": data,
        "pipeline_parallel_size": _first(degrees, "pipeline_parallel_size"),
        "enable_expert_parallel": several and _first(degrees, "enable_expert_parallel"),
        "asynchronous": scheduler.async_scheduling,
        "whole_prompt": scheduler.scheduler_reserve_full_isl,
        "notes": tuple(check_flags(raw, path)),
        "engine": None if meta.vllm_version is None else f"vLLM {meta.vllm_version}",
    }
    return Resolved(**{k: v for k, v in found.items() if v is not None})


def _first(places: Sequence[msgspec.Struct], name: str) -> Any:
    """What the first of ``places`` that says it says of ``name``; None if none does."""
    found = (getattr(place, name) for place in places)
    return next((value for value in found if value is not None), None)


def _series(path: Path) -> dict[str, FloatArray]:
    columns: dict[str, list[float]] = {key: [] for key in SERIES}
    for line, row in csv_rows(path, SERIES, _HINT):
        for key in SERIES:
            value, before = number_in(row, key, path, line), columns[key]
            problem = "is below 0" if value < 0 and key != "t" else ""
            if key == "t" and before and value <= before[-1]:
                problem = "is not after the line before"
            if problem:
                raise InputError(problem, file=path, line=line, field=key, hint="Correct this line")
            before.append(value)
    if not columns["t"]:
        raise InputError("holds no rows", file=path, hint=_HINT)
    return {key: np.array(values) for key, values in columns.items()}
