"""``vllm bench serve --save-result --save-detailed`` JSON as a recording that can be replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec

from nexusbench.core.documents import MOST_TEXT, decode_json, read_document
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.outputs import make_folder
from nexusbench.workloads.source import write_atomic

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Span = Annotated[float, msgspec.Meta(ge=0, le=4e9)]
LISTS = ("input_lens", "output_lens", "ttfts", "itls", "start_times")


class _Detail(msgspec.Struct):
    """What is read of a result; a failed request may have null in the place of its times, and a
    result without details has none of the lists.
    """

    input_lens: list[Count] | None = None
    output_lens: list[Count | None] | None = None
    ttfts: list[Span | None] | None = None
    itls: list[list[Span] | None] | None = None
    start_times: list[Span | None] | None = None
    errors: list[str | None] | None = None
    model_id: str | None = None
    date: str | None = None


def import_bench_serve(source: Path, folder: Path) -> list[str]:
    """Write ``source`` as a recording into the new or empty ``folder``; return notes about it.

    Times count from the client: arrival is when a request was sent. Failed requests are left out.
    Raises InputError naming the field at fault, UsageError if the folder is in use.
    """
    detail = _load(source)
    columns = [getattr(detail, name) for name in LISTS]
    errors = detail.errors or [""] * len(columns[0])
    rows, failed, merged = [], 0, 0
    for index, (prompt, output, ttft, gaps, start) in enumerate(zip(*columns, strict=True)):
        if errors[index] or not output:
            failed += 1
            continue
        for name, value in zip(LISTS, (prompt, output, ttft, gaps, start), strict=True):
            if value is None or (name == "input_lens" and value < 1):
                problem = f"item {index} is {value} of a request that did not fail"
                raise InputError(problem, file=source, field=name, hint="Correct the file")
        row = {
            "request_id": f"bench-{index}",
            "input_toks": prompt,
            "output_toks": output,
            "arrival_time": start,
            "queued_ts": start,
            "scheduled_ts": None,
            "first_token_ts": start + ttft,
            "last_token_ts": start + ttft + sum(gaps),
        }
        if len(gaps) == output - 1:
            row["itls"] = gaps
        else:
            merged += 1
        rows.append(row)
    if not rows:
        raise InputError("holds no finished request", file=source, hint="Give another run")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; name a new folder")
    make_folder(folder)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomic(folder / "requests.jsonl", lines.encode())
    meta = {
        "schema_version": 1,
        "model": detail.model_id,
        "imported_from": f"vllm bench serve, {detail.date or 'date unknown'}",
        "engine_kwargs": {
            "max_num_seqs": None, "max_num_batched_tokens": None, "max_model_len": None,
            "tensor_parallel_size": 1,
        },
        "kv_cache": {"num_gpu_blocks": None, "block_size": 16, "enable_prefix_caching": True},
        "resolved_config": {"scheduler_config": {"async_scheduling": None}},
    }  # fmt: skip
    write_atomic(folder / "meta.json", (json.dumps(meta, indent=2) + "\n").encode())
    notes = [
        f"{len(rows)} requests; {failed} failed ones left out",
        f"{folder / 'meta.json'}: fill in what the server resolved (its log names num_gpu_blocks), "
        "above all the KV blocks; null is resolved by the simulator",
    ]
    if merged:
        notes.append(f"{merged} requests got several tokens at once: no gaps of theirs are kept")
    return notes


def _load(source: Path) -> _Detail:
    data = read_document(source, most=MOST_TEXT).removeprefix(b"\xef\xbb\xbf")
    detail = decode_json(data, _Detail, source, what="a result", hint="Give one result")
    for name in LISTS:
        if getattr(detail, name) is None:
            hint = "Run vllm bench serve with --save-result --save-detailed"
            if name == "start_times":
                hint += ", of a version that saves start_times (from about 0.11 on)"
            raise InputError("is missing", file=source, field=name, hint=hint)
    count = len(detail.input_lens or ())
    for name in (*LISTS, "errors"):
        found = getattr(detail, name)
        if found is not None and len(found) != count:
            problem = f"has {len(found)} items, input_lens has {count}"
            raise InputError(problem, file=source, field=name, hint="Correct the file")
    return detail
