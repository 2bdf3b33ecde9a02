"""``vllm bench serve --save-result --save-detailed`` JSON as a recording that can be replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nexusbench.core.errors import InputError, UsageError

LISTS = ("input_lens", "output_lens", "ttfts", "itls", "start_times")


def import_bench_serve(source: Path, folder: Path) -> list[str]:
    """Write ``source`` as a recording into the new or empty ``folder``; return what to know of it.

    Times count from the client: arrival is when a request was sent. Failed requests are left out.
    Raises InputError naming the field at fault, UsageError if the folder is in use.
    """
    detail = _load(source)
    columns = [_list(source, detail, name) for name in LISTS]
    errors = detail.get("errors") or [""] * len(columns[0])
    rows, failed, merged = [], 0, 0
    for index, (prompt, output, ttft, gaps, start) in enumerate(zip(*columns, strict=True)):
        if errors[index] or not output:
            failed += 1
            continue
        for name, value in zip(LISTS, (prompt, output, ttft, 0, start), strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float):
                problem = f"item {index} is {value!r}, not a number"
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
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "requests.jsonl").write_text(lines, encoding="utf-8")
    meta = {
        "schema_version": 1,
        "model": detail.get("model_id"),
        "imported_from": f"vllm bench serve, {detail.get('date', 'date unknown')}",
        "engine_kwargs": {
            "max_num_seqs": None, "max_num_batched_tokens": None, "max_model_len": None,
            "tensor_parallel_size": 1,
        },
        "kv_cache": {"num_gpu_blocks": None, "block_size": 16, "enable_prefix_caching": True},
        "resolved_config": {"scheduler_config": {"async_scheduling": None}},
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    notes = [
        f"{len(rows)} requests; {failed} failed ones left out",
        f"{folder / 'meta.json'}: fill in what the server resolved (its log names num_gpu_blocks), "
        "above all the KV blocks; null is resolved by the simulator",
    ]
    if merged:
        notes.append(f"{merged} requests got several tokens at once: no gaps of theirs are kept")
    return notes


def _load(source: Path) -> dict[str, Any]:
    try:
        detail = json.loads(source.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=source) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not JSON: {error}", file=source, hint="Give one result") from None
    if not isinstance(detail, dict):
        raise InputError("is not a JSON object", file=source, hint="Give one result")
    return detail


def _list(source: Path, detail: dict[str, Any], name: str) -> list[Any]:
    value = detail.get(name)
    if not isinstance(value, list):
        hint = "Run vllm bench serve with --save-result --save-detailed"
        if name == "start_times":
            hint += ", of a version that saves start_times (from about 0.11 on)"
        raise InputError("is missing", file=source, field=name, hint=hint)
    if len(value) != len(detail["input_lens"]):
        problem = f"has {len(value)} items, input_lens has {len(detail['input_lens'])}"
        raise InputError(problem, file=source, field=name, hint="Correct the file")
    return value
